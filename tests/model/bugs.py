"""Planted bugs: each breaks one rule of the protocol, and the model must notice.

A rule that no bug here breaks is one that the model may not check at all.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from types import SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

import pytest
from bson import ObjectId
from pymongo.errors import AutoReconnect

from converse_mongo.domain import part_merging
from converse_mongo.domain.chunks import MessageChunk
from converse_mongo.domain.headers import HEADER, MessageHeader
from converse_mongo.domain.lengths import expand
from converse_mongo.driver import collections
from converse_mongo.store import appends, pages, updates
from converse_mongo.store.appends import Appends
from converse_mongo.store.collections import WriteQueue
from converse_mongo.store.ends import Ends, Known
from converse_mongo.store.leases import Leases
from converse_mongo.store.pages import Pages
from converse_mongo.store.reads import Reader
from converse_mongo.store.saves import Saves
from tests.model.server import PAGES, RemoteCollection

__all__ = ["BUGS", "Bug"]

Plant = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Bug:
    """A bug, and where it is looked for.

    Attributes:
        name: What is wrong.
        plant: Makes it so.
        topics: What happens in the machine that is to find it.
    """

    name: str
    plant: Plant
    topics: tuple[str, ...]


BUGS: list[Bug] = []

LOG_AND_HOLDER = ("log_id", "lease.holder")
"""The conditions that a message was not started anew: to a writer its holder says as much."""
HELD = ("lease.epoch", "lease.holder")
"""The conditions that a writer still holds its lease."""


def bug(topics: str) -> Callable[[Plant], Plant]:
    """Adds a bug that is named as its function is."""

    def add(plant: Plant) -> Plant:
        name = plant.__name__
        BUGS.append(Bug(name, plant, tuple(topics.split())))
        return plant

    return add


def rewrite(patch: pytest.MonkeyPatch, name: str, change: Callable[..., None]) -> None:
    """Has ``change`` spoil what a builder of filters and updates builds."""
    build = getattr(updates, name)

    def spoiled(*arguments: Any, **options: Any) -> Any:
        built = build(*arguments, **options)
        change(*(built if isinstance(built, tuple) else (built,)))
        return built

    patch.setattr(updates, name, spoiled)


def forget(name: str, *conditions: str) -> Plant:
    """A builder that leaves out conditions."""

    def change(match: dict[str, Any], *_update: Any) -> None:
        for condition in conditions:
            match.pop(condition, None)

    return lambda patch: rewrite(patch, name, change)


def named(name: str, topics: str, plant: Plant) -> None:
    BUGS.append(Bug(name, plant, tuple(topics.split())))


# Appends

named("append_anywhere", "append", forget("append", "next_sequence"))
named("append_when_replaced", "write lease", forget("append", *HELD))
named("append_after_the_end", "append end", forget("append", "status"))
named("append_despite_a_stop", "write stop", forget("append", "stop_requested_at"))
named("append_without_a_bound", "append append crash trouble", forget("append", "chunk_bytes"))
named("append_id_not_looked_for", "append trouble", forget("find_append", "chunks"))
named(
    "append_id_not_looked_for_after_a_merge",
    "append end compact trouble",
    forget("find_append", "recent_appends"),
)


@bug("append trouble")
def append_id_not_looked_for_in_pages(patch: pytest.MonkeyPatch) -> None:
    async def appended(*_arguments: Any) -> None:
        return None

    patch.setattr(Reader, "appended", appended)


@bug("append write trouble")
def append_again_without_looking(patch: pytest.MonkeyPatch) -> None:
    append = Appends.append

    async def spoiled(self: Appends, *arguments: Any, **options: Any) -> Any:
        return await append(self, *arguments, **{**options, "again": False})

    patch.setattr(Appends, "append", spoiled)


@bug("append trouble")
def append_unknown_without_its_id(patch: pytest.MonkeyPatch) -> None:
    append = Appends.append

    async def spoiled(self: Appends, *arguments: Any, **options: Any) -> Any:
        try:
            return await append(self, *arguments, **options)
        except Exception as error:
            error.append_id = None  # type: ignore[attr-defined]
            raise

    patch.setattr(Appends, "append", spoiled)


@bug("write sweep time")
def append_gives_no_sign_of_life(patch: pytest.MonkeyPatch) -> None:
    rewrite(patch, "append", lambda match, update: update.pop("$currentDate"))


@bug("append lag")
def append_that_waits_for_room_for_ever(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(appends, "time", SimpleNamespace(monotonic=lambda: 0.0))


@bug("append lag")
def append_that_does_not_wait_for_room(patch: pytest.MonkeyPatch) -> None:
    moments = count(step=1000)
    patch.setattr(appends, "time", SimpleNamespace(monotonic=lambda: next(moments)))


# Pages


@bug("append lag")
def seal_that_holds_the_queue(patch: pytest.MonkeyPatch) -> None:
    seal = Pages.seal_if_possible

    async def spoiled(self: Pages, queue: WriteQueue, key: Any) -> bool:
        async with queue.lock:
            return await seal(self, queue, key)

    patch.setattr(Pages, "seal_if_possible", spoiled)


@bug("append lag")
def seal_that_failed_again_at_once(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(pages, "_FIRST_DELAY_SECONDS", 0)


named("trim_twice", "append crash trouble", forget("trim", "page_start"))


@bug("append crash")
def trim_before_the_page_is_stored(patch: pytest.MonkeyPatch) -> None:
    insert, update = RemoteCollection.insert_one, RemoteCollection.update_one
    held: WeakKeyDictionary[Any, list[Any]] = WeakKeyDictionary()

    async def insert_one(self: RemoteCollection, page: Any) -> None:
        held.setdefault(self.database, []).append((self, page))

    async def update_one(self: RemoteCollection, *arguments: Any) -> Any:
        result = await update(self, *arguments)
        for collection, page in held.pop(self.database, []):
            await insert(collection, page)
        return result

    patch.setattr(RemoteCollection, "insert_one", insert_one)
    patch.setattr(RemoteCollection, "update_one", update_one)


@bug("append")
def trim_all(patch: pytest.MonkeyPatch) -> None:
    def change(match: Any, update: Any) -> None:
        del update["$pull"]
        update["$set"]["chunks"] = []

    rewrite(patch, "trim", change)


@bug("append")
def page_of_each_writer_its_own(patch: pytest.MonkeyPatch) -> None:
    rewrite(patch, "page", lambda page: page.update(_id=str(ObjectId())))


@bug("append crash")
def page_of_another_not_looked_at(patch: pytest.MonkeyPatch) -> None:
    built: dict[int, Any] = {}
    trim = updates.trim

    def spoiled(key: Any, first: int, *_page: int) -> Any:
        return trim(key, first, built[first]["next_sequence"], built[first]["chunk_bytes"])

    rewrite(patch, "page", lambda page: built.update({page["first_sequence"]: page}))
    patch.setattr(updates, "trim", spoiled)


@bug("append trouble failover")
def page_of_what_a_failover_takes_back(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(collections, "majority_of", lambda collection: collection)


# Leases

named("acquire_what_has_a_writer", "lease", forget("acquire_lease", "lease.epoch"))
named("take_over_from_anybody", "lease trouble", forget("take_over", *HELD))
named("renew_when_replaced", "lease time", forget("renew_lease", *HELD))
named("release_when_replaced", "lease", forget("release_lease", *HELD))
named(
    "start_what_has_started", "append sweep sweep time", forget("start_lease", "lease.renewed_at")
)


@bug("lease write")
def take_over_the_same_epoch(patch: pytest.MonkeyPatch) -> None:
    rewrite(patch, "take_over", lambda match, update: update["$set"].pop("lease.epoch"))


@bug("lease sweep time")
def settle_what_lives_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(updates, "unchanged_lease", lambda lease: {})


@bug("lease write sweep time")
def settle_by_guess(patch: pytest.MonkeyPatch) -> None:
    async def guess(self: Leases, lease: Any) -> bool:
        return self._may_have_expired(lease)

    patch.setattr(Leases, "_has_expired", guess)


@bug("lease write sweep time")
def settle_without_telling(patch: pytest.MonkeyPatch) -> None:
    rewrite(patch, "end", lambda match, update: update.pop("$inc", None))


@bug("lease end trouble")
def lease_what_has_ended(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Leases, "_refuse_overtaken", lambda self, state, holder, claimed: None)


@bug("lease sweep time trouble")
def sweep_that_hides_trouble(patch: pytest.MonkeyPatch) -> None:
    states = Reader._states

    async def spoiled(self: Reader, *arguments: Any) -> Any:
        try:
            return await states(self, *arguments)
        except AutoReconnect:
            return []

    patch.setattr(Reader, "_states", spoiled)


# Stops

named("stop_for_the_second_time", "stop lease", forget("request_stop", "stop_requested_at"))


@bug("stop stop lease trouble")
def stop_a_writer_that_just_came(patch: pytest.MonkeyPatch) -> None:
    settle = Ends.settle

    async def spoiled(self: Ends, state: Any, end: Any, condition: Any) -> Any:
        return await settle(self, state, end, {})

    patch.setattr(Ends, "settle", spoiled)


# Ends

named("end_twice", "append end", forget("end", "status"))
named("end_when_replaced", "write lease end", forget("end", *HELD))


@bug("end")
def end_that_is_not_recognised(patch: pytest.MonkeyPatch) -> None:
    rewrite(patch, "end", lambda match, update: update["$set"].update(end_id=ObjectId()))


@bug("append read end")
def end_with_the_text_of_a_copy(patch: pytest.MonkeyPatch) -> None:
    finish = Ends._finish

    async def spoiled(self: Ends, state: MessageHeader, known: Known | None) -> Any:
        return await finish(self, state, known and Known(state.next_sequence, known.text))

    patch.setattr(Ends, "_finish", spoiled)


# Restarts

named("append_to_another_log", "append restart", forget("append", "log_id"))
named("append_to_another_log_of_the_same_epoch", "write restart", forget("append", *LOG_AND_HOLDER))
named("acquire_another_log", "lease restart", forget("acquire_lease", "log_id"))
named("take_over_another_log", "lease restart", forget("take_over", "log_id"))
named("renew_another_log", "write lease restart time", forget("renew_lease", *LOG_AND_HOLDER))
named("release_another_log", "lease restart", forget("release_lease", *LOG_AND_HOLDER))
named("stop_another_log", "stop lease restart", forget("request_stop", "log_id"))
named("end_another_log", "end restart", forget("end", "log_id"))
named("trim_another_log", "append restart trouble", forget("trim", "log_id"))
named(
    "finish_the_merge_of_another_log",
    "end compact restart trouble",
    forget("finish_compaction", "log_id"),
)


@bug("write end restart crash")
def end_another_log_of_the_same_epoch(patch: pytest.MonkeyPatch) -> None:
    def change(match: dict[str, Any], _update: Any) -> None:
        if "lease.epoch" in match:
            del match["log_id"], match["lease.holder"]

    rewrite(patch, "end", change)


@bug("restart")
def save_another_log(patch: pytest.MonkeyPatch) -> None:
    save = Saves.save_message

    async def spoiled(self: Saves, key: Any, *changes: Any, **named: Any) -> Any:
        return await save(self, updates.any_log(key), *changes, **named)

    patch.setattr(Saves, "save_message", spoiled)


@bug("append restart")
def delete_the_pages_of_another_log(patch: pytest.MonkeyPatch) -> None:
    delete = RemoteCollection.delete_many

    async def spoiled(self: RemoteCollection, match: Any) -> Any:
        return await delete(self, match if "_id" in match else updates.any_log(match))

    patch.setattr(RemoteCollection, "delete_many", spoiled)


# Merges


@bug("append end compact")
def merge_that_deletes_first(patch: pytest.MonkeyPatch) -> None:
    update, delete = RemoteCollection.update_one, RemoteCollection.delete_many

    async def spoiled(self: RemoteCollection, match: Any, change: Any) -> Any:
        if change.get("$set", {}).get("compacted"):
            await delete(self.database.get_collection(PAGES), {"message_id": match["_id"]})
        return await update(self, match, change)

    patch.setattr(RemoteCollection, "update_one", spoiled)


@bug("append end compact")
def merge_that_counts_bytes(patch: pytest.MonkeyPatch) -> None:
    def encode_lengths(contents: Any) -> bytes:
        return bytes(len(content.encode()) for content in contents)

    patch.setattr(part_merging, "encode_lengths", encode_lengths)


@bug("append end compact")
def merge_that_leaves_the_pages_due(patch: pytest.MonkeyPatch) -> None:
    rewrite(patch, "compact", lambda match, update: update["$set"].pop("page_start"))


@bug("append end compact trouble")
def merge_that_forgets_appends(patch: pytest.MonkeyPatch) -> None:
    rewrite(patch, "compact", lambda match, update: update["$set"].pop("recent_appends"))


# Readers


@bug("append crash")
def reader_that_keeps_duplicates(patch: pytest.MonkeyPatch) -> None:
    chunks_before = Reader._chunks_before
    patch.setattr(
        Reader, "_chunks_before", lambda self, stored, _: chunks_before(self, stored, 1_000_000)
    )


@bug("append read")
def reader_that_reads_the_state_last(patch: pytest.MonkeyPatch) -> None:
    read = Reader.read

    async def spoiled(self: Reader, message_id: Any, conversation_id: Any, *rest: Any) -> Any:
        found = await read(self, message_id, conversation_id, *rest)
        state = await self.state(message_id, conversation_id)
        return found and (state, found[1])

    patch.setattr(Reader, "read", spoiled)


@bug("append read")
def reader_that_trusts_its_guess(patch: pytest.MonkeyPatch) -> None:
    read = Reader._read

    async def spoiled(
        self: Reader,
        match: Any,
        start: int,
        limit: int,
        page_start: int,
        stop: int | None,
    ) -> Any:
        if start < page_start:
            return await read(self, match, start, limit, page_start, stop)
        part = {"chunks": {"$slice": [start - page_start, limit]}}
        stored = await self.messages.find_one(match, HEADER | part)
        chunks = [MessageChunk.from_stored(chunk) for chunk in stored["chunks"]]
        return MessageHeader.from_stored(stored), chunks

    patch.setattr(Reader, "_read", spoiled)


@bug("append end compact read")
def reader_of_pieces_that_looks_once(patch: pytest.MonkeyPatch) -> None:
    read_moved = Reader._read_moved

    async def spoiled(self: Reader, *arguments: Any) -> Any:
        return await read_moved(self, *arguments) or []

    patch.setattr(Reader, "_read_moved", spoiled)


@bug("append end compact read")
def reader_of_all_that_looks_once(patch: pytest.MonkeyPatch) -> None:
    async def spoiled(self: Reader, stored: dict[str, Any]) -> None:
        if stored.get("compacted"):
            stored["chunks"] = expand(stored)
            return
        moved = await self._chunks_before(stored, stored.get("page_start", 0))
        stored["chunks"] = moved + stored["chunks"]

    patch.setattr(Reader, "add_moved_chunks", spoiled)
