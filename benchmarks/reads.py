"""What it costs to load a finished message of 2,000 chunks, and to list 1,000 messages.

All messages are as they are stored after they streamed: the long one has its chunks in pages, and a
listing leaves the chunks in the database. Against each way of the library, in turns and by the same
client: the driver's reads of the same fields with the same filters, in as few commands as can be,
with dates that know their zone, as the library's do. What comes of them are dictionaries; the
library makes documents. Outside of the measured time all that was read is compared.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from benchmarks.figures import BenchmarkError, Figure
from benchmarks.meters import Cost, Meter, Traffic, compare_costs
from benchmarks.raw import open_raw_client
from benchmarks.settings import Setting
from converse_mongo import Conversation, Converse, Message
from converse_mongo.driver.clients import Client, Database

__all__ = ["run"]

Read: TypeAlias = Callable[[], Awaitable[list[str]]]
"""Reads something, and returns the texts in it."""

CHUNKS = 2_000
MESSAGES = 1_000
CHUNKS_OF_LISTED = 20
LOADS = 10
LISTS = 2
TARGET = 1.5
LIBRARY, DRIVER = "library", "driver"


@dataclass(slots=True)
class Pair:
    """Something that is read in two ways.

    Attributes:
        name: What it is.
        library: How the library reads it.
        raw: How the driver does.
        texts: What both have to bring.
        times: How often in a round.
        costs: Of the rounds, by way.
    """

    name: str
    library: Read
    raw: Read
    texts: list[str]
    times: int
    costs: dict[str, list[Cost]] = field(default_factory=lambda: {LIBRARY: [], DRIVER: []})


async def run(setting: Setting) -> list[Figure]:
    """Measures it."""
    async with (
        setting.database() as name,
        open_raw_client(setting.server) as client,
        Converse(client, database=name) as converse,
    ):
        pairs = await _prepare(setting, converse, _aware(client, name))
        meter = Meter(setting.server, Traffic())
        for number in range(setting.rounds):
            setting.note(f"round {number + 1} of {setting.rounds}")
            for pair in pairs:
                await _measure(meter, pair, number)
    return figures(pairs)


def _aware(client: Client, name: str) -> Database:
    options = client.codec_options.with_options(tz_aware=True)
    return client.get_database(name, codec_options=options)


async def _prepare(setting: Setting, converse: Converse, database: Database) -> list[Pair]:
    setting.note(f"a message of {CHUNKS:,} chunks")
    texts = [f" token {number}" for number in range(CHUNKS)]
    long = await _streamed(await converse.start_conversation(), texts)
    setting.note(f"{MESSAGES:,} messages")
    conversation = await converse.start_conversation()
    listed = [[f" {number}"] * CHUNKS_OF_LISTED for number in range(MESSAGES)]
    for some in listed:
        await _streamed(conversation, some)
    reads = Reads(converse, database, long, conversation)
    loaded, contents = ["".join(texts), str(CHUNKS)], ["".join(some) for some in listed]
    return [
        Pair(f"loading {CHUNKS:,} chunks", reads.load, reads.raw_load, loaded, LOADS),
        Pair("the same, and using each", reads.chunks, reads.raw_chunks, texts, LOADS),
        Pair("iter_chunks", reads.iterated, reads.raw_chunks, texts, LOADS),
        Pair(f"listing {MESSAGES:,} messages", reads.listed, reads.raw_listed, contents, LISTS),
    ]


async def _streamed(conversation: Conversation, texts: list[str]) -> Message:
    message = await conversation.start_streaming_assistant()
    await message.append_chunks(texts)
    return await message.complete_streaming()


class Reads:
    """The ways to read the long message, and to list the others.

    Args:
        converse: Where both are.
        database: The same for the driver.
        long: The message.
        conversation: The conversation of the others.
    """

    def __init__(
        self, converse: Converse, database: Database, long: Message, conversation: Conversation
    ) -> None:
        self._converse = converse
        self._database = database
        self._long = long
        self._conversation = conversation

    async def load(self) -> list[str]:
        """Loads the message with its chunks, and takes its text."""
        message = await self._converse.get_message(self._long.id)
        return [message.content, str(len(message.chunks))]

    async def raw_load(self) -> list[str]:
        """Reads its document and its pages."""
        stored, chunks = await self._raw_chunks()
        return [stored["content"], str(len(chunks))]

    async def chunks(self) -> list[str]:
        """Loads the message, and takes each of its chunks."""
        message = await self._converse.get_message(self._long.id)
        return [chunk.content for chunk in message.chunks]

    async def raw_chunks(self) -> list[str]:
        """Reads its document and its pages, and takes each chunk."""
        return [chunk["content"] for chunk in (await self._raw_chunks())[1]]

    async def iterated(self) -> list[str]:
        """Takes each chunk as it is read, a page at a time."""
        return [chunk.content async for chunk in self._long.iter_chunks()]

    async def _raw_chunks(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        stored = await self._database.messages.find_one({"_id": self._long.id})
        pages = self._database.message_chunk_pages.find(
            {
                "conversation_id": stored["conversation_id"],
                "message_id": stored["_id"],
                "log_id": stored["log_id"],
                "first_sequence": {"$lt": stored["page_start"]},
            },
            {"chunks": 1},
        ).sort([("first_sequence", 1)])
        chunks = [chunk for page in await pages.to_list(None) for chunk in page["chunks"]]
        return stored, chunks + stored["chunks"]

    async def listed(self) -> list[str]:
        """Lists the messages, and takes their texts."""
        return [message.content for message in await self._conversation.messages()]

    async def raw_listed(self) -> list[str]:
        """Finds them, without their chunks."""
        found = self._database.messages.find(
            {"conversation_id": self._conversation.id, "position": {"$gte": 0}},
            {"chunks": 0, "chunk_lengths": 0},
        ).sort([("position", 1)])
        return [stored["content"] for stored in await found.to_list(None)]


async def _measure(meter: Meter, pair: Pair, number: int) -> None:
    """Reads in both ways in turns, and looks whether both bring what was written."""
    ways = {LIBRARY: pair.library, DRIVER: pair.raw}
    costs = {way: Cost() for way in ways}
    for turn in range(pair.times):
        for way in (LIBRARY, DRIVER) if (number + turn) % 2 else (DRIVER, LIBRARY):
            with meter.measure(costs[way]):
                texts = await ways[way]()
            if texts != pair.texts:
                raise BenchmarkError(f"{pair.name}, {way}: what was read is not what was written.")
    for way, cost in costs.items():
        pair.costs[way].append(cost)


def figures(pairs: Sequence[Pair]) -> list[Figure]:
    """The figures of each pair, the library against the driver."""
    found = []
    for pair in pairs:
        names = {way: f"{pair.name}, {way}" for way in pair.costs}
        costs = [pair.costs[way] for way in names]
        rounds = [dict(zip(names.values(), each, strict=True)) for each in zip(*costs, strict=True)]
        found += compare_costs(
            rounds,
            dict.fromkeys(names.values(), pair.times),
            of=names[LIBRARY],
            against=names[DRIVER],
            targets={"client time": TARGET},
        )
    return found
