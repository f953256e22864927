"""The text of a message with parts, of any length, in pieces."""

from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from converse_mongo.domain.chunks import MessageChunk
from converse_mongo.domain.part_log import PartLog
from converse_mongo.domain.part_redaction import Redaction
from converse_mongo.domain.validation import check_sequence


async def texts_of(
    read: Callable[[], AsyncIterator[MessageChunk]],
    after: int | None,
    redactions: Iterable[Redaction] | None = None,
) -> AsyncIterator[str]:
    """Yields the text of the answer, from behind the sequence ``after``.

    It reads the chunks twice: later ones may void or redact the parts of earlier ones.

    Args:
        read: Reads all chunks, without a gap.
        after: The sequence of the last chunk to leave out; ``None`` for none.
        redactions: The parts that were redacted since the end of the message.

    Raises:
        InvalidCursorError: ``after`` is not a sequence.
    """
    outline, start = PartLog(), check_sequence(after)
    async for chunk in read():
        outline.add(_outline(chunk))
    for each in redactions or ():
        outline.redact(each["part"], None)
    left = {record["part"] for record in outline.records() if not record.get("redacted")}
    again = PartLog()
    async for chunk in read():
        if chunk.sequence >= outline.next_sequence:
            return
        if again.add(_outline(chunk)) in left and chunk.sequence >= start and chunk.content:
            yield chunk.content


def _outline(chunk: MessageChunk) -> dict[str, Any]:
    """Returns a chunk with a short text, by which the parts can be told."""
    return {**chunk.to_stored(), "content": chunk.content and ".", "delta": ""}
