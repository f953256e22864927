"""What a viewer reads from the server that has all but ten of 50,000 chunks and comes back.

It comes to a process that knows nothing of the message, such as another one than before, and asks
for what is behind the sequence that it has (``after=``). The ten are embedded in the message, or
the first of them have been moved to a page; the message streams, or has ended. From the beginning
of the watch until the viewer has them, all replies are counted, those of the change stream too. Of
chunks it is to read what is missing, and beside it no more than there are in one page of the same
message. What else is in the replies, such as the state of the message, is in the other figures: it
is the same however long the message is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import bson
from pymongo import MongoClient, monitoring
from pymongo.database import Database

from benchmarks.figures import BenchmarkError, Figure, single
from benchmarks.settings import Setting
from converse_mongo import ChunkReceived, Conversation, Converse, Message
from converse_mongo.domain.validation import PAGE_CHUNKS

__all__ = ["run"]

CHUNKS = 50_000
MISSING = 10
EMBEDDED = {"embedded": 80, "across a page": 4}
"""How many chunks the message embeds; the others are in pages."""


@dataclass(frozen=True, slots=True)
class Resumption:
    """What one viewer read.

    Attributes:
        what: Which one.
        missing: Bytes of the missing chunks, as they are stored.
        page: Bytes of the chunks in a page of the message.
        replies: What was answered, in order.
    """

    what: str
    missing: int
    page: int
    replies: Sequence["Reply"]


@dataclass(frozen=True, slots=True)
class Reply:
    """What the server answered.

    Attributes:
        asked: The command, and the collection.
        size: Its bytes.
        chunks: Those of the chunks in it.
    """

    asked: str
    size: int
    chunks: int


class Replies(monitoring.CommandListener):
    """Keeps what a client asked for, and how many bytes it got."""

    def __init__(self) -> None:
        self.found: list[Reply] = []
        self._asked: dict[int, str] = {}

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        """Keeps what is asked for."""
        collection = event.command.get("collection", event.command.get(event.command_name))
        self._asked[event.request_id] = f"{event.command_name} {collection}"

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        """Keeps the size of the reply."""
        self._take(event.request_id, event.reply)

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        """Keeps the size of the reply."""
        self._take(event.request_id, event.failure)

    def _take(self, request_id: int, reply: Mapping[str, Any]) -> None:
        chunks = [
            chunk
            for stored in reply.get("cursor", {}).get("firstBatch", ())
            for chunk in stored.get("chunks", ())
        ]
        size = len(bson.encode(reply))
        self.found.append(Reply(self._asked.pop(request_id), size, _size(chunks)))


async def run(setting: Setting) -> list[Figure]:
    """Measures it once: the bytes are the same each time."""
    found = []
    async with (
        setting.database() as database,
        Converse(setting.server.uri, database=database) as converse,
    ):
        conversation = await converse.start_conversation()
        for where, embedded in EMBEDDED.items():
            setting.note(f"a message of {CHUNKS:,} chunks, {embedded} of them embedded")
            message = await _write(conversation, embedded)
            found.append(await _resume(setting, database, message, f"{where}, streaming"))
            await message.complete_streaming()
            found.append(await _resume(setting, database, message, f"{where}, ended"))
    return [figure for resumption in found for figure in figures(resumption)]


async def _write(conversation: Conversation, embedded: int) -> Message:
    message = await conversation.start_streaming_assistant()
    texts = [_text(sequence) for sequence in range(CHUNKS)]
    # A page takes what is embedded by then: the first takes more, so that the last ends in time.
    first = (CHUNKS - embedded) % PAGE_CHUNKS
    for some in (texts[:first], texts[first : CHUNKS - embedded], texts[CHUNKS - embedded :]):
        await message.append_chunks(some)
    await message.refresh()
    if message.next_sequence - message.page_start != embedded:
        raise BenchmarkError(f"The message embeds chunks from {message.page_start} on.")
    return message


def _text(sequence: int) -> str:
    return f" token {sequence}"


async def _resume(setting: Setting, database: str, message: Message, what: str) -> Resumption:
    replies = Replies()
    async with Converse(
        setting.server.uri,
        database=database,
        create_indexes=False,
        client_options={"event_listeners": [replies]},
    ) as converse:
        replies.found.clear()
        chunks = []
        async with converse.watch_message(message.id, after=CHUNKS - MISSING - 1) as events:
            async for event in events:
                if isinstance(event, ChunkReceived):
                    chunks.append(event.chunk)
                if len(chunks) == MISSING:
                    break
        received = list(replies.found)
    if [(chunk.sequence, chunk.content) for chunk in chunks] != [
        (sequence, _text(sequence)) for sequence in range(CHUNKS - MISSING, CHUNKS)
    ]:
        raise BenchmarkError(f"{what}: what came is not what was missing.")
    with MongoClient[dict[str, Any]](setting.server.uri) as client:
        missing, page = _sizes(client[database], message)
    return Resumption(what, missing, page, received)


def _sizes(database: Database[dict[str, Any]], message: Message) -> tuple[int, int]:
    """The bytes of the missing chunks, and of the last page, as they are stored."""
    stored = database.messages.find_one({"_id": message.id}, {"chunks": 1}) or {}
    page = database.message_chunk_pages.find_one(
        {"message_id": message.id}, sort=[("first_sequence", -1)]
    )
    if page is None:
        raise BenchmarkError("The message has no page.")
    return _size((page["chunks"] + stored["chunks"])[-MISSING:]), _size(page["chunks"])


def _size(chunks: Sequence[Mapping[str, Any]]) -> int:
    return sum(len(bson.encode(chunk)) for chunk in chunks)


def figures(found: Resumption) -> list[Figure]:
    """The figures of one viewer; that with the target is in pages."""
    beside = (sum(reply.chunks for reply in found.replies) - found.missing) / found.page
    received = sum(reply.size for reply in found.replies)
    result = [
        single(f"{found.what}: chunks beside the missing ones", "pages", beside, target=1.0),
        single(f"{found.what}: missing chunks", "bytes", found.missing),
        single(f"{found.what}: all replies", "bytes", received),
    ]
    for asked in dict.fromkeys(reply.asked for reply in found.replies):
        sizes = [reply.size for reply in found.replies if reply.asked == asked]
        result.append(single(f"{found.what}: {len(sizes)} {asked}", "bytes", sum(sizes)))
    return result
