"""Pages: the chunks that long messages no longer embed."""

from typing import Any, ClassVar

from beanie import Document, PydanticObjectId
from pymongo import IndexModel

from converse_mongo.domain.chunks import ChunkLog
from converse_mongo.store.collections import PAGES


class MessageChunkPage(Document):
    """A run of chunks that a long message no longer embeds.

    Read-only: only the library writes it.

    Attributes:
        conversation_id: The conversation of the message.
        message_id: The message.
        log_id: Its ``log_id``, since a later message may have the same id.
        first_sequence: The sequence of its first chunk.
        next_sequence: The sequence behind its last chunk.
        chunk_bytes: An upper bound of the size of the chunks, in bytes.
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
        """Settings for Beanie."""

        name = PAGES
        bson_encoders: ClassVar[dict[Any, Any]] = {ChunkLog: lambda log: log.stored}
        indexes: ClassVar[list[IndexModel]] = [
            # The page that holds a sequence; the shard key leads.
            IndexModel(
                ["conversation_id", "message_id", "log_id", "first_sequence"], name="message_pages"
            ),
        ]
