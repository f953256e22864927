"""What answers take in the database: BSON bytes for each byte of their text.

Answers of three lengths, in tokens as models give them, through a writer at its defaults: when the
last token is stored, after the end, and after their chunks were merged. The sizes are those of the
documents of the message and of its pages, before the compression of MongoDB's storage engine, and
without indexes. They do not depend on the server.
"""

import random
from collections.abc import AsyncIterator

import bson

from benchmarks.figures import BenchmarkError, Figure, single
from benchmarks.settings import Setting
from converse_mongo import Converse, Message
from converse_mongo.store import Store

__all__ = ["run"]

LENGTHS = {"short": 40, "typical": 400, "long": 2_000}
"""Tokens of an answer, by name."""
TOKEN_LENGTHS = (1, 2, 3, 3, 4, 4, 5, 5, 6, 8)
"""Characters of a token: four or so, as in English text."""
MERGED_TARGET = 1.5
"""With the fields of the message, a long answer takes little more than its text."""


async def run(setting: Setting) -> list[Figure]:
    """Measures it once: the sizes are the same each time."""
    figures: list[Figure] = []
    async with (
        setting.database() as database,
        Converse(setting.server.uri, database=database) as converse,
    ):
        conversation = await converse.start_conversation()
        for granularity in ("token", "flush"):
            for name, count in LENGTHS.items():
                what = f"{name} answer, {count:,} tokens, a chunk for each {granularity}"
                setting.note(what)
                message = await conversation.start_streaming_assistant({"model": "example"})
                sizes = await _sizes(message, count, granularity)
                target = MERGED_TARGET if name == "long" else None
                figures += [
                    single(f"{what}: text", "bytes", sizes["text"]),
                    *(
                        single(
                            f"{what}: {moment}",
                            "bytes per byte of text",
                            round(sizes[moment] / sizes["text"], 2),
                            target=target if moment == "merged" else None,
                        )
                        for moment in ("streaming", "kept", "merged")
                    ),
                ]
    return figures


async def _sizes(message: Message, count: int, granularity: str) -> dict[str, int]:
    """Streams an answer, and returns the size of its text, and of what is stored at each moment."""
    store, sizes = message.store(), {}
    async with message.writer(granularity="token" if granularity == "token" else "flush") as writer:
        async for token in _tokens(count):
            await writer.write(token)
            if granularity == "flush":
                await writer.flush()  # a model that is slower than the flush interval
        await writer.flush()
        sizes["streaming"] = await _stored(store, message)
    text = message.content
    sizes["text"], sizes["kept"] = len(text.encode()), await _stored(store, message)
    state = await store.reader.state(message.id, message.conversation_id)
    if state is None or not await store.paging.compact(state):
        raise BenchmarkError("the chunks were not merged")
    sizes["merged"] = await _stored(store, message)
    if "".join([chunk.content async for chunk in message.iter_chunks()]) != text:
        raise BenchmarkError("the merged chunks are not the text")
    return sizes


async def _tokens(count: int) -> AsyncIterator[str]:
    chance = random.Random(1)
    for _ in range(count):
        yield " " + "x" * (chance.choice(TOKEN_LENGTHS) - 1)


async def _stored(store: Store, message: Message) -> int:
    """The size of all documents of a message."""
    document = await store.messages.find_one({"_id": message.id})
    size = len(bson.encode(document or {}))
    pages = store.pages.find({"conversation_id": message.conversation_id, "message_id": message.id})
    return size + sum([len(bson.encode(page)) async for page in pages])
