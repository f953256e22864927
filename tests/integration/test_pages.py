"""Contract 7: length has no price, and no limit. And what becomes of chunks after the end."""

import asyncio
import random
from datetime import timedelta
from typing import Any

import pytest
from pymongo.errors import AutoReconnect

from converse_mongo import (
    MAX_APPEND_CHUNKS,
    ChunkReceived,
    ChunksNotLoadedError,
    Converse,
    InvalidInputError,
    MessageChunkPage,
    MessageCompleted,
    MessageCreated,
    MessageNotStreamingError,
    StoreUnavailableError,
)
from converse_mongo.domain.validation import MAX_CONTENT_BYTES, PAGE_BYTES, PAGE_CHUNKS
from tests.conftest import Commands, Facade
from tests.integration.helpers import fill, gone, pages_of, raw, start, text_of
from tests.streams import (
    SOON,
    assert_conversation_exact,
    assert_exact,
    collect,
    collect_restlessly,
    sequences,
    until,
)


@pytest.fixture
def facade(facade: Facade) -> Facade:
    """Opens facades whose writes a majority has: only such chunks are moved to a page."""

    async def open_one(*names: Any, **options: Any) -> Converse:
        client_options = {"w": "majority", **options.pop("client_options", {})}
        opened: Converse = await facade(*names, client_options=client_options, **options)
        return opened

    return open_one


# Moving


async def test_pages__hold_what_the_message_embeds_no_more(converse: Converse) -> None:
    message = await start(converse)
    for _ in range(2):
        await fill(message, PAGE_CHUNKS - 8)
        for number in range(8):
            await message.append_chunk(f"{number} ")
            assert len((await raw(converse, message))["chunks"]) <= PAGE_CHUNKS
    for number in range(10):
        await message.append_chunk(f"{number} ")
    document = await raw(converse, message)
    assert document["page_start"] == 2 * PAGE_CHUNKS
    assert len(document["chunks"]) == 10
    pages = await pages_of(converse, message)
    assert [(page["first_sequence"], page["next_sequence"]) for page in pages] == [
        (0, PAGE_CHUNKS),
        (PAGE_CHUNKS, 2 * PAGE_CHUNKS),
    ]
    assert document["chunk_bytes"] == sum(chunk.stored_size for chunk in message.chunks[-10:])
    assert document["content_bytes"] == len(message.content)
    read = await converse.get_message(message.id)
    assert read.chunks == message.chunks
    assert read.content == message.content
    page = await converse.page_model.get(pages[0]["_id"])
    assert isinstance(page, MessageChunkPage)
    assert page.chunks == message.chunks[:PAGE_CHUNKS]


async def test_pages__are_sealed_by_size_too(converse: Converse) -> None:
    message = await start(converse)
    for _ in range(5):
        await message.append_chunk("é" * (PAGE_BYTES // 4))
    assert (await raw(converse, message))["chunk_bytes"] < PAGE_BYTES
    assert len(await pages_of(converse, message)) == 2
    assert (await converse.get_message(message.id)).content == message.content


@pytest.mark.parametrize("ended", [False, True], ids=["streaming", "ended"])
async def test_pages__read_as_one_log_from_everywhere(facade: Facade, ended: bool) -> None:
    converse = await facade()
    viewer = await facade(converse.database_name)
    message = await start(converse)
    await fill(message, 3 * PAGE_CHUNKS + 7)
    if ended:
        await message.complete_streaming()
    count = message.next_sequence
    edges = {PAGE_CHUNKS * n + d for n in range(4) for d in (-2, -1, 0, 1)} | {count - 1}
    for after in sorted(after for after in edges if -1 <= after < count):
        assert [chunk.sequence async for chunk in message.iter_chunks(after)] == list(
            range(after + 1, count)
        )
    if not ended:
        watching = asyncio.create_task(collect(viewer, message, 300))
        await message.append_chunk("more")
        await message.complete_streaming()
        assert_exact(await watching, await viewer.get_message(message.id), 300)
    stored = await viewer.get_message(message.id)
    for place in (None, 0, PAGE_CHUNKS - 1, PAGE_CHUNKS, count - 1):
        assert_exact(await collect(viewer, message, place), stored, place)
    assert "".join([piece async for piece in stored.iter_content()]) == stored.content
    assert "".join([piece async for piece in stored.iter_content(count - 3)]) == "".join(
        chunk.content for chunk in stored.chunks[count - 2 :]
    )
    listed = (await (await viewer.get_conversation(message.conversation_id)).messages())[0]
    assert listed.content == stored.content
    with pytest.raises(ChunksNotLoadedError):
        _ = listed.chunks[0]


async def test_pages__in_a_conversation(facade: Facade) -> None:
    converse = await facade()
    viewer = await facade(converse.database_name)
    conversation = await converse.start_conversation()
    messages = [await conversation.start_streaming_assistant() for _ in range(2)]

    async def watch(after: str | None, ends: int) -> list[Any]:
        events: list[Any] = []
        async for event in viewer.watch_conversation(conversation.id, after):
            events.append(event)
            ends -= isinstance(event, MessageCompleted)
            if not ends:
                break
        return events

    live = asyncio.create_task(watch(None, 2))
    await asyncio.gather(*[fill(message, 600) for message in messages])
    await asyncio.gather(*[message.complete_streaming() for message in messages])
    stored = [await viewer.get_message(message.id) for message in messages]
    assert_conversation_exact(await live, stored)
    events = await watch(None, 2)
    assert_conversation_exact(events, stored)
    cut = random.Random(1).randrange(len(events))
    assert (
        events[: cut + 1]
        + await watch(
            events[cut].cursor,
            2 - sum(isinstance(event, MessageCompleted) for event in events[: cut + 1]),
        )
        == events
    )


@pytest.mark.timeout(200)
async def test_pages__under_writers_and_restless_watchers(facade: Facade) -> None:
    converse = await facade()
    facades = [converse, *[await facade(converse.database_name) for _ in range(2)]]
    message = await start(converse)
    done = asyncio.Event()

    async def write(number: int) -> None:
        own = await facades[number % 3].get_message(message.id)
        for turn in range(18):
            await own.append_chunks([f"<{number}.{turn}.{part}>" for part in range(6)])

    async def read(one: Converse) -> None:
        """A reader in between sees a log without a hole, whatever is being moved."""
        while not done.is_set():
            read = await one.get_message(message.id)
            assert [chunk.sequence for chunk in read.chunks] == list(range(len(read.chunks)))
            await asyncio.sleep(0.01)

    watching = [
        asyncio.create_task(collect_restlessly(one, message, random.Random(number)))
        for number, one in enumerate(facades)
    ]
    watching.append(asyncio.create_task(collect(facades[1], message)))
    reading = asyncio.create_task(read(facades[2]))
    await asyncio.gather(*map(write, range(6)))
    await message.complete_streaming()
    done.set()
    await reading
    stored = await converse.get_message(message.id)
    assert len(stored.chunks) == 6 * 18 * 6
    assert len(await pages_of(converse, message)) >= 2
    for number in range(6):
        own = [chunk.content for chunk in stored.chunks if chunk.content.startswith(f"<{number}.")]
        assert own == [f"<{number}.{turn}.{part}>" for turn in range(18) for part in range(6)]
    for events in await asyncio.gather(*watching):
        assert_exact(events, stored)


class CrashError(Exception):
    """The process dies here."""


class Dying:
    """A collection in which a process dies as it calls something: before it is done, or after."""

    def __init__(self, collection: Any, call: str, *, applied: bool, mark: str) -> None:
        self._collection = collection
        self._call = call
        self._applied = applied
        self._mark = mark
        self.died = False

    def with_options(self, **_: Any) -> "Dying":
        return self

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._collection, name)
        if name != self._call:
            return found

        async def call(*arguments: Any, **options: Any) -> Any:
            if self.died or self._mark not in str(arguments):
                return await found(*arguments, **options)
            self.died = True
            if self._applied:
                await found(*arguments, **options)
            raise CrashError

        return call


CRASHES = {
    "before the page": ("pages", "insert_one", False, "first_sequence"),
    "after the page": ("pages", "insert_one", True, "first_sequence"),
    "before the trim": ("messages", "update_one", False, "$pull"),
    "after the trim": ("messages", "update_one", True, "$pull"),
}


@pytest.mark.parametrize("where", list(CRASHES))
async def test_crash__while_chunks_are_moved(
    facade: Facade, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    converse = await facade()
    other = await facade(converse.database_name)
    message = await start(converse)
    await fill(message, PAGE_CHUNKS - 1)
    what, call, applied, mark = CRASHES[where]
    store = converse.message_model.store()
    dying = Dying(getattr(store, what), call, applied=applied, mark=mark)
    if what == "pages":
        monkeypatch.setattr("converse_mongo.driver.collections.sibling", lambda *_, **__: dying)
    else:
        store.messages = dying
    with pytest.raises(CrashError):
        await message.append_chunk(f"{PAGE_CHUNKS - 1} ")
    assert dying.died
    monkeypatch.undo()

    read = await other.get_message(message.id)
    assert read.content == text_of(PAGE_CHUNKS)
    assert len(read.chunks) == PAGE_CHUNKS
    assert [chunk.sequence async for chunk in read.iter_chunks()] == list(range(PAGE_CHUNKS))
    for number in range(PAGE_CHUNKS, PAGE_CHUNKS + 3):
        await read.append_chunk(f"{number} ")
    assert len((await raw(other, message))["chunks"]) <= 3
    await read.complete_streaming()
    read = await other.get_message(message.id)
    assert read.content == text_of(PAGE_CHUNKS + 3)
    assert_exact(await collect(other, message), read)


async def test_seal__that_fails_does_not_fail_the_append(facade: Facade) -> None:
    converse = await facade(retry_timeout=0.2)
    message = await start(converse)
    await fill(message, PAGE_CHUNKS - 1)
    store = converse.message_model.store()
    real = store.messages

    class Deaf:
        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        async def update_one(self, match: Any, update: Any) -> Any:
            if "$pull" in update:
                raise AutoReconnect("the network is down")
            return await real.update_one(match, update)

    store.messages = Deaf()
    chunk = await message.append_chunk("stored")
    assert chunk.sequence == PAGE_CHUNKS - 1
    store.messages = real
    await message.append_chunk(" too")
    assert (await raw(converse, message))["page_start"] >= PAGE_CHUNKS
    assert (await converse.get_message(message.id)).content == message.content


async def test_seal__by_several_at_once(facade: Facade) -> None:
    converse = await facade()
    facades = [converse, *[await facade(converse.database_name) for _ in range(3)]]
    message = await start(converse)
    key = message._own_key()
    real = converse.message_model.store().paging.seal_if_possible
    for turn in range(1, 4):
        store = converse.message_model.store()

        async def nothing(*_: Any) -> None:
            pass

        store.paging.seal_if_possible = nothing
        while message.next_sequence < turn * 300:
            await message.append_chunks(["x"] * 100)
        store.paging.seal_if_possible = real
        await asyncio.gather(
            *[
                one.message_model.store().paging.seal(
                    one.message_model.store().queue((message.id, message.log_id)), key
                )
                for one in facades
                for _ in range(3)
            ]
        )
        assert (await raw(converse, message))["page_start"] == turn * 300
        assert (await raw(converse, message))["chunk_bytes"] == 0
    assert len(await pages_of(converse, message)) == 3
    assert len((await converse.get_message(message.id)).chunks) == 900


@pytest.mark.parametrize("moved", [False, True], ids=["embedded", "moved"])
async def test_once__an_append_that_is_tried_again_by_its_id(facade: Facade, moved: bool) -> None:
    converse = await facade(retry_timeout=0.1)
    other = await facade(converse.database_name)
    message = await start(converse)
    await message.append_chunk("a")
    store = converse.message_model.store()
    real = store.messages

    class Deaf:
        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        async def update_one(self, *arguments: Any) -> Any:
            await real.update_one(*arguments)
            raise AutoReconnect("the answer is lost")

    store.messages = Deaf()
    with pytest.raises(StoreUnavailableError) as lost:
        await message.append_chunks(["b", "c"])
    store.messages = real
    if moved:
        await fill(await other.get_message(message.id), 2 * PAGE_CHUNKS)
    chunks = await message.append_chunks(["b", "c"], append_id=lost.value.append_id)
    assert [(chunk.sequence, chunk.content) for chunk in chunks] == [(1, "b"), (2, "c")]
    read = await converse.get_message(message.id)
    assert read.content.startswith("abc0 1 ") if moved else read.content == "abc"


async def test_beanie__says_that_moved_chunks_are_not_loaded(converse: Converse) -> None:
    message = await start(converse)
    await fill(message, PAGE_CHUNKS + 5)
    found = await converse.message_model.get(message.id)
    assert found is not None
    assert not found.chunks.is_loaded
    assert (found.content, found.content_bytes) == ("", len(message.content))
    await found.append_chunk("still appends")
    assert len((await found.refresh()).chunks) == PAGE_CHUNKS + 6


async def test_delete__takes_the_pages_along(converse: Converse) -> None:
    message = await start(converse)
    await fill(message, PAGE_CHUNKS + 5)
    await message.delete()
    assert await pages_of(converse, message) == []


# Bulk


async def test_bulk__is_split_into_atomic_writes(facade: Facade, commands: Commands) -> None:
    converse = await facade(client_options={"event_listeners": [commands]})
    message = await start(converse)
    commands.sent.clear()
    chunks = await message.append_chunks(text_of(10_000).split())
    assert sequences_of(chunks) == list(range(10_000))
    pushes = [
        update["u"]["$push"]["chunks"]["$each"]
        for command in commands.named("update")
        for update in command["updates"]
        if "$push" in update["u"]
    ]
    assert max(map(len, pushes)) == MAX_APPEND_CHUNKS
    assert len(pushes) == -(-10_000 // MAX_APPEND_CHUNKS)
    assert (await converse.get_message(message.id)).content == "".join(text_of(10_000).split())


def sequences_of(chunks: Any) -> list[int]:
    return [chunk.sequence for chunk in chunks]


async def test_bulk__says_how_much_is_stored_when_it_fails(facade: Facade) -> None:
    converse = await facade(retry_timeout=0.1)
    message = await start(converse)
    store = converse.message_model.store()
    real, calls = store.messages, 0

    class Failing:
        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        async def update_one(self, match: Any, update: Any) -> Any:
            nonlocal calls
            calls += "$push" in update
            if calls >= 3 and "$push" in update:
                raise AutoReconnect("the network is down")
            return await real.update_one(match, update)

    store.messages = Failing()
    contents = text_of(1000).split()
    with pytest.raises(StoreUnavailableError) as failed:
        await message.append_chunks(contents)
    assert failed.value.appended == 2 * MAX_APPEND_CHUNKS
    store.messages = real
    rest = contents[failed.value.appended :]
    await message.append_chunks(rest, append_id=failed.value.append_id)
    assert (await converse.get_message(message.id)).content == "".join(contents)


# Retention


@pytest.mark.parametrize("count", [0, 5, 2 * PAGE_CHUNKS + 9])
async def test_retention__compact_keeps_text_and_places(facade: Facade, count: int) -> None:
    converse = await facade(retention="compact")
    viewer = await facade(converse.database_name)
    message = await start(converse)
    live = asyncio.create_task(collect(viewer, message))
    contents = [f"é{number}" * (number % 40) for number in range(count)]
    await message.append_chunks(contents)
    chunks = list(message.chunks)
    await message.complete_streaming({"model": "small"})
    assert await gone(converse, message)
    assert "compact_at" not in await raw(converse, message)
    read = await viewer.get_message(message.id)
    assert read.content == "".join(contents)
    assert [chunk.content for chunk in read.chunks] == contents
    assert read.metadata == {"model": "small", "chunks": count}
    assert [chunk.content async for chunk in read.iter_chunks()] == contents
    for after in {None, 0, count // 2, count - 1} if count else {None}:
        assert_exact(await collect(viewer, message, after), read, after)
    # Who watched live saw the chunks themselves.
    seen = [event.chunk for event in await live if isinstance(event, ChunkReceived)]
    assert [chunk.content for chunk in seen] == contents
    assert sequences_of(seen) == sequences_of(chunks)
    conversation = await viewer.get_conversation(message.conversation_id)
    assert (await conversation.messages())[0].content == read.content
    events = []
    async for event in viewer.watch_conversation(conversation.id):
        events.append(event)
        if isinstance(event, MessageCompleted):
            break
    assert isinstance(events[0], MessageCreated)
    assert sequences(events) == list(range(count))


async def test_retention__later(facade: Facade) -> None:
    converse = await facade(retention=timedelta(hours=1))
    kept = await start(converse, retention="keep")
    later = await start(converse)
    soon = await start(converse, retention=timedelta(milliseconds=1))
    for message in (kept, later, soon):
        await fill(message, PAGE_CHUNKS + 10)
        await message.fail_streaming("no more")
    await asyncio.sleep(0.01)
    assert await converse.compact_due() == 1
    assert await converse.compact_due() == 0
    assert [await gone(converse, message) for message in (kept, later, soon)] == [
        False,
        False,
        True,
    ]
    read = await converse.get_message(soon.id)
    assert (read.content, read.error) == (text_of(PAGE_CHUNKS + 10), "no more")
    assert_exact(await collect(converse, soon), read)


async def test_retention__is_swept_in_the_background(facade: Facade) -> None:
    converse = await facade(sweep_interval=0.02)
    message = await start(converse, retention=timedelta(milliseconds=1))
    await fill(message, 10)
    await message.complete_streaming()
    document = await raw(converse, message)
    async with asyncio.timeout(20):
        while "compacted" not in document:
            await asyncio.sleep(0.01)
            document = await raw(converse, message)
    assert document["content"] == text_of(10)


@pytest.mark.parametrize(
    ("what", "call", "mark"),
    [
        ("messages", "update_one", "chunk_lengths"),
        ("pages", "delete_many", "message_id"),
        ("messages", "update_one", "{'$unset': {'compact_at': ''}}"),
    ],
)
@pytest.mark.parametrize("applied", [False, True], ids=["before", "after"])
async def test_retention__is_finished_by_another_after_a_crash(
    facade: Facade,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    call: str,
    mark: str,
    applied: bool,
) -> None:
    converse = await facade(retention="compact")
    other = await facade(converse.database_name)
    message = await start(converse)
    await fill(message, PAGE_CHUNKS + 10)
    store = converse.message_model.store()
    dying = Dying(getattr(store, what), call, applied=applied, mark=mark)
    if what == "pages":
        monkeypatch.setattr("converse_mongo.driver.collections.sibling", lambda *_, **__: dying)
    else:
        store.messages = dying
    with pytest.raises(CrashError):
        await message.complete_streaming()
    monkeypatch.undo()
    read = await other.get_message(message.id)
    assert read.content == text_of(PAGE_CHUNKS + 10)
    assert_exact(await collect(other, message), read)
    await other.compact_due()
    assert await gone(other, message)
    assert "compact_at" not in await raw(other, message)
    read = await other.get_message(message.id)
    assert read.content == text_of(PAGE_CHUNKS + 10)
    assert_exact(await collect(other, message, 100), read, 100)


async def test_retention__while_a_slow_watcher_reads(facade: Facade) -> None:
    converse = await facade(retention="compact")
    viewer = await facade(converse.database_name)
    message = await start(converse)
    await fill(message, 5 * PAGE_CHUNKS)
    slow = viewer.watch_message(message.id)
    seen = [await anext(slow) for _ in range(10)]
    await message.complete_streaming()
    assert await gone(converse, message)
    seen += [event async for event in slow]
    assert_exact(seen, await viewer.get_message(message.id))


async def test_retention__while_watchers_are_behind_their_window(facade: Facade) -> None:
    converse = await facade(retention="compact")
    viewer = await facade(converse.database_name)
    message = await start(converse)
    await fill(message, 2000)
    slow = viewer.watch_message(message.id)
    conversations = viewer.watch_conversation(message.conversation_id)
    seen = [await anext(slow) for _ in range(3)]
    heard: list[Any] = [await anext(conversations) for _ in range(3)]
    await message.append_chunks(["x"] * 9000)
    await message.complete_streaming()
    seen += [event async for event in slow]
    async for event in conversations:
        heard.append(event)
        if isinstance(event, MessageCompleted):
            break
    read = await viewer.get_message(message.id)
    assert_exact(seen, read)
    assert_conversation_exact(heard, [read])


async def test_retention__of_a_text_that_just_fits(facade: Facade) -> None:
    converse = await facade(retention="compact")
    message = await start(converse)
    count = 2000
    # What is left takes fewer bytes than the lengths of the chunks, which do not count.
    await message.append_chunks(["x" * (MAX_CONTENT_BYTES // count - 1)] * count)
    await message.complete_streaming()
    assert await gone(converse, message)


async def test_retention__of_a_text_that_fits_nowhere(facade: Facade) -> None:
    converse = await facade(retention="compact")
    message = await start(converse)
    for _ in range(3):
        await message.append_chunks(["x" * 1024 * 1024] * 3)
    await message.complete_streaming()
    assert not await gone(converse, message)
    assert await converse.compact_due() == 0
    assert sum([len(piece) async for piece in message.iter_content()]) == 9 * 1024 * 1024


async def test_retention__that_is_none(converse: Converse) -> None:
    for retention in ("forever", 5, timedelta(seconds=-1)):
        with pytest.raises(InvalidInputError):
            await start(converse, retention=retention)


async def test_writer__compacts_as_well(facade: Facade) -> None:
    converse = await facade(retention="compact")
    message = await start(converse)
    async with message.writer(granularity="token") as writer:
        for number in range(600):
            await writer.write(f"{number} ")
        await writer.flush()
        await until(lambda: writer.statistics().chunks == 600)
    assert message.content == text_of(600)
    assert await gone(converse, message)
    assert len((await converse.get_message(message.id)).chunks) == 600


async def test_iter_chunks__reads_several_pages_at_once(facade: Facade, commands: Commands) -> None:
    converse = await facade(client_options={"event_listeners": [commands]})
    message = await start(converse)
    await fill(message, 9 * PAGE_CHUNKS + 10)
    commands.sent.clear()
    chunks = [chunk async for chunk in message.iter_chunks()]
    assert [chunk.sequence for chunk in chunks] == list(range(9 * PAGE_CHUNKS + 10))
    assert "".join(chunk.content for chunk in chunks) == text_of(9 * PAGE_CHUNKS + 10)
    # Eight pages in three reads, the ninth in two, and what is embedded in one.
    assert len(commands.named("find")) <= 7
    assert all(command["filter"].get("conversation_id") for command in commands.named("find"))


async def test_iter_chunks__goes_on_where_pages_are_merged_in_between(facade: Facade) -> None:
    converse = await facade()
    message = await start(converse)
    await fill(message, 12 * PAGE_CHUNKS)
    reading = message.iter_chunks()
    seen = [await anext(reading) for _ in range(8 * PAGE_CHUNKS)]
    other = await converse.get_message(message.id)
    await other.complete_streaming()
    await converse.message_model.store().paging.compact(
        await converse.message_model.store().reader.state(message.id, message.conversation_id)
    )
    assert not await pages_of(converse, message)
    seen += [chunk async for chunk in reading]
    assert [chunk.sequence for chunk in seen] == list(range(12 * PAGE_CHUNKS))


class Behind:
    """The messages as a majority has them that is behind: it has none yet."""

    def __init__(self, converse: Converse) -> None:
        self._paging = converse.message_model.store().paging
        self._durable = self._paging.durable
        self.reads = 0
        self.behind = True
        self._paging.durable = self.durable  # type: ignore[method-assign]

    async def durable(self) -> Any:
        messages, pages = await self._durable()
        return (_Lagging(messages, self) if self.behind else messages), pages


class _Lagging:
    def __init__(self, messages: Any, majority: Behind) -> None:
        self._messages, self._majority = messages, majority

    def __getattr__(self, name: str) -> Any:
        return getattr(self._messages, name)

    async def find_one(self, *_: Any) -> None:
        self._majority.reads += 1


LARGE = ["x" * 1_000_000] * 4
"""So much that no second append of it finds room in the message."""


async def test_room__that_cannot_be_made_is_given_up(facade: Facade) -> None:
    converse = await facade(retry_timeout=0.3)
    message = await start(converse)
    behind = Behind(converse)
    await message.append_chunks(LARGE)
    with pytest.raises(StoreUnavailableError, match="majority") as gave_up:
        async with asyncio.timeout(SOON):
            await message.append_chunks(LARGE[:3])
    assert gave_up.value.append_id is not None
    assert behind.reads < 10  # one that failed is not tried again at once
    behind.behind = False
    read = await converse.get_message(message.id)
    for _ in range(2):
        await read.append_chunks(LARGE[:3], append_id=gave_up.value.append_id)
    assert (await converse.get_message(message.id)).next_sequence == 7


async def test_room__is_waited_for_without_holding_others_up(facade: Facade) -> None:
    converse = await facade()
    message = await start(converse)
    behind = Behind(converse)
    await message.append_chunks(LARGE)
    waiting = asyncio.create_task(message.append_chunks(LARGE[:3]))
    async with asyncio.timeout(SOON):
        while behind.reads < 2:  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.005)
        await message.append_chunk("small")
        await message.complete_streaming()
    with pytest.raises(MessageNotStreamingError):
        async with asyncio.timeout(SOON):
            await waiting
    read = await converse.get_message(message.id)
    assert (read.next_sequence, read.chunks[-1].content) == (5, "small")


async def test_seal__that_failed_is_not_tried_again_by_each_append(facade: Facade) -> None:
    converse = await facade()
    message = await start(converse)
    await fill(message, PAGE_CHUNKS - 1)
    behind = Behind(converse)
    for _ in range(20):
        await message.append_chunk("x")
    assert 1 <= behind.reads < 20
    behind.behind = False
    message.store().queue((message.id, message.log_id)).next_seal = 0.0
    await message.append_chunk("x")
    assert len(await pages_of(converse, message)) == 1
