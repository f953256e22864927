"""Pages: the chunks that long messages do not embed any more."""

from typing import Any, ClassVar

from beanie import Document, PydanticObjectId
from pymongo import ASCENDING, IndexModel

from converse_mongo.domain.chunks import ChunkLog
from converse_mongo.store.collections import PAGES

__all__ = ["MessageChunkPage"]


class MessageChunkPage(Document):
    """A run of chunks that a long message does not embed any more.

    Read it as you like; only the library writes it.

    Attributes:
        conversation_id: The conversation of the message.
        message_id: The message.
        log_id: Its ``log_id``: an id that was used before tells no old page from a new one.
        first_sequence: The sequence of its first chunk.
        next_sequence: The sequence behind its last chunk.
        chunk_bytes: What the chunks take, in bytes, counted generously.
        chunks: The chunks.
    """

    id: str  # type: ignore[assignment]
    conversation_id: PydanticObjectId
    message_id: PydanticObjectId
    log_id: PydanticObjectId | None = None
    first_sequence: int
    next_sequence: int
    chunk_bytes: int
    chunks: ChunkLog

    class Settings:
        """What Beanie is to know."""

        name = PAGES
        bson_encoders: ClassVar[dict[Any, Any]] = {ChunkLog: lambda log: log.stored}
        indexes: ClassVar[list[IndexModel]] = [
            # The page that holds a sequence; the shard key leads.
            IndexModel(
                [
                    ("conversation_id", ASCENDING),
                    ("message_id", ASCENDING),
                    ("log_id", ASCENDING),
                    ("first_sequence", ASCENDING),
                ],
                name="message_pages",
            ),
        ]
