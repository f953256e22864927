"""Who a request comes from.

This is an example: each browser is a user of its own, whom a random cookie tells from others. Put
your authentication here. All that the rest of the chat needs is one id for each request, the same
one each time, that nobody else can claim.
"""

import hashlib
import re
import secrets
from typing import Annotated

from fastapi import Depends, Request, Response
from starlette.requests import HTTPConnection

from converse_mongo import Conversation

__all__ = ["User", "authorize", "current_user", "owner"]

COOKIE = "chat_session"
MAX_AGE = 365 * 24 * 3600

_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")


def user_of(request: HTTPConnection) -> str | None:
    """The id of the user; ``None`` if the request does not say.

    It is derived from the cookie, so that who reads the database can be nobody else.
    """
    token = request.cookies.get(COOKIE, "")
    return _id_for(token) if _TOKEN.fullmatch(token) else None


def current_user(request: Request, response: Response) -> str:
    """The id of the user, who is made up on the first visit."""
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
    """Whether a request may read a conversation and write to it: only its owner may."""
    mine = owner(request)
    return mine is not None and conversation.owner is not None and conversation.owner.pair == mine


def owner(request: HTTPConnection) -> tuple[str, str] | None:
    """Whose conversations a request may follow, as they are begun with; ``None`` for nobody's."""
    user = user_of(request)
    return None if user is None else ("user", user)


def _id_for(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()[:32]
