"""Blocks: what a content block of Anthropic's Messages is as a part of a message."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from converse_mongo.domain.parts import Executor, Part, SourceDocumentPart, SourceUrlPart
from converse_mongo.integrations.streams import get, text_at

TOOL_USE = "tool_use"
RESULT = "_tool_result"
"""How the types of blocks end that are the outcome of a tool which Anthropic runs."""

THOUGHTS = frozenset({"thinking", "redacted_thinking"})


@dataclass(eq=False)
class Block:
    """A content block.

    Attributes:
        key: The key of its part: its index, as text.
        fields: The block, as far as it is known, without what its deltas add to a text or an input.
        units: The length of its text in UTF-16, which joining halves of characters does not change.
        pieces: The input of a tool, in pieces.
        done: True if nothing is to come.
        failed: True if the input of a tool is no JSON.
    """

    key: str
    fields: dict[str, Any] = field(default_factory=dict)
    units: int = 0
    pieces: list[str] = field(default_factory=list)
    done: bool = False
    failed: bool = False

    @property
    def text(self) -> str:
        """The input of a tool, as the model wrote it."""
        return "".join(self.pieces)

    @property
    def kind(self) -> str:
        """The type of the block."""
        return text_at(self.fields, "type")

    @property
    def citations(self) -> list[Any]:
        """What a text cites."""
        found = self.fields.get("citations")
        return found if isinstance(found, list) else []

    def rest(self, *names: str) -> dict[str, Any]:
        """Returns the fields without the type and those that the part has."""
        return {name: value for name, value in self.fields.items() if name not in ("type", *names)}


def is_use(kind: str) -> bool:
    """Returns whether a block is the call of a tool."""
    return kind == TOOL_USE or kind.endswith("_tool_use")


def is_result(kind: str) -> bool:
    """Returns whether a block is the outcome of a tool that Anthropic runs."""
    return kind.endswith(RESULT)


def executor_of(kind: str) -> Executor:
    """Returns who runs the tool of a block."""
    return "server" if kind == TOOL_USE else "provider"


def error_of(block: Mapping[str, Any], content: Any) -> str | None:
    """Returns the error that an outcome tells, if it does."""
    if text_at(content, "type").endswith("_error"):
        return text_at(content, "error_code") or "failed"
    if block.get("is_error") is not True:
        return None
    if isinstance(content, str):
        return content or "failed"
    texts = [text_at(each, "text") for each in content] if isinstance(content, list) else []
    return "".join(texts) or "failed"


_DOCUMENTS = {"page_location": "application/pdf", "char_location": "text/plain"}


def sources_of(citations: list[Any]) -> list[Part]:
    """Returns the sources that the citations of texts name, each once."""
    found: dict[tuple[str, Any], Part] = {}
    for citation in citations:
        kind = text_at(citation, "type")
        url = text_at(citation, "url") or text_at(citation, "source")
        title = text_at(citation, "title") or text_at(citation, "document_title")
        if url.startswith(("https://", "http://")):
            found.setdefault(("url", url), SourceUrlPart(url, title=title or None))
            continue
        index, file_id = get(citation, "document_index"), text_at(citation, "file_id")
        if not url and not isinstance(index, int):
            continue
        number = "" if url else f"Document {index + 1}"
        found.setdefault(
            ("source", url) if url else ("document", index),
            SourceDocumentPart(
                title or url or number,
                _DOCUMENTS.get(kind, "application/octet-stream"),
                id=file_id or url or None,
            ),
        )
    return list(found.values())
