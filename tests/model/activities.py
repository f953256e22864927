"""What processes do: each is a call of the library, and what the contract says of its outcome."""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

from bson import ObjectId
from pymongo.errors import DuplicateKeyError

from converse_mongo.domain.chunks import StoredChunk
from converse_mongo.domain.errors import (
    MessageNotFoundError,
    StoreUnavailableError,
    StreamStoppedError,
    WatchError,
)
from converse_mongo.domain.headers import message_key
from converse_mongo.domain.leases import Lease
from converse_mongo.domain.part_log import PartLog
from converse_mongo.domain.part_pieces import AnyPiece
from converse_mongo.domain.types import MessageRole, MessageStatus
from converse_mongo.store.appends import WriterClaim
from converse_mongo.store.ends import Known
from converse_mongo.store.reads import Reader
from converse_mongo.store.saves import Changes
from converse_mongo.store.updates import End
from tests.model.contract import CONVERSATION_ID, MESSAGE, MESSAGE_ID, broken
from tests.model.server import CLOCK, Operation
from tests.model.simulation import Process, Simulation
from tests.model.speech import Part, Utterance, has_parts, is_text, text, utter

__all__ = [
    "acquire",
    "append",
    "append_again",
    "compact",
    "delete",
    "end",
    "follow",
    "load",
    "release",
    "renew",
    "save",
    "start",
    "stop",
    "sweep",
    "take_over",
    "write",
]

IDS = (MESSAGE_ID, CONVERSATION_ID)
CHUNKS_PER_READ = 2
NOBODY = Lease(epoch=-1)
"""The lease of a writer that came too late."""


def append(simulation: Simulation, process: Process, endings: Sequence[str]) -> Operation:
    """Appends a chunk for each of ``endings`` by hand."""
    return _append_by_hand(simulation, process, _contents(simulation, endings), None)


def append_again(simulation: Simulation, process: Process) -> Operation:
    """Tries an append again of which it is not known whether it was stored."""
    unknown = simulation.contract.unknown.pop(0)
    return _append_by_hand(
        simulation, process, unknown.contents, unknown.append_id, unknown.log_id, unknown.pieces
    )


def _contents(simulation: Simulation, endings: Sequence[str]) -> tuple[str, ...]:
    name = simulation.next_label()
    return tuple(f"{name}.{index}{ending};" for index, ending in enumerate(endings))


def _append_by_hand(
    simulation: Simulation,
    process: Process,
    contents: tuple[str, ...],
    append_id: ObjectId | None,
    log_id: ObjectId | None = None,
    pieces: Sequence[AnyPiece] = (),
) -> Operation:
    log_id = log_id or process.log_id
    queue, key = process.store.queue((MESSAGE_ID, log_id)), message_key(*IDS, log_id)
    pieces = pieces or _said(simulation, contents, process.parts).pieces

    async def work(operation: Operation) -> Any:
        chunks = await process.store.appends.append(
            *(queue, key, pieces, append_id), has_parts=has_parts(pieces)
        )
        process.take(log_id, chunks)
        return chunks

    return simulation.begin(
        *(process, "append", work, simulation.contract.appended),
        log_id=log_id,
        contents=contents,
        pieces=pieces,
        append_id=append_id,
    )


def _said(simulation: Simulation, contents: Sequence[str], known: Sequence[Part]) -> Utterance:
    if not simulation.parts:
        return text(contents)
    utterance = utter(contents, known)
    simulation.contract.meant |= utterance.meant
    return utterance


def write(simulation: Simulation, process: Process, endings: Sequence[str]) -> Operation:
    """Appends a chunk for each of ``endings`` as the writer of this process does."""
    contents, lease = _contents(simulation, endings), _lease_of(simulation, process)
    queue, key = process.queue, process.key
    begun = [part for part in process.begun if part.ref.number is not None]
    utterance = _said(simulation, contents, [*process.parts, *begun])
    process.begun += utterance.begun
    pieces = utterance.pieces

    async def try_once(operation: Operation, *, again: bool) -> Any:
        claim = WriterClaim(lease, operation.unless_stopped, lambda: None)
        return await process.store.appends.append(
            *(queue, key, pieces, operation.append_id, claim),
            again=again,
            has_parts=has_parts(pieces),
        )

    async def work(operation: Operation) -> Any:
        again = False
        while True:
            try:
                chunks = await try_once(operation, again=again)
            except asyncio.CancelledError:
                if not operation.interrupted:
                    raise
                operation.interrupted, again = False, True
            except StreamStoppedError as error:
                simulation.contract.refused_justly(operation, error)
                process.stopped = True
                operation.unless_stopped = False
            else:
                process.take(key["log_id"], chunks)
                return chunks

    return simulation.begin(
        *(process, "append", work, simulation.contract.appended),
        log_id=key["log_id"],
        epoch=lease.epoch,
        unless_stopped=not process.stopped,
        contents=contents,
        pieces=pieces,
        append_id=ObjectId(),
    )


def _lease_of(simulation: Simulation, process: Process) -> Lease:
    """The lease of the writer of this process, which becomes one if it is none."""
    if process.lease is None:
        simulation.finish(acquire(simulation, process))
    if process.lease is None:
        simulation.finish(take_over(simulation, process))
    return process.lease or NOBODY


def acquire(simulation: Simulation, process: Process) -> Operation:
    """Makes this process the first writer."""
    return _claim(simulation, process, "acquire")


def take_over(simulation: Simulation, process: Process) -> Operation:
    """Makes this process the next writer."""
    return _claim(simulation, process, "take_over")


def _claim(simulation: Simulation, process: Process, kind: str) -> Operation:
    key = process.key

    async def work(operation: Operation) -> Any:
        state = await getattr(process.store.leases, kind)(key)
        if process.key == key:
            process.lease, process.stopped = state.lease, state.stop_requested
            process.begun = []
        return state

    return simulation.begin(process, kind, work, simulation.contract.leased, log_id=key["log_id"])


def renew(simulation: Simulation, process: Process) -> Operation:
    """Sends a heartbeat."""
    lease = _lease_of(simulation, process)
    key = process.key

    async def work(operation: Operation) -> Any:
        state = await process.store.leases.renew(key, lease)
        if state is not None and process.lease == lease and state.lease.is_held_by(lease):
            process.stopped = process.stopped or state.stop_requested
        return state

    return simulation.begin(
        *(process, "renew", work, simulation.contract.succeeded),
        log_id=key["log_id"],
        epoch=lease.epoch,
    )


def release(simulation: Simulation, process: Process) -> Operation:
    """Lets go of the message."""
    lease = _lease_of(simulation, process)
    key = process.key

    async def work(operation: Operation) -> None:
        await process.store.leases.release(key, lease)

    return simulation.begin(
        *(process, "release", work, simulation.contract.succeeded),
        log_id=key["log_id"],
        epoch=lease.epoch,
    )


def end(
    simulation: Simulation, process: Process, status: MessageStatus, *, by_writer: bool
) -> Operation:
    """Ends the message, as the writer of this process or by hand."""
    lease = process.lease if by_writer else None
    queue, key, copy = process.queue, process.key, process.copy
    error = "it broke" if status is MessageStatus.FAILED else None

    async def work(operation: Operation) -> Any:
        end_id = ObjectId()
        while True:
            try:
                return await process.store.ends.end(
                    queue,
                    key,
                    End(status, {"by": operation.label}, error),
                    retention=simulation.retention,
                    known=_known(copy),
                    lease=lease,
                    end_id=end_id,
                )
            except asyncio.CancelledError:
                if not operation.interrupted:
                    raise
                operation.interrupted = False

    epoch = None if lease is None else lease.epoch
    return simulation.begin(
        *(process, "end", work, simulation.contract.ended),
        log_id=key["log_id"],
        epoch=epoch,
    )


def _known(copy: Sequence[StoredChunk]) -> Known | None:
    if not copy:
        return None
    log = None if all(map(is_text, copy)) else PartLog.of(copy)
    return Known(len(copy), "".join([chunk["content"] for chunk in copy]), log)


def sweep(simulation: Simulation, process: Process) -> Operation:
    """Looks for messages whose writer died."""

    async def work(operation: Operation) -> Any:
        return await process.store.recovery.recover_stale()

    return simulation.begin(process, "sweep", work, simulation.contract.swept)


def stop(simulation: Simulation, process: Process) -> Operation:
    """Asks for a stop."""
    key = process.key

    async def work(operation: Operation) -> Any:
        return await process.store.leases.request_stop(key, operation.label)

    return simulation.begin(
        process, "stop", work, simulation.contract.stopped, log_id=key["log_id"]
    )


def save(simulation: Simulation, process: Process) -> Operation:
    """Saves a field of the copy that this process has."""
    key = process.key

    async def work(operation: Operation) -> Any:
        changes = Changes(assign={"title": operation.label})
        return await process.store.saves.save_message(
            key, changes, CLOCK.now, role=MessageRole.ASSISTANT
        )

    return simulation.begin(
        process, "save", work, simulation.contract.succeeded, log_id=key["log_id"]
    )


def delete(simulation: Simulation, process: Process) -> Operation:
    """Deletes the message that this process was given, and its pages, as ``Message`` does."""
    key = process.key

    async def work(operation: Operation) -> None:
        store = process.store
        deleted = await store.call(store.messages.delete_one, key, what="delete the message")
        await store.paging.delete(key)
        if not deleted.deleted_count:
            raise MessageNotFoundError(MESSAGE_ID)

    def judge(operation: Operation, outcome: Any) -> None:
        if not isinstance(outcome, MessageNotFoundError):  # it may be by an earlier try
            simulation.contract.succeeded(operation, outcome)

    return simulation.begin(process, "delete", work, judge, log_id=key["log_id"])


def start(simulation: Simulation, process: Process) -> Operation:
    """Starts the generation anew, if nobody else has."""

    async def insert() -> None:
        with contextlib.suppress(DuplicateKeyError):
            await process.store.messages.insert_one(simulation.new_message())

    async def work(operation: Operation) -> None:
        await process.store.call(insert, what="start the generation anew")

    return simulation.begin(process, "start", work, simulation.contract.succeeded)


def compact(simulation: Simulation, process: Process) -> Operation:
    """Merges away the chunks of a message that ended long ago."""

    async def work(operation: Operation) -> Any:
        return await process.store.recovery.compact_due()

    return simulation.begin(process, "compact", work, simulation.contract.succeeded)


def load(simulation: Simulation, process: Process) -> Operation:
    """Reads the whole message; who appends here goes on from what it says."""
    reader, was_gone = process.reader, simulation.contract.safe.log_id is None
    epoch = None if process.lease is None else process.lease.epoch

    async def work(operation: Operation) -> Any:
        async def read() -> Any:
            stored = await reader.messages.find_one(MESSAGE)
            if stored is None:
                raise MessageNotFoundError(MESSAGE_ID)
            await reader.add_moved_chunks(stored)
            return stored

        stored = await process.store.call(read, what="load the message")
        if process.log_id != stored["log_id"]:
            process.take_up(stored["log_id"])
        copy = list(stored["chunks"])
        process.queue.learn(
            *[stored[name] for name in ("next_sequence", "page_start", "chunk_bytes")]
        )
        process.copy = copy
        return stored

    def judge(operation: Operation, outcome: Any) -> None:
        deleted = operation.deletions != simulation.contract.deletions
        if isinstance(outcome, MessageNotFoundError) and (deleted or was_gone):
            return
        if isinstance(outcome, Exception):
            simulation.contract.succeeded(operation, outcome)
            return
        if deleted:
            return  # with the pages of what it read first
        sequences = [chunk["sequence"] for chunk in outcome["chunks"]]
        if sequences != list(range(outcome["next_sequence"])):
            broken("A reader gets each chunk once and in order", operation, sequences)
        chunks = outcome["chunks"]
        if process.reads_what_is_safe or not simulation.server.lagging:
            simulation.contract.loaded(operation, outcome["log_id"], chunks, whole=True)

    return simulation.begin(process, "load", work, judge, epoch=epoch)


def follow(simulation: Simulation, process: Process) -> Operation:
    """Reads what is new since the last time, as one who watches does."""

    async def read_on(operation: Operation, reader: Reader) -> None:
        page_start = 0
        while True:
            log_id, seen = process.seen
            found = await process.store.call(
                reader.read,
                *(*IDS, len(seen), CHUNKS_PER_READ, page_start),
                what="follow the message",
            )
            if found is None:
                return
            state, chunks = found
            if state.log_id != log_id:
                process.seen, page_start = (state.log_id, []), 0
                continue
            for chunk in chunks:
                if chunk.sequence != len(seen):
                    broken("A reader gets each chunk once and in order", operation, chunk, seen)
                seen.append(chunk.to_stored())
            if len(seen) >= state.next_sequence:
                return
            if not chunks:
                raise WatchError("A chunk is missing.")
            page_start = state.page_start

    async def work(operation: Operation) -> None:
        await read_on(operation, process.reader)

    def judge(operation: Operation, outcome: Any) -> None:
        simulation.contract.succeeded(operation, outcome)
        log_id, seen = process.seen
        whole = not isinstance(outcome, StoreUnavailableError)
        simulation.contract.loaded(operation, log_id, seen, whole=whole)

    return simulation.begin(process, "follow", work, judge)
