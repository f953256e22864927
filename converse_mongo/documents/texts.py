"""The text of a message, from its chunks."""

from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from converse_mongo.domain.chunks import ChunkLog, MessageChunk
from converse_mongo.domain.headers import shows_parts, with_chunk_count
from converse_mongo.domain.part_log import PartLog
from converse_mongo.domain.part_redaction import Redaction, reduced
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


def with_text(data: dict[str, Any]) -> dict[str, Any]:
    """Adds to a stored message what the second write of its end has not stored, or could not."""
    chunks, count = data.get("chunks"), data.get("next_sequence", 0)
    if isinstance(chunks, list) and count and len(chunks) != count:
        # Read without the library: the rest is in pages, or was merged.
        data = {**data, "chunks": ChunkLog.not_loaded()}
    elif isinstance(chunks, list) and chunks and not data.get("content"):
        log = ChunkLog(chunks)
        redactions = data.get("redactions")
        has_parts = shows_parts(data.get("format"), data.get("part_bytes", 0), redactions)
        text = reduced(chunks, redactions).text() if has_parts else log.text()
        data = {**data, "chunks": log, "content": text}
    if data.get("end_id") is not None:
        data = {**data, "metadata": with_chunk_count(data.get("metadata") or {}, count)}
    return data
