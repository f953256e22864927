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
from converse_mongo.tools.chat.hosts import is_same_origin, scheme_of
from converse_mongo.tools.chat.refusals import Refusal

COOKIE = "chat_session"
MAX_AGE = 365 * 24 * 3600

_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")


def user_of(request: HTTPConnection) -> str | None:
    """Returns the id of the user; ``None`` if the request has no valid cookie.

    The id is a hash of the cookie, so that a reader of the database cannot impersonate users.
    """
    token = request.cookies.get(COOKIE, "")
    return _id_for(token) if _TOKEN.fullmatch(token) else None


def current_user(request: Request) -> str:
    """Returns the id of the user.

    Raises:
        Refusal: The request has no valid cookie.
    """
    user = user_of(request)
    if user is None:
        raise Refusal(401, "no_session", "Your session has ended. Reload the page.")
    return user


def begin_session(request: Request, response: Response) -> str:
    """Returns the id of the user, and sets the cookie on the first visit.

    The only endpoint that uses this is requested by the page itself. If others set cookies, or this
    one did for pages of other sites, those could replace the cookie of a user, whose conversations
    would be lost.

    Raises:
        Refusal: The request has no valid cookie, and comes from elsewhere.
    """
    user = user_of(request)
    if user is None:
        if not is_same_origin(request):
            raise Refusal(401, "no_session", "Open the page of the chat to begin a session.")
        token = secrets.token_urlsafe(32)
        user = _id_for(token)
        response.set_cookie(
            COOKIE,
            token,
            max_age=MAX_AGE,
            httponly=True,
            samesite="lax",
            secure=scheme_of(request) == "https",
        )
    return user


User = Annotated[str, Depends(current_user)]
Visitor = Annotated[str, Depends(begin_session)]


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
