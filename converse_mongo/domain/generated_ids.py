"""Ids of messages that are derived from a name, so that no unique index is needed for the name."""

import hashlib

from beanie import PydanticObjectId
from bson import ObjectId


def generated_id(conversation_id: ObjectId, generation_id: str) -> PydanticObjectId:
    """Derives the id of the message of a generation in a conversation.

    If two processes start the same generation, one of them so finds it started: every collection,
    sharded or not, has a unique index on ``_id``.
    """
    digest = hashlib.sha256(conversation_id.binary + generation_id.encode()).digest()
    return PydanticObjectId(digest[:12])
