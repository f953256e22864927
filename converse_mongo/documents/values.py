"""Values: those of parts that are too large for a chunk."""

from typing import ClassVar

from beanie import Document, PydanticObjectId
from pymongo import IndexModel

from converse_mongo.store.collections import VALUES


class MessageValue(Document):
    """A piece of a value that is too large for a part.

    Read-only: only the library writes it. ``Message.load_value`` returns the whole value.

    Attributes:
        conversation_id: The conversation of the message.
        message_id: The message.
        log_id: Its ``log_id``, since a later message may have the same id.
        value_id: The id of the value.
        number: The place of this piece in the value: 0, 1, 2, …
        data: The piece, of the value in BSON.
    """

    id: str  # type: ignore[assignment]
    conversation_id: PydanticObjectId
    message_id: PydanticObjectId
    log_id: PydanticObjectId | None = None
    value_id: str
    number: int
    data: bytes

    class Settings:
        """Settings for Beanie."""

        name = VALUES
        indexes: ClassVar[list[IndexModel]] = [
            # The pieces of a value in order, and all of a message; the shard key leads.
            IndexModel(
                ["conversation_id", "message_id", "log_id", "value_id", "number"],
                name="message_values",
            ),
        ]
