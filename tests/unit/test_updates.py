"""Updates: what each write insists on, and what it changes."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bson import ObjectId

from converse_mongo.domain.chunks import MessageChunk, PartChunk
from converse_mongo.domain.headers import FORMATS, message_key
from converse_mongo.domain.leases import Lease
from converse_mongo.domain.types import MessageRole, MessageStatus
from converse_mongo.domain.validation import MAX_LIVE_BYTES
from converse_mongo.store import updates

AT = datetime(2026, 1, 1, tzinfo=UTC)
ID = ObjectId()
HOLDER = ObjectId()
KEY = message_key(ObjectId(), ObjectId(), ObjectId())
LEASE = Lease(epoch=2, holder=HOLDER, renewed_at=AT, duration=30.0)
HELD = {"lease.epoch": 2, "lease.holder": HOLDER}
NO_WRITER = {"$in": [0, None]}
KNOWN = {**KEY, "format": {"$in": list(FORMATS)}}
STREAMING = {**KNOWN, "status": "streaming"}
HEARTBEAT = {"$currentDate": {"lease.renewed_at": True}}
CHUNKS = [MessageChunk(3, "ab", AT), MessageChunk(4, "", AT, {"n": 1})]


def stored(*, append_id: bool = True) -> list[dict[str, Any]]:
    first, second = (chunk.to_stored() for chunk in CHUNKS)
    return [{**first, "append_id": ID} if append_id else first, second]


def test_append__insists_on_the_sequence_and_the_room() -> None:
    match, update = updates.append(KEY, CHUNKS, ID, size=100, text_size=2)
    room = {"$not": {"$gt": MAX_LIVE_BYTES - 100}}
    assert match == {**STREAMING, "next_sequence": 3, "chunk_bytes": room}
    assert update == {
        "$push": {"chunks": {"$each": stored()}},
        "$inc": {"next_sequence": 2, "chunk_bytes": 100, "content_bytes": 2},
        **HEARTBEAT,
    }


def test_append__of_a_writer_insists_on_its_lease_and_on_no_stop() -> None:
    plain, _ = updates.append(KEY, CHUNKS, ID, 100, 2)
    match, _ = updates.append(KEY, CHUNKS, ID, 100, 2, LEASE, unless_stopped=True)
    assert match == {**plain, **HELD, "stop_requested_at": None}


def test_append__of_a_redaction_notes_it_in_the_same_write() -> None:
    redact = PartChunk(3, "", AT, event="redact", part=1, fields={"reason": "r"})
    _, update = updates.append(KEY, [redact], ID, 100, 0, has_parts=True)
    assert update["$push"]["redactions"] == {"$each": [{"part": 1, "reason": "r"}]}
    assert update["$inc"]["sweeps"] == 1
    assert (update["$set"], update["$max"]) == ({"compact_at": AT}, {"format": 2})
    others = [PartChunk(3, "", AT, event="end", part=1), PartChunk(4, "", AT, event="redact")]
    _, update = updates.append(KEY, others, ID, 100, 0, has_parts=True)
    assert (update["$push"].keys(), update["$max"]) == ({"chunks"}, {"format": 2})
    assert "$set" not in update


def test_any_log__is_the_key_of_whichever_message_has_the_id() -> None:
    assert updates.any_log(KEY) == {
        "_id": KEY["_id"],
        "conversation_id": KEY["conversation_id"],
    }


def test_page__is_named_by_what_it_holds() -> None:
    page = updates.page(KEY, stored())
    assert page["_id"] == f"{KEY['log_id']}-3"
    assert (page["first_sequence"], page["next_sequence"]) == (3, 5)
    assert page["chunk_bytes"] == sum(chunk.stored_size for chunk in CHUNKS)
    assert page["chunks"] == stored()
    of_no_log = message_key(KEY["_id"], KEY["conversation_id"], None)
    assert updates.page(of_no_log, stored())["_id"] == f"{KEY['_id']}-3"


def test_trim__matches_only_the_message_that_begins_with_the_page() -> None:
    assert updates.trim(KEY, 3, 5, 100) == (
        {**KNOWN, "page_start": 3, "sweeps": None},
        {
            "$set": {"page_start": 5},
            "$pull": {"chunks": {"sequence": {"$lt": 5}}},
            "$inc": {"chunk_bytes": -100},
        },
    )


def test_sweep__matches_only_chunks_in_the_same_place() -> None:
    match, update = updates.sweep(KEY, 2, 1, {0: stored()[0], 1: stored()[1]}, 70)
    assert match == {
        **KNOWN,
        "page_start": 2,
        "sweeps": 1,
        "compacted": {"$ne": True},
        "chunks.1.sequence": 4,
    }
    assert update == {
        "$inc": {"sweeps": 1, "chunk_bytes": -70},
        "$set": {"chunks.0": stored()[0], "chunks.1": stored()[1]},
    }
    assert updates.sweep(KEY, 2, 1, {}, 0)[1] == {"$inc": {"sweeps": 1}}


def test_lease__is_unchanged_without_a_heartbeat_since() -> None:
    seen = {"$lt": AT + timedelta(milliseconds=1)}
    assert updates.unchanged_lease(LEASE) == {**HELD, "lease.renewed_at": seen}
    assert updates.unchanged_lease(Lease()) == {
        "lease.epoch": NO_WRITER,
        "lease.holder": None,
        "lease.renewed_at": None,
    }


OF_NO_END = ["work.state", "work.due", "work.available_at", "work.pending"]


NEXT = ObjectId()
GIVEN = {"lease.holder": NEXT, "lease.duration": 9.0, "taken_over_by": NEXT}
CHANGES: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "acquire": (
        updates.acquire_lease(KEY, NEXT, 9.0),
        {"lease.epoch": NO_WRITER, "work.state": None},
        {"$set": {**GIVEN, "lease.epoch": 1}, **HEARTBEAT},
    ),
    "take over": (
        updates.take_over(KEY, LEASE, NEXT, 9.0),
        {**HELD, "work.state": {"$in": [None, "running"]}},
        {"$set": {**GIVEN, "lease.epoch": 3}, **HEARTBEAT},
    ),
    "renew": (updates.renew_lease(KEY, LEASE), {**HELD, "stop_requested_at": None}, HEARTBEAT),
    "release": (
        updates.release_lease(KEY, LEASE, 9.0),
        {**HELD, "work.state": None},
        {"$set": {"lease.duration": 9.0, "lease.holder": None}, **HEARTBEAT},
    ),
    "start": (
        updates.start_lease(KEY),
        {"lease.renewed_at": None, "lease.duration": {"$ne": None}},
        HEARTBEAT,
    ),
    "stop": (
        updates.request_stop(KEY, "enough"),
        {"stop_requested_at": None, "lease.holder": {"$ne": None}},
        {"$set": {"stop_reason": "enough"}, "$currentDate": {"stop_requested_at": True}},
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_lease__changes_of_a_streaming_message_only(name: str) -> None:
    change, condition, update = CHANGES[name]
    assert change == ({**STREAMING, **condition}, update)


def test_end__happens_once_and_sets_what_it_was() -> None:
    end = updates.End(MessageStatus.FAILED, {"a": 1}, error="lost", stop_reason="unused")
    match, update = updates.end(KEY, ID, end, AT, retention=60.0, condition=HELD, fence=True)
    assert match == {**STREAMING, **HELD}
    assert update == {
        "$set": {
            "status": "failed",
            "error": "lost",
            "end_id": ID,
            "completed_at": AT,
            "updated_at": AT,
            "compact_at": AT + timedelta(seconds=60),
            "metadata.a": 1,
        },
        "$unset": dict.fromkeys(OF_NO_END, ""),
        "$inc": {"lease.epoch": 1},
    }


def test_end__of_a_worker_that_died_counts_it() -> None:
    end = updates.End(MessageStatus.FAILED, {}, error="lost", is_crash=True)
    _, update = updates.end(KEY, ID, end, AT, fence=True)
    assert isinstance(update, dict)
    assert update["$inc"] == {"lease.epoch": 1, "work.crashes": 1}


def test_end__that_cancels_has_a_reason_and_no_fence() -> None:
    end = updates.End(MessageStatus.CANCELLED, {}, stop_reason="enough")
    match, update = updates.end(KEY, ID, end, AT)
    assert match == STREAMING
    assert isinstance(update, dict)
    assert update["$set"]["stop_reason"] == "enough"
    assert "$inc" not in update
    assert "compact_at" not in update["$set"]


def test_end__with_keys_that_no_path_names_takes_everything_for_a_literal() -> None:
    end = updates.End(MessageStatus.FAILED, {"a.b": "$c"}, error="$lost")
    _, update = updates.end(KEY, ID, end, AT, fence=True)
    assert isinstance(update, list)
    stage, removed = update
    assert removed == {"$unset": OF_NO_END}
    assert stage["$set"]["error"] == {"$literal": "$lost"}
    assert stage["$set"]["metadata"] == {
        "$mergeObjects": ["$metadata", {"$literal": {"a.b": "$c"}}]
    }
    assert stage["$set"]["lease.epoch"] == {"$add": [{"$ifNull": ["$lease.epoch", 0]}, 1]}


def test_finish_compaction__leaves_what_a_later_version_wrote() -> None:
    assert updates.finish_compaction(KEY) == (KNOWN, {"$unset": {"compact_at": ""}})


def test_fill__belongs_to_one_end() -> None:
    match = {**KNOWN, "end_id": ID, "redactions": None}
    assert updates.fill(KEY, ID, 2, "ab") == (
        match,
        {"$set": {"metadata.chunks": 2, "content": "ab"}},
    )
    assert updates.fill(KEY, ID, 2, None) == (match, {"$set": {"metadata.chunks": 2}})


def test_compact__keeps_the_text_and_the_last_appends() -> None:
    match, update = updates.compact(KEY, ID, stored())
    assert match == {**KNOWN, "end_id": ID, "compacted": {"$ne": True}, "redactions": None}
    kept = update["$set"]
    assert (kept["content"], kept["chunk_lengths"]) == ("ab", b"\x02\x00")
    assert kept["recent_appends"] == [{"append_id": ID, "sequence": 3}]
    assert (kept["chunks"], kept["chunk_bytes"], kept["page_start"]) == ([], 0, 2)
    assert (kept["compacted"], kept["metadata.chunks"]) == (True, 2)
    many = [{**stored()[0], "sequence": number} for number in range(100)]
    _, update = updates.compact(KEY, ID, many)
    assert [each["sequence"] for each in update["$set"]["recent_appends"]] == list(range(68, 100))


def test_save__sets_and_removes_and_counts() -> None:
    update = updates.save({"title": "b"}, ["metadata.x"], AT)
    assert update == {
        "$set": {"title": "b", "updated_at": AT},
        "$inc": {"revision": 1},
        "$unset": {"metadata.x": ""},
    }
    assert "$unset" not in updates.save({"title": "b"}, [], AT)


def test_save__of_a_message_leads_watchers_to_it() -> None:
    conversation_id = ObjectId()
    update = updates.save_message({"a": 1}, [], AT, conversation_id, MessageRole.USER, True)
    last_save = {"conversation_id": conversation_id, "role": "user", "at": AT}
    assert update["$set"] == {"a": 1, "updated_at": AT, "last_save": last_save}
    assert (update["$inc"], update["$currentDate"]) == ({"revision": 1}, {"save_mark": True})


@pytest.mark.parametrize(
    ("update", "safe"),
    [
        ({"$set": {"a": 1}, "$unset": {"b": ""}}, True),
        ({"$addToSet": {"a": 1}, "$max": {"b": 1}}, True),
        ({"$set": {"a": 1}, "$inc": {"b": 1}}, False),
        ({"$push": {"a": 1}}, False),
        ({}, True),
    ],
)
def test_update__of_the_application_may_be_repeated(update: dict[str, Any], safe: bool) -> None:
    assert updates.may_repeat(update) is safe


def test_position__is_moved_on_and_never_back() -> None:
    moved = updates.move_next_position(4, AT)
    assert moved == {"$max": {"next_position": 5, "updated_at": AT}}
