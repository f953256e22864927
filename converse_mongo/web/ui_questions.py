"""Questions as pages of the AI SDK send them: a text, and files."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from converse_mongo.domain.parts import FilePart
from converse_mongo.web.errors import EMPTY, RequestError
from converse_mongo.web.files import files_of, short

_NO_TEXT = "The last of messages must be a user message with a text part, or a file."


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
        return files_of(self.sent, limit, media_type="mediaType", name="filename")


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


def ui_files(parts: Iterable[Mapping[str, Any]]) -> list[tuple[Any, ...]]:
    """Returns what the files of a message on a page say."""
    names = ("url", "mediaType", "filename")
    return [tuple(map(part.get, names)) for part in parts if part.get("type") == "file"]


def _text_of(part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        text: str = part["text"]
        return text
    if kind in ("step-start", "file"):
        return ""
    name = short(str(kind))
    raise RequestError(f"Only text and files can be sent in messages. Remove this part: {name}.")
