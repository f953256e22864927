"""What an application stores beside its text comes back equal, from wherever it is read."""

import asyncio
import enum
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from bson import ObjectId

from converse_mongo import (
    ChunkReceived,
    Conversation,
    ConversationCreated,
    ConversationUpdated,
    Converse,
    InvalidInputError,
    InvalidMetadataError,
    Message,
    MessageCompleted,
    MessageCreated,
    MessageStatus,
)
from converse_mongo.driver.installed import driver_name
from tests.conftest import Facade
from tests.integration.helpers import soon, start, stored
from tests.streams import collect

RUN = UUID("8a8e6a1e-1a5c-4d0e-9f0a-3f6f7c1d2e3f")


class Stop(enum.Enum):
    LENGTH = "length"


def awkward(name: str) -> dict[str, Any]:
    """What has come back as something else, or not been stored at all."""
    return {
        name: {"$id": name, "$ref": "#/defs/a", "more": {"$ref": "b", "$id": 1, "$db": "c"}},
        f"{name}.4-1": {"a.b": 1, "$c": "$d"},
        f"${name}": f"${name}",
        "cost": Decimal("0.0100"),
        "run": [RUN, {"run": RUN}],
        "stop": Stop.LENGTH,
        "pair": (1, 2),
        "at": datetime(2026, 1, 2, 3, 4, 5, 6789, tzinfo=timezone(timedelta(hours=2))),
        "raw": bytearray(b"x"),
    }


def plain(name: str) -> dict[str, Any]:
    """The same as it is given back."""
    return awkward(name) | {
        "stop": "length",
        "pair": [1, 2],
        "at": datetime(2026, 1, 2, 1, 4, 5, 6000, tzinfo=UTC),
        "raw": b"x",
    }


def root(name: str) -> dict[str, Any]:
    """Metadata that are such a dictionary themselves."""
    return {"$id": RUN, "$ref": name, "more": 1}


@pytest.mark.parametrize("change_streams", [True, False])
async def test_metadata__comes_back_equal_from_everywhere(
    facade: Facade, change_streams: bool
) -> None:
    writing = await facade()
    converse = await facade(
        writing.database_name, change_streams=change_streams, poll_interval=0.05
    )
    handled: list[Any] = []
    for event_type in (ConversationCreated, MessageCreated, ChunkReceived, MessageCompleted):
        writing.on(event_type, handled.append)
    owner = ("user", UUID(int=7))
    owned = await converse.watch_owner(owner).__aenter__()
    conversation = await writing.start_conversation(
        metadata=awkward("a"), context=root("b"), owner=owner
    )
    watching = converse.watch_conversation(conversation.id)
    message = await conversation.start_streaming_assistant(awkward("c"))
    assert message.metadata == plain("c")
    events = asyncio.create_task(collect(converse, message))
    await message.append_chunk("one ", awkward("d"))
    async with message.writer(metadata={"w.1": RUN}, granularity="token") as writer:
        await writer.write("two ", root("e"))
        await writer.detach()
    told = [conversation.metadata, message.chunks[0].metadata]
    await message.complete_streaming(awkward("f"))
    chunks = [plain("d"), root("e")]
    final = plain("c") | plain("f") | {"chunks": 2}

    read = await stored(converse, message)
    listed = (await converse.conversation_model.get(conversation.id)).metadata
    again = await converse.get_conversation(conversation.id)
    history = await again.history()
    assert told == [plain("a"), plain("d")]
    for copy in (message, read, *(await again.messages()), *history.messages):
        assert copy.metadata == final
        assert copy.model_dump()["metadata"] == final
    for each in (read.chunks, [chunk async for chunk in read.iter_chunks()]):
        assert [chunk.metadata for chunk in each] == chunks
    assert listed == again.metadata == plain("a")
    assert again.context == root("b")
    assert [each.metadata async for each in converse.conversations(owner)] == [plain("a")]

    seen = await soon(events)
    assert [event.chunk.metadata for event in seen if isinstance(event, ChunkReceived)] == chunks
    assert seen[-1].metadata == final
    created = await soon(anext(watching))
    assert created.metadata in (plain("c"), plain("c") | plain("f"), final)
    assert (await soon(anext(owned))).metadata == plain("a")
    assert [getattr(event, "chunk", event).metadata for event in handled] == [
        plain("a"),
        plain("c"),
        *chunks,
        final,
    ]
    await watching.aclose()
    await owned.aclose()


async def test_metadata__comes_back_equal_from_a_page(converse: Converse) -> None:
    message = await start(converse)
    async with message.writer(granularity="token") as writer:
        for number in range(300):
            await writer.write(f"{number} ", {"schema": root(str(number)), "run": RUN})
    read = await stored(converse, message)
    assert read.page_start
    assert [chunk.metadata for chunk in read.chunks] == [
        {"schema": root(str(number)), "run": RUN} for number in range(300)
    ]


@pytest.mark.parametrize("kind", ["message", "conversation"])
async def test_save__sets_and_removes_single_keys_whatever_they_hold(
    facade: Facade, kind: str
) -> None:
    writing = await facade()
    converse = await facade(writing.database_name)
    conversation = await writing.start_conversation(metadata={"gpt-4.1": 1, "$old": 2, "kept": 3})
    ours: Message | Conversation = conversation
    if kind == "message":
        ours = await conversation.create_assistant_message("x", dict(conversation.metadata))

    async def load() -> Message | Conversation:
        read: Message | Conversation = (
            await converse.get_message(ours.id)
            if kind == "message"
            else await converse.get_conversation(ours.id)
        )
        return read

    theirs = await load()
    theirs.metadata["other.one"] = "$theirs"
    await theirs.save()
    ours.metadata |= awkward("new")
    ours.metadata["gpt-4.1"] = {"$x": 1}
    del ours.metadata["$old"]
    await ours.save()
    expected = {"gpt-4.1": {"$x": 1}, "kept": 3, "other.one": "$theirs"} | plain("new")
    assert ours.metadata == {key: expected[key] for key in ours.metadata}
    read = await load()
    assert (read.metadata, read.revision) == (expected, 2)
    del read.metadata["gpt-4.1"]
    await read.save()
    del expected["gpt-4.1"]
    assert (await load()).metadata == expected


async def test_save__tells_watchers_of_keys_that_no_path_names(facade: Facade) -> None:
    writing = await facade()
    converse = await facade(writing.database_name)
    watching = await converse.watch_owner(("user", 1)).__aenter__()
    conversation = await writing.start_conversation(owner=("user", 1))
    assert isinstance(await soon(anext(watching)), ConversationCreated)
    for revision in (1, 2):
        conversation.metadata["gpt-4.1"] = revision
        await conversation.save()
        event = await soon(anext(watching))
        assert isinstance(event, ConversationUpdated)
        assert (event.revision, event.metadata) == (revision, {"gpt-4.1": revision})
    await watching.aclose()


UNSTORABLE = {"seen": {1, 2}, "probs": {1: 0.5}, "at": datetime(2026, 1, 1)}  # noqa: DTZ001


@pytest.mark.parametrize("key", UNSTORABLE)
async def test_calls__refuse_at_once_what_cannot_be_stored(converse: Converse, key: str) -> None:
    bad = {"fine": 1, key: UNSTORABLE[key]}
    conversation = await converse.start_conversation()
    message = await conversation.start_streaming_assistant()
    taken: list[str] = []

    async def generate() -> AsyncIterator[str]:
        taken.append("token")
        yield "token"

    for call in (
        lambda: converse.start_conversation(metadata=bad),
        lambda: converse.start_conversation(context=bad),
        lambda: conversation.create_user_message("x", bad),
        lambda: conversation.start_streaming_assistant(bad),
        lambda: message.append_chunk("x", bad),
        lambda: message.pipe(generate(), bad),
        lambda: message.complete_streaming(bad),
        lambda: message.fail_streaming("x", bad),
        lambda: message.cancel_streaming("x", bad),
    ):
        with pytest.raises(InvalidMetadataError, match=rf"\['{key}'\]"):
            await call()
    with pytest.raises(InvalidMetadataError, match=key):
        message.writer(metadata=bad)
    assert not taken
    message.metadata = dict(bad)
    conversation.context |= bad
    for save in (message.save, conversation.save):
        with pytest.raises(InvalidMetadataError, match=key):
            await save()
    read = await stored(converse, message)
    assert (read.status, read.metadata, read.next_sequence) == (MessageStatus.STREAMING, {}, 0)
    assert [each.id async for each in conversation.messages()] == [message.id]
    async with message.writer() as writer:
        with pytest.raises(InvalidMetadataError, match=key):
            await writer.write("refused", bad)
        await writer.write("taken")
    assert (await stored(converse, message)).content == "taken"


@pytest.mark.parametrize("raised", [None, ValueError, asyncio.CancelledError])
async def test_writer__never_fails_for_its_metadata(
    converse: Converse, caplog: pytest.LogCaptureFixture, raised: type[BaseException] | None
) -> None:
    message = await start(converse)
    with caplog.at_level(logging.WARNING, "converse_mongo"):
        try:
            async with message.writer() as writer:
                await writer.write("The whole answer.")
                writer.metadata |= UNSTORABLE | {"usage": 3, "gpt-4.1": RUN}
                if raised is not None:
                    raise raised
        except (ValueError, asyncio.CancelledError):
            pass
    read = await stored(converse, message)
    ends: dict[Any, str] = {None: "completed", ValueError: "failed"}
    status = ends.get(raised, "cancelled")
    assert (read.status, read.content) == (status, "The whole answer.")
    unstored = {"seen": "set", "probs": "dict", "at": "datetime"}
    expected = {"usage": 3, "gpt-4.1": RUN, "unstored": unstored, "chunks": 1}
    assert read.metadata == message.metadata == expected
    (record,) = [each for each in caplog.records if "without metadata" in each.message]
    assert "seen" in record.message
    assert "2026" not in record.message


async def test_writer__never_fails_for_what_does_not_fit(converse: Converse) -> None:
    message = await start(converse)
    for number in range(16):
        message.metadata = {f"k{number}": "x" * 1_000_000}
        message._tracker.remembered["metadata"] = {}  # as a copy that knows of no other key
        await message.save()
    async with message.writer() as writer:
        await writer.write("The whole answer.")
        writer.metadata |= {"large": "x" * 900_000, "usage": 1}
    read = await stored(converse, message)
    assert (read.status, read.content) == (MessageStatus.COMPLETED, "The whole answer.")
    assert read.metadata["unstored"] == {"large": "str", "usage": "int"}


# Owners


class Kind(enum.StrEnum):
    USER = "user"


@pytest.mark.parametrize(
    ("owner", "pair"),
    [
        ((Kind.USER, 5), ("user", "5")),
        (("user", 2**70), ("user", str(2**70))),
        (("user", ObjectId("a" * 24)), ("user", "a" * 24)),
        (("user", RUN), ("user", str(RUN))),
        (["user", "x"], ("user", "x")),
    ],
    ids=repr,
)
async def test_owner__is_text_in_the_end(
    converse: Converse, owner: tuple[str, Any], pair: tuple[str, str]
) -> None:
    conversation = await converse.start_conversation(owner=owner)
    read = await converse.get_conversation(conversation.id)
    assert read.owner is not None
    assert read.owner.pair == pair
    assert [each.id async for each in converse.conversations(owner)] == [conversation.id]
    assert [each.id async for each in converse.conversations(pair)] == [conversation.id]


@pytest.mark.parametrize(
    ("owner", "reason"),
    [
        (("user", True), "not bool"),
        (("user", None), "not NoneType"),
        (("user", 1.5), "not float"),
        (("user", b"x"), "not bytes"),
        (("user", ("a", "b")), "not tuple"),
        ((5, "x"), "type of an owner must be str, not int"),
        ("user", "type and an id"),
        (("user",), "type and an id"),
        (("user", "\ud800"), "surrogate"),
    ],
    ids=repr,
)
async def test_owner__of_another_kind_is_refused(
    converse: Converse, owner: Any, reason: str
) -> None:
    with pytest.raises(InvalidInputError, match=reason):
        await converse.start_conversation(owner=owner)
    with pytest.raises(InvalidInputError, match=reason):
        [each async for each in converse.conversations(owner)]
    with pytest.raises(InvalidInputError, match=reason):
        converse.watch_owner(owner)
    conversation = await converse.start_conversation()
    conversation.owner = owner
    with pytest.raises(InvalidInputError):
        await conversation.save()


# With no server


@pytest.mark.skipif(driver_name() != "motor", reason="mongomock poses as Motor")
async def test_mock__says_that_it_cannot_hold_a_key(caplog: pytest.LogCaptureFixture) -> None:
    from mongomock_motor import AsyncMongoMockClient

    async with Converse(AsyncMongoMockClient(), database="test") as converse:
        message = await start(converse)

        async def generate() -> AsyncIterator[str]:
            yield "text"

        for key in ("gpt-4.1", "$x"):
            with pytest.raises(InvalidMetadataError, match="mongomock"):
                await message.complete_streaming({key: 1})
            with pytest.raises(InvalidMetadataError, match="mongomock"):
                await message.pipe(generate(), {key: 1})
        async with message.writer() as writer:
            await writer.write("text")
            writer.metadata |= {"gpt-4.1": 1, "run": RUN, "schema": root("a"), "cost": Decimal(1)}
        read = await stored(converse, message)
        assert read.metadata == {
            "run": RUN,
            "schema": root("a"),
            "cost": Decimal(1),
            "unstored": {"gpt-4.1": "int"},
            "chunks": 1,
        }
        read.metadata["gpt-4.1"] = 1
        with pytest.raises(InvalidMetadataError, match="mongomock"):
            await read.save()
