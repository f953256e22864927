"""Own writes: a copy of a message is updated with the writes made through it."""

from collections.abc import Sequence
from typing import Any

from converse_mongo.documents.tracking import ChangeTracker
from converse_mongo.domain.chunks import ChunkLog, MessageChunk
from converse_mongo.domain.types import MessageStatus
from converse_mongo.domain.validation import MAX_CONTENT_BYTES, PAGE_CHUNKS
from converse_mongo.store import EndedMessage, WriteQueue

Fields = dict[str, Any]


class OwnWrites:
    """Keeps the fields of a copy up to date with its own appends and its own end.

    The fields are the ``__dict__`` of the message: getting and setting attributes costs a call or
    two in Beanie's classes, at each append.

    Attributes:
        queue: The queue of the message, once it is known.
        has_text: True if ``content`` has the whole text, though the chunks are not loaded.
        unconfirmed: True after appends of a transaction, which may not have been committed.
    """

    __slots__ = ("has_text", "queue", "unconfirmed")

    def __init__(self) -> None:
        self.queue: WriteQueue | None = None
        self.has_text = self.unconfirmed = False

    def known_text(self, fields: Fields) -> tuple[int, str] | None:
        """Returns the number of chunks and their text, if the copy has all of them."""
        if self.unconfirmed or not (self.has_text or fields["chunks"].is_loaded):
            return None
        return fields["next_sequence"], fields["content"]

    def append(
        self, fields: Fields, tracker: ChangeTracker, chunks: Sequence[MessageChunk]
    ) -> None:
        """Adds the chunks of an append to a copy that has all chunks before them."""
        log: ChunkLog = fields["chunks"]
        if not (log.is_loaded and fields["status"] is MessageStatus.STREAMING):
            return
        if chunks[0].sequence == fields["next_sequence"]:  # else others appended in between
            log.stored.extend([chunk.to_stored() for chunk in chunks])
            _add_text(fields, tracker, chunks, None)

    def write(self, fields: Fields, tracker: ChangeTracker, chunks: Sequence[MessageChunk]) -> None:
        """Adds the chunks of a writer, but keeps at most a page of them and the text that fits."""
        log: ChunkLog = fields["chunks"]
        if fields["status"] is not MessageStatus.STREAMING or not (self.has_text or log.is_loaded):
            return
        self.has_text = True
        if chunks[0].sequence != fields["next_sequence"]:
            return
        if log.is_loaded and fields["next_sequence"] + len(chunks) <= PAGE_CHUNKS:
            log.stored.extend([chunk.to_stored() for chunk in chunks])
        else:
            fields["chunks"] = ChunkLog.not_loaded()
        _add_text(fields, tracker, chunks, MAX_CONTENT_BYTES)

    def end(self, fields: Fields, ended: EndedMessage) -> None:
        """Sets the fields that the end of the message changed."""
        state = ended.state
        for name in (
            *("status", "error", "stop_reason", "metadata"),
            *("next_sequence", "content_bytes", "completed_at"),
        ):
            fields[name] = getattr(state, name)
        if ended.content is not None:
            fields["content"] = ended.content
        if ended.chunks is not None:
            fields["chunks"] = ChunkLog(ended.chunks)
        elif fields["chunks"].is_loaded and len(fields["chunks"]) != state.next_sequence:
            fields["chunks"], fields["content"] = ChunkLog.not_loaded(), ended.content or ""


def _add_text(
    fields: Fields, tracker: ChangeTracker, chunks: Sequence[MessageChunk], limit: int | None
) -> None:
    remembered = tracker.remembered
    # CPython grows a string in place if nothing else refers to it; a copy for each chunk would cost
    # the square of the length.
    remembered.pop("content", None)
    text: str = fields.pop("content")
    for chunk in chunks:
        fields["next_sequence"] += 1
        fields["chunk_bytes"] += chunk.stored_size
        fields["content_bytes"] += chunk.content_size
        if limit is None or fields["content_bytes"] <= limit:
            text += chunk.content
        else:
            text = ""
    fields["content"] = text
    for name in ("content", "next_sequence", "chunk_bytes", "content_bytes"):
        remembered[name] = fields[name]
