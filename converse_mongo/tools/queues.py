"""Queues from the command line: what waits in them; a message at once, or not at all."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime
from functools import partial

from converse_mongo.converse import Converse
from converse_mongo.domain.headers import MessageHeader
from converse_mongo.domain.types import MessageStatus
from converse_mongo.domain.validation import object_id
from converse_mongo.domain.work import WorkState
from converse_mongo.store import Store
from converse_mongo.store.message_loads import find_header
from converse_mongo.tools.servers import SELECTION_SECONDS
from converse_mongo.tools.terminal import age, one_line

STATES = [*WorkState]


def list_queues(
    uri: str, database: str | None, queues: Sequence[str] | None, *, messages: bool, limit: int
) -> int:
    """Prints queues with the number of their messages by state, or the messages.

    Args:
        uri: The MongoDB server.
        database: The name of the database; by default that of the URI.
        queues: The names of the queues; ``None`` for all that have messages.
        messages: True to print the messages.
        limit: The most messages.

    Raises:
        ConverseError: MongoDB cannot be reached.
    """
    work = partial(_list_messages, limit=limit) if messages else _list_counts
    return asyncio.run(_with(uri, database, lambda converse: work(converse, queues)))


def retry(uri: str, database: str | None, message_id: str) -> int:
    """Ends the delay of a message; returns 1 if it has none.

    Raises:
        ConverseError: There is no such message, or MongoDB cannot be reached.
    """
    return asyncio.run(_with(uri, database, lambda converse: _retry(converse, message_id)))


def cancel(uri: str, database: str | None, message_id: str, reason: str | None) -> int:
    """Stops a message; returns 1 if it has ended otherwise.

    Raises:
        ConverseError: There is no such message, or MongoDB cannot be reached.
    """
    return asyncio.run(_with(uri, database, lambda converse: _cancel(converse, message_id, reason)))


async def _with(uri: str, database: str | None, work: Callable[[Converse], Awaitable[int]]) -> int:
    options = {"serverSelectionTimeoutMS": int(SELECTION_SECONDS * 1000)}
    async with Converse(uri, database, create_indexes=False, client_options=options) as converse:
        return await work(converse)


def _store(converse: Converse) -> Store:
    return converse.message_model.store()


# What there is


async def _list_counts(converse: Converse, queues: Sequence[str] | None) -> int:
    found = await converse.queue_statistics(queues)
    if not found:
        return _say("No message is queued.")
    rows = [["queue", *STATES, "oldest"]]
    for name in sorted(found):
        counts = [str(found[name].counts.get(state, 0)) for state in STATES]
        rows.append([one_line(name), *counts, age(found[name].oldest)])
    _write_table(rows)
    return 0


async def _list_messages(converse: Converse, queues: Sequence[str] | None, limit: int) -> int:
    found = await _store(converse).jobs.waiting(queues, limit + 1)
    if not found:
        return _say("No message is queued.")
    moment = await _store(converse).leases.clock.read()
    rows = [["message", "queue", "state", "attempt", "age"]]
    rows += [_row(state, moment) for state in found[:limit]]
    _write_table(rows)
    if len(found) > limit:
        _say(f"There are more than these {limit}: pass a higher --limit.")
    return 0


def _row(state: MessageHeader, moment: datetime) -> list[str]:
    work = state.work
    assert work is not None  # noqa: S101 - the query is for queued messages
    later = work.state is WorkState.QUEUED and work.due is not None and work.due > moment
    shown = WorkState.DELAYED if later else work.state
    attempt = f"{work.attempt} of {work.max_attempts}"
    seconds = (moment - state.created_at).total_seconds()
    return [str(state.message_id), one_line(work.queue), str(shown), attempt, age(seconds)]


def _write_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        cells[0] = row[0].ljust(widths[0])
        sys.stdout.write("  ".join(cells) + "\n")


# What is done


async def _retry(converse: Converse, message_id: str) -> int:
    store = _store(converse)
    before = await find_header(store, object_id(message_id, "message"))
    work = before.work
    delayed = work is not None and work.due is not None and not await store.jobs.is_due(work)
    if not delayed or work is None or work.state not in (WorkState.QUEUED, WorkState.DELAYED):
        return _complain(f"Message {message_id} cannot be retried: {why_not(before)}")
    after = await store.jobs.hasten(before)
    if after.work is not None and after.work.state is WorkState.BLOCKED:
        return _say(f"Message {message_id} waits for a place of its key.")
    return _say(f"Message {message_id} waits for a worker of the queue {work.queue}.")


def why_not(state: MessageHeader) -> str:
    """Says why a message cannot be taken at once, or why that is not needed."""
    work = state.work
    if state.status.is_final:
        return f"it is {state.status}. Start another answer in its conversation."
    if work is None:
        return "it was started without a queue, and no worker takes it."
    match work.state:
        case WorkState.RUNNING:
            return f"a worker is at it, in attempt {work.attempt}."
        case WorkState.BLOCKED:
            return (
                f"it waits for a place of its key {work.key}, of which {work.limit} may run at a "
                "time."
            )
        case WorkState.WAITING:
            calls = _list(map(str, work.pending))
            return f"it waits for people to answer {calls}: see Converse.answer_tool_calls."
    return f"it is not delayed. If no worker takes it, run one for the queue {work.queue}."


def _list(items: Iterable[str]) -> str:
    return " and ".join(items) or "nothing"


async def _cancel(converse: Converse, message_id: str, reason: str | None) -> int:
    before = await find_header(_store(converse), object_id(message_id, "message"))
    if before.status.is_final:
        return _complain(f"Message {message_id} has ended already: it is {before.status}.")
    status = await converse.request_stop(message_id, reason)
    if status is MessageStatus.CANCELLED:
        return _say(f"Message {message_id} is cancelled.")
    if status.is_final:
        return _complain(f"Message {message_id} has ended already: it is {status}.")
    return _say(f"Message {message_id} is to stop: its writer ends it.")


def _say(line: str) -> int:
    sys.stdout.write(f"{one_line(line)}\n")
    return 0


def _complain(line: str) -> int:
    sys.stderr.write(f"converse-mongo: {one_line(line)}\n")
    return 1
