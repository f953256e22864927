"""Identifies the user of a request.

In this example, each browser is a user, identified by a random cookie. Put your authentication
here. The rest of the chat needs only a stable id for each user that nobody else can claim.
"""

import hashlib
import re
import secrets
from typing import Annotated

from fastapi import Depends, Request, Response
from starlette.requests import HTTPConnection

from converse_mongo import Conversation

COOKIE = "chat_session"
MAX_AGE = 365 * 24 * 3600

_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")


def user_of(request: HTTPConnection) -> str | None:
    """Returns the id of the user; ``None`` if the request has no valid cookie.

    The id is a hash of the cookie, so that a reader of the database cannot impersonate users.
    """
    token = request.cookies.get(COOKIE, "")
    return _id_for(token) if _TOKEN.fullmatch(token) else None


def current_user(request: Request, response: Response) -> str:
    """Returns the id of the user, and sets the cookie on the first visit."""
    user = user_of(request)
    if user is None:
        token = secrets.token_urlsafe(32)
        user = _id_for(token)
        response.set_cookie(
            COOKIE,
            token,
            max_age=MAX_AGE,
            httponly=True,
            samesite="lax",
            secure=request.url.scheme == "https",
        )
    return user


User = Annotated[str, Depends(current_user)]


def authorize(request: HTTPConnection, conversation: Conversation) -> bool:
    """Allows only the owner to read a conversation and to write to it."""
    mine = owner(request)
    return mine is not None and conversation.owner is not None and conversation.owner.pair == mine


def owner(request: HTTPConnection) -> tuple[str, str] | None:
    """Returns the owner whose conversations a request may follow; ``None`` for nobody."""
    user = user_of(request)
    return None if user is None else ("user", user)


def _id_for(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()[:32]
