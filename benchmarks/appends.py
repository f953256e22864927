"""What an append costs: beside the same ``update_one`` by hand, and in messages of all lengths.

By hand: each round fills new messages, one for each way, in turns and with one client, up to the
last chunk before a page is moved. These are plain appends at all lengths that the embedded array
ever has. The next append of the library moves the page; the figures "with the move" have it in,
spread over the appends of a page. By hand nothing is ever moved. Nobody listens to these commands.

By length: three messages are appended to in turns, one chunk at a time. A round is two pages of
appends to each, so that it has two moves of chunks to a page in it. For comparison, and without a
target, the driver pushes into an array that nobody takes pages out of.
"""

from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any, TypeAlias

from bson import ObjectId

from benchmarks.figures import Figure
from benchmarks.meters import TIMES, TRAFFIC, Cost, Meter, Traffic, compare_costs
from benchmarks.raw import RawMessage, check_equal, open_raw_client
from benchmarks.settings import Setting
from converse_mongo import Conversation, Converse, Message
from converse_mongo.domain.validation import PAGE_CHUNKS
from converse_mongo.driver.clients import Client
from converse_mongo.driver.collections import Collection

__all__ = ["run"]

Append: TypeAlias = Callable[[str], Awaitable[Any]]

TEXT = " token."

TURNS = 15
APPENDS_PER_TURN = 17
PLAIN_APPENDS = TURNS * APPENDS_PER_TURN  # with one more there are PAGE_CHUNKS
PAGES_PER_ROUND = 2
LIBRARY = "append_chunk"
BY_HAND = "by hand"
LEAST = "by hand, no more than the order"
WAYS = LIBRARY, BY_HAND, LEAST
WITH_MOVE = " with the move of a page"
BY_HAND_TARGETS = {"client time": 1.15, "time": 1.05}

LENGTHS = 100, 10_000, 100_000
ARRAY_LENGTHS = 100, 10_000
PUSHES = 16
APPENDS_PER_STEP = 32
APPENDS_PER_ROUND = 2 * PAGE_CHUNKS
LENGTH_TARGET = 1.2


async def run(setting: Setting) -> list[Figure]:
    """Measures it."""
    return [*await _beside_by_hand(setting), *await _by_length(setting)]


def _turned(ways: tuple[str, ...], number: int) -> tuple[str, ...]:
    """The ways in an order in which nobody always comes behind the same one."""
    shift = number % len(ways)
    return ways[shift:] + ways[:shift]


# By hand


async def _beside_by_hand(setting: Setting) -> list[Figure]:
    assert PLAIN_APPENDS == PAGE_CHUNKS - 1  # noqa: S101 - else a page moves too early, or not
    rounds = []
    async with setting.database() as database, open_raw_client(setting.server) as client:
        meter = Meter(setting.server, Traffic())
        setting.note("warming up")
        await _fill_pages(client, database, meter, 0)
        for number in range(setting.rounds):
            setting.note(f"by hand, round {number + 1} of {setting.rounds}")
            rounds.append(await _fill_pages(client, database, meter, number))
    plain = PAGES_PER_ROUND * PLAIN_APPENDS
    counts = dict.fromkeys(WAYS, plain) | {way + WITH_MOVE: plain + PAGES_PER_ROUND for way in WAYS}
    return [
        *compare_costs(rounds, counts, of=LIBRARY, against=BY_HAND, targets=BY_HAND_TARGETS),
        *compare_costs(rounds, counts, of=LIBRARY, against=LEAST),
        *compare_costs(rounds, counts, of=LIBRARY + WITH_MOVE, against=BY_HAND + WITH_MOVE),
    ]


async def _fill_pages(client: Client, database: str, meter: Meter, number: int) -> dict[str, Cost]:
    """What the ways take for the plain appends of a round, and with those that fill the pages."""
    costs = {way: Cost() for way in WAYS}
    last = {way: Cost() for way in WAYS}
    async with Converse(client, database=database, sweep_interval=None) as converse:
        conversation = await converse.start_conversation()
        for page in range(PAGES_PER_ROUND):
            messages = {way: await conversation.start_streaming_assistant() for way in WAYS}
            appends = _appends(client[database].messages, messages)
            for turn in range(TURNS):
                for way in _turned(WAYS, number + page + turn):
                    with meter.measure(costs[way]):
                        for _ in range(APPENDS_PER_TURN):
                            await appends[way](TEXT)
            for way in _turned(WAYS, number + page):
                with meter.measure(last[way]):
                    await appends[way](TEXT)
            for way, message in messages.items():
                await check_equal(message, way, TEXT * PAGE_CHUNKS, PAGE_CHUNKS)
    for way in WAYS:
        last[way] += costs[way]
    return costs | {way + WITH_MOVE: last[way] for way in WAYS}


def _appends(collection: Collection, messages: Mapping[str, Message]) -> Mapping[str, Append]:
    return {
        LIBRARY: messages[LIBRARY].append_chunk,
        BY_HAND: RawMessage(collection, messages[BY_HAND]).append,
        LEAST: RawMessage(collection, messages[LEAST]).append_plainly,
    }


# By length


async def _by_length(setting: Setting) -> list[Figure]:
    traffic = Traffic()
    rounds = []
    async with (
        setting.database() as database,
        open_raw_client(setting.server, traffic) as client,
        Converse(client, database=database) as converse,
    ):
        conversation = await converse.start_conversation()
        grown: dict[str, Message] = {}
        for length in LENGTHS[1:]:
            setting.note(f"a message of {length:,} chunks")
            grown[_at(length)] = await _message(conversation, _in_step(length))
        meter = Meter(setting.server, traffic)
        for number in range(setting.rounds):
            setting.note(f"by length, round {number + 1} of {setting.rounds}")
            # A short message would not be one any more after a few rounds; the others stay long.
            short = {_at(LENGTHS[0]): await _message(conversation, LENGTHS[0])}
            costs = await _append_in_turns(meter, short | grown, number)
            for length in ARRAY_LENGTHS:
                costs[_in_array(length)] = Cost()
                await _push(client[database].arrays, length, meter, costs[_in_array(length)])
            rounds.append(costs)
    quantities = TRAFFIC | TIMES
    counts = dict.fromkeys(map(_at, LENGTHS), APPENDS_PER_ROUND)
    counts |= dict.fromkeys(map(_in_array, ARRAY_LENGTHS), PUSHES)
    found = []
    for length in LENGTHS[1:]:
        found += compare_costs(
            rounds,
            counts,
            of=_at(length),
            against=_at(LENGTHS[0]),
            quantities=quantities,
            targets=dict.fromkeys(quantities, LENGTH_TARGET),
        )
    short_array, long_array = map(_in_array, ARRAY_LENGTHS)
    return [*found, *compare_costs(rounds, counts, of=long_array, against=short_array)]


def _at(length: int) -> str:
    return f"append_chunk at chunk {length:,}"


def _in_array(length: int) -> str:
    return f"a push by hand, {length:,} in the array"


def _in_step(length: int) -> int:
    """The length from ``length`` on at which as much of a page is full as in the short message.

    What the turn of one costs is then what that of another costs at the same time.
    """
    return length + (LENGTHS[0] - length) % PAGE_CHUNKS


async def _message(conversation: Conversation, length: int) -> Message:
    message = await conversation.start_streaming_assistant()
    rest = length % PAGE_CHUNKS
    await message.append_chunks([TEXT] * (length - rest))
    for _ in range(rest):  # each has an append id, as what is embedded later has
        await message.append_chunk(TEXT)
    return message


async def _append_in_turns(
    meter: Meter, messages: Mapping[str, Message], number: int
) -> dict[str, Cost]:
    costs = {way: Cost() for way in messages}
    for turn in range(APPENDS_PER_ROUND // APPENDS_PER_STEP):
        for way in _turned(tuple(messages), number + turn):
            with meter.measure(costs[way]):
                for _ in range(APPENDS_PER_STEP):
                    await messages[way].append_chunk(TEXT)
    return costs


async def _push(collection: Collection, length: int, meter: Meter, cost: Cost) -> None:
    """Pushes into an array of ``length`` chunks."""
    stored = {"_id": ObjectId(), "chunks": [_chunk(sequence) for sequence in range(length)]}
    await collection.insert_one(stored)
    with meter.measure(cost):
        for sequence in range(length, length + PUSHES):
            await collection.update_one(
                {"_id": stored["_id"]}, {"$push": {"chunks": {"$each": [_chunk(sequence)]}}}
            )
    await collection.delete_one({"_id": stored["_id"]})


def _chunk(sequence: int) -> dict[str, Any]:
    return {
        "sequence": sequence,
        "content": TEXT,
        "created_at": datetime.now(UTC),
        "append_id": ObjectId(),
    }
