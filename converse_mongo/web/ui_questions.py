"""Questions as pages of the AI SDK send them: a text, and files."""

import re
from typing import Any, NamedTuple

from converse_mongo.domain.parts import FilePart
from converse_mongo.web.errors import EMPTY, RequestError, TooLargeError
from converse_mongo.web.files import DATA_URL, MEDIA_TYPE, file_of

MAX_FILES = 32
MAX_ADDRESS = 4096
_MAX_NAME = 100
_NO_TEXT = "The last of messages must be a user message with a text part, or a file."
_ADDRESS = re.compile(r"(https?:/)?/[^\x00-\x20]*", re.IGNORECASE)
"""Addresses that may be shown to others: none that is a script."""


class UiQuestion(NamedTuple):
    """What a page asks.

    Attributes:
        content: The text.
        request_id: The id of the message on the page; ``None`` if it has none.
        sent: The parts of the files.
    """

    content: str
    request_id: str | None
    sent: list[dict[str, Any]]

    def files(self, limit: int) -> list[FilePart]:
        """Returns the files.

        Args:
            limit: The most bytes of one that is sent with the message.

        Raises:
            TooLargeError: One of them is larger, or they are too many.
            RequestError: One of them cannot be stored.
        """
        if len(self.sent) > MAX_FILES:
            detail = f"A message takes {MAX_FILES} files at most."
            raise TooLargeError("There are too many files.", detail=detail)
        return [_file_of(part, limit) for part in self.sent]


def question_of(messages: list[Any]) -> UiQuestion:
    """Returns the last of some UI messages.

    The others are the client's copy of what the database has.

    Raises:
        RequestError: It is not a user message with a text or a file, or has what cannot be stored.
    """
    last = messages[-1] if messages else None
    if not isinstance(last, dict) or last.get("role") != "user":
        raise RequestError(EMPTY, detail=_NO_TEXT)
    parts, name = last.get("parts"), last.get("id")
    if not isinstance(parts, list):
        raise RequestError(EMPTY, detail=_NO_TEXT)
    files = [part for part in parts if isinstance(part, dict) and part.get("type") == "file"]
    content = "\n".join(text for text in map(_text_of, parts) if text)
    if not content.strip() and not files:
        raise RequestError(EMPTY, detail=_NO_TEXT)
    return UiQuestion(content, name if isinstance(name, str) and name else None, files)


def _text_of(part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        text: str = part["text"]
        return text
    if kind in ("step-start", "file"):
        return ""
    name = _short(str(kind))
    raise RequestError(f"Only text and files can be sent in messages. Remove this part: {name}.")


def _file_of(part: dict[str, Any], limit: int) -> FilePart:
    url, media_type, name = part.get("url"), part.get("mediaType"), part.get("filename")
    name = name if isinstance(name, str) and name else None
    called = _short(" ".join(str(each) for each in (name, media_type) if each) or "without a name")
    if not isinstance(media_type, str) or not MEDIA_TYPE.fullmatch(media_type):
        raise _refused(called, "mediaType must be a media type, such as image/png.")
    if not isinstance(url, str):
        raise _refused(called, "url must be a string.")
    if name is not None and len(name) > MAX_ADDRESS:
        raise TooLargeError(f"The name of this file is too long: {called}.")
    found = DATA_URL.match(url)
    if found is None:
        if len(url) > MAX_ADDRESS:
            raise TooLargeError(f"The address of this file is too long: {called}.")
        if not _ADDRESS.fullmatch(url):
            raise _refused(
                called, "url must begin with https://, http:// or /, or be a data URL in Base64."
            )
        return FilePart(url, media_type, name=name)
    encoded = url[found.end() :]
    if len(encoded) * 3 // 4 > limit + 2:
        raise _too_large(called, limit)
    data = file_of(url)
    if data is None:
        raise _refused(called, "url is a data URL that is not valid Base64.")
    if len(data) > limit:
        raise _too_large(called, limit)
    return FilePart(url, media_type, name=name, size=len(data))


def _refused(called: str, detail: str) -> RequestError:
    return RequestError(f"This file cannot be sent: {called}.", detail=detail)


def _too_large(called: str, limit: int) -> TooLargeError:
    detail = (
        f"A file in a message has {limit} bytes at most, by file_bytes of Limits. Upload it, and "
        "send its address."
    )
    return TooLargeError(f"This file is too large: {called}.", detail=detail)


def _short(name: str) -> str:
    return f"{name[:_MAX_NAME]}…" if len(name) > _MAX_NAME else name
