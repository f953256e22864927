"""The shapes in which servers tell of an append, as in the manual and as measured."""

from dataclasses import replace
from typing import Any

import pytest
from bson import ObjectId

from converse_mongo import MessageRole
from converse_mongo.watching.changes import (
    ConversationChanged,
    Deleted,
    Inserted,
    StreamInvalidated,
    Updated,
    decode,
)

MESSAGE, CONVERSATION = ObjectId(), ObjectId()


def update(fields: dict[str, Any]) -> Updated:
    hint = decode(
        {
            "operationType": "update",
            "ns": {"db": "x", "coll": "messages"},
            "documentKey": {"_id": MESSAGE},
            "updateDescription": {"updatedFields": fields, "removedFields": []},
        },
        "conversations",
    )
    assert isinstance(hint, Updated)
    return hint


def chunk(sequence: int) -> dict[str, Any]:
    return {"sequence": sequence, "content": "x"}


@pytest.mark.parametrize(
    ("fields", "sequences"),
    [
        ({"chunks": [chunk(0)]}, [0]),
        ({"chunks.0": chunk(0)}, [0]),
        ({"chunks.7": chunk(7), "next_sequence": 8}, [7]),
        ({"chunks.7": chunk(7), "chunks.8": chunk(8), "chunks.9": chunk(9)}, [7, 8, 9]),
        ({"chunks": [chunk(3), chunk(4)], "next_sequence": 5}, [3, 4]),
        ({"chunks": None}, []),
        ({"chunks.7.content": "edited"}, []),
        ({"chunks_of_mine": [1]}, []),
        ({}, []),
    ],
)
def test_append__in_every_shape(fields: dict[str, Any], sequences: list[int]) -> None:
    hint = update(fields)
    assert [stored["sequence"] for stored in hint.chunks] == sequences
    assert hint.next_sequence == fields.get("next_sequence")
    assert not hint.ended


def test_end__is_a_change_of_state() -> None:
    assert update({"status": "completed", "completed_at": None}).ended
    assert update({"metadata": {"status": "x"}}).ended is False


def test_save__tells_the_conversation() -> None:
    save = {"conversation_id": CONVERSATION, "at": None}
    hint = update({"revision": 3, "last_save": save})  # of an earlier version
    assert (hint.conversation_id, hint.role, hint.revision) == (CONVERSATION, None, 3)
    hint = update({"revision": 3, "last_save": {**save, "role": "tool_result"}})
    assert hint.role == MessageRole.TOOL_RESULT.value  # as stored: it may be unknown here


def of(collection: str, operation: str, **fields: Any) -> Any:
    change = {"operationType": operation, "ns": {"db": "x", "coll": collection}, **fields}
    return decode(change, "conversations")


def test_others() -> None:
    key = {"documentKey": {"_id": MESSAGE}}
    document = {"_id": MESSAGE, "conversation_id": CONVERSATION}
    inserted = of("messages", "insert", fullDocument=document, **key)
    assert inserted == Inserted(MESSAGE, CONVERSATION, document)
    assert of("messages", "delete", **key) == Deleted(MESSAGE)
    assert of("messages", "modify", **key) is None
    for operation in ("drop", "rename", "dropDatabase", "invalidate"):
        assert decode({"operationType": operation}, "conversations") == StreamInvalidated(operation)


def test_conversation__leads_to_its_owner() -> None:
    key = {"documentKey": {"_id": CONVERSATION}}
    owner = {"type": "user", "id": "42"}
    ours = ConversationChanged(CONVERSATION, ("user", "42"))
    nobodys = ConversationChanged(CONVERSATION)
    for operation in ("insert", "replace"):
        document = {"_id": CONVERSATION, "owner": owner}
        assert of("conversations", operation, fullDocument=document, **key) == ours
        document = {"_id": CONVERSATION, "owner": None}
        assert of("conversations", operation, fullDocument=document, **key) == nobodys
    for fields, hint in (({"owner": owner}, ours), ({"title": "x"}, nobodys), (None, nobodys)):
        description = {"updatedFields": fields}
        assert of("conversations", "update", updateDescription=description, **key) == hint
    assert of("conversations", "delete", **key) == replace(nobodys, deleted=True)
