"""Several facades in one process, and an application's own Beanie beside them."""

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any, ClassVar
from uuid import uuid4

import pytest
import pytest_asyncio
from beanie import init_beanie
from pymongo import IndexModel

from converse_mongo import (
    DOCUMENT_MODELS,
    ConfigurationError,
    Conversation,
    ConversationNotFoundError,
    Converse,
    ConverseClosedError,
    Event,
    InvalidIdError,
    InvalidInputError,
    Message,
    MessageNotFoundError,
    StoreUnavailableError,
)
from converse_mongo.driver.installed import driver_name
from converse_mongo.driver.servers import FIRST_MARK
from converse_mongo.tools.doctor import Level, examine
from tests.conftest import Commands, Facade
from tests.streams import assert_exact, collect


class RatedMessage(Message):
    rating: int = 0
    tags: list[str] = []  # noqa: RUF012 - pydantic copies defaults


class SharedConversation(Conversation):
    team: str = "none"
    message_model = RatedMessage


async def stream(message: Message, text: str) -> Message:
    for token in text.split():
        await message.append_chunk(token + " ")
    return await message.complete_streaming()


async def test_facades__on_two_databases(facade: Facade) -> None:
    one, two = await facade(), await facade()
    heard: dict[str, list[Event]] = {"one": [], "two": []}
    one.on(Event, heard["one"].append)
    two.on(Event, heard["two"].append)
    conversations = [await each.start_conversation() for each in (one, two)]
    messages = [await each.start_streaming_assistant() for each in conversations]
    watching = [
        asyncio.create_task(collect(converse, message))
        for converse, message in zip((one, two), messages, strict=True)
    ]
    await asyncio.gather(*[stream(each, f"text of {n}") for n, each in enumerate(messages)])
    for converse, other, message, events in zip(
        (one, two), (two, one), messages, await asyncio.gather(*watching), strict=True
    ):
        assert_exact(events, await converse.get_message(message.id))
        with pytest.raises(MessageNotFoundError):
            await other.get_message(message.id)
    assert {event.conversation_id for event in heard["one"]} == {conversations[0].id}
    assert {event.conversation_id for event in heard["two"]} == {conversations[1].id}

    # Closing one disturbs no other.
    last = await conversations[1].start_streaming_assistant()
    watched = asyncio.create_task(collect(two, last))
    await one.aclose()
    await stream(last, "still open")
    assert_exact(await watched, await two.get_message(last.id))
    with pytest.raises(ConverseClosedError):
        await conversations[0].add_user_message("closed")


async def test_facades__on_one_database(facade: Facade) -> None:
    one = await facade()
    two = await facade(one.database_name)
    conversation = await one.start_conversation()
    message = await conversation.start_streaming_assistant()
    watching = asyncio.create_task(collect(two, message))
    await (await two.get_message(message.id)).append_chunk("of two, ")
    await message.append_chunk("of one")
    await one.aclose()
    theirs = await two.get_message(message.id)
    await theirs.complete_streaming()
    assert theirs.content == "of two, of one"
    assert_exact(await watching, theirs)


async def test_client__that_was_lent_is_left_open(client: Any) -> None:
    name = f"test_{uuid4().hex[:16]}"
    async with Converse(client, database=name) as converse:
        await converse.start_conversation()
    assert await client[name]["conversations"].count_documents({}) == 1
    async with converse:  # it can be opened again
        await converse.start_conversation()
    assert await client[name]["conversations"].count_documents({}) == 2
    await client.drop_database(name)


@pytest.mark.parametrize("name", ["update", "set", "inc", "delete"])
async def test_documents__of_a_closed_facade_write_nothing(client: Any, name: str) -> None:
    """Not even through a client of the application's, which stays open."""
    database = f"test_{uuid4().hex[:16]}"
    async with Converse(client, database=database) as converse:
        conversation = await converse.start_conversation("Files", {"n": 1})
        message = await conversation.create_user_message("hi", {"n": 1})
    arguments = {"update": [{"$set": {"metadata.n": 2}}], "delete": []}
    for document in (message, conversation):
        with pytest.raises(ConverseClosedError):
            await getattr(document, name)(*arguments.get(name, [{"metadata.n": 2}]))
    for collection in ("messages", "conversations"):
        assert await client[database][collection].count_documents({"metadata.n": 1}) == 1
    await client.drop_database(database)


# Beside an application's own Beanie


@pytest_asyncio.fixture
async def own_database(client: Any) -> AsyncIterator[Any]:
    name = f"test_{uuid4().hex[:16]}"
    yield client[name]
    await client.drop_database(name)


async def test_beanie__of_the_application_on_the_same_database(
    client: Any, own_database: Any
) -> None:
    await init_beanie(database=own_database, document_models=DOCUMENT_MODELS)
    conversation = await Conversation(title="direct", owner=("user", 1)).insert()
    message = await conversation.start_streaming_assistant()
    async with Converse(client, database=own_database.name) as converse:
        watching = asyncio.create_task(collect(converse, message))
        await message.append_chunk("one ")
        theirs = await converse.get_message(message.id)
        await theirs.append_chunk("two ")
        await message.append_chunk("three")
        await message.complete_streaming()
        assert_exact(await watching, await converse.get_message(message.id))
        assert isinstance(theirs, Message)
        listed = await (await converse.get_conversation(conversation.id)).messages()
        assert [each.content for each in listed] == ["one two three"]
    # The facade is closed; the application goes on.
    found = await Message.find_one(Message.conversation_id == conversation.id)
    assert found is not None
    assert found.content == "one two three"
    assert [chunk.content for chunk in found.chunks] == ["one ", "two ", "three"]
    await conversation.add_user_message("thanks")
    assert len(await conversation.messages()) == 2


async def test_beanie__of_the_application_on_another_database(
    facade: Facade, own_database: Any
) -> None:
    await init_beanie(database=own_database, document_models=DOCUMENT_MODELS)
    before = await Conversation(title="mine").insert()
    converse = await facade()
    theirs = await converse.start_conversation("theirs")
    after = await Conversation(title="mine, too").insert()
    assert {found.id for found in await Conversation.find_all().to_list()} == {
        before.id,
        after.id,
    }
    with pytest.raises(ConversationNotFoundError):
        await converse.get_conversation(after.id)
    assert (await converse.get_conversation(theirs.id)).title == "theirs"
    # Defaults survive that the parent class was bound before the facade's was made.
    assert (theirs.metadata, theirs.context, theirs.owner, theirs.next_position) == (
        {},
        {},
        None,
        0,
    )
    message = await theirs.create_user_message("hi")
    assert (message.error, message.revision, message.chunks) == (None, 0, [])


async def test_subclasses__have_fields_of_their_own(facade: Facade) -> None:
    converse = await facade(message_model=RatedMessage, conversation_model=SharedConversation)
    conversation = await converse.start_conversation("ours", team="red")
    message = await conversation.start_streaming_assistant(rating=3)
    assert isinstance(message, RatedMessage)
    await stream(message, "a b")
    message.tags.append("good")
    await message.save()
    stored = await converse.get_message(message.id)
    assert isinstance(stored, RatedMessage)
    assert (stored.rating, stored.tags, stored.content) == (3, ["good"], "a b ")
    found = await converse.get_conversation(conversation.id)
    assert isinstance(found, SharedConversation)
    assert found.team == "red"
    with pytest.raises(InvalidInputError, match="nothing_like_it"):
        await conversation.create_user_message("x", nothing_like_it=1)
    with pytest.raises(InvalidInputError, match="rating"):
        await conversation.create_user_message("x", rating="many")
    assert len(await conversation.messages()) == 1


async def test_subclasses__bound_by_the_application(own_database: Any) -> None:
    await init_beanie(database=own_database, document_models=[SharedConversation, RatedMessage])
    RatedMessage.conversation_model = SharedConversation
    conversation = await SharedConversation(team="blue").insert()
    message = await conversation.start_streaming_assistant(rating=1)
    await stream(message, "a b")
    stored = await RatedMessage.get(message.id)
    assert stored is not None
    assert (stored.rating, stored.content) == (1, "a b ")


async def test_subclasses__cannot_take_names_of_the_library() -> None:
    with pytest.raises(ConfigurationError, match="last_save"):
        type("Bad", (Message,), {"__annotations__": {"last_save": bool}, "__module__": __name__})


async def test_subclasses__with_settings_of_their_own_keep_the_indexes(facade: Facade) -> None:
    class Plain(Message):
        class Settings:
            use_revision = False

    class Derived(Message):
        class Settings(Message.Settings):
            indexes: ClassVar = [IndexModel("role")]

    for model in (Plain, Derived):
        converse = await facade(message_model=model)
        messages = converse.message_model.store().messages
        assert messages.name == "messages"
        indexes = await messages.index_information()
        assert {"conversation_position", "conversation_status"} <= indexes.keys()
    assert "role_1" in indexes


# Opening


async def test_open__makes_the_indexes_unless_told_not_to(facade: Facade) -> None:
    without = await facade(create_indexes=False)
    await (await without.start_conversation()).add_user_message("x")
    messages = without.message_model.store().messages
    assert list(await messages.index_information()) == ["_id_"]
    await without.create_indexes()
    assert set(await messages.index_information()) == {
        "_id_",
        "conversation_position",
        "conversation_saves_role",
        "conversation_status",
        "streaming_leased",
        "compact_at_by_id",
        "work_due",
        "work_state",
    }
    assert set(await without.message_model.store().pages.index_information()) == {
        "_id_",
        "message_pages",
    }
    assert set(await without.message_model.store().values.index_information()) == {
        "_id_",
        "message_values",
    }


async def test_open__beside_the_indexes_of_an_earlier_version(
    facade: Facade, client: Any, server_uri: str
) -> None:
    before = await facade(create_indexes=False)
    name = before.database_name
    await client[name]["messages"].create_indexes(
        [
            IndexModel(
                [("conversation_id", 1), ("position", 1)], unique=True, name="conversation_position"
            ),
            IndexModel([("conversation_id", 1), ("revision", 1)], name="conversation_revision"),
            IndexModel(
                [
                    (key, 1)
                    for key in ("conversation_id", "save_mark", "_id", "revision", "position")
                ],
                name="conversation_saves",
                partialFilterExpression={"save_mark": {"$gt": FIRST_MARK}},
            ),
            IndexModel(
                [("status", 1)],
                name="streaming",
                partialFilterExpression={"status": "streaming"},
            ),
            IndexModel([("compact_at", 1)], name="compact_at", sparse=True),
            IndexModel([("role", 1)], name="mine"),
        ]
    )
    converse = await facade(name)
    await converse.create_indexes()
    findings = [finding async for finding in examine(server_uri, name)]
    [told] = [each for each in findings if "only earlier versions use" in each.text]
    assert (
        "messages has conversation_revision, conversation_saves, streaming, compact_at, which"
        in told.text
    )
    assert told.level is Level.WARN
    assert any("messages has all" in finding.text for finding in findings)


def collection_scans(plan: Any) -> bool:
    if isinstance(plan, dict):
        return plan.get("stage") == "COLLSCAN" or any(map(collection_scans, plan.values()))
    return isinstance(plan, list) and any(map(collection_scans, plan))


def branches(match: dict[str, Any]) -> list[dict[str, Any]]:
    """The filters to explain for one filter.

    MongoDB plans a filter as it is. SecantusDB explains a scan wherever fields come beside the
    _id, or an $in or $or beside a range, which MongoDB serves from the same index as their parts.
    """
    if os.environ.get("CONVERSE_TEST_URI"):
        return [match]
    if "_id" in match:
        return [{"_id": match["_id"]}]
    if "$or" in match:
        rest = {key: value for key, value in match.items() if key != "$or"}
        return [{**rest, **clause} for clause in match["$or"]]
    return [
        {
            key: value["$in"][0] if isinstance(value, dict) and "$in" in value else value
            for key, value in match.items()
        }
    ]


async def test_indexes__serve_every_query(facade: Facade, commands: Commands) -> None:
    converse = await facade(
        client_options={"event_listeners": [commands]},
        change_streams=False,
        poll_interval=0.02,
    )
    for number in range(30):  # populated, so that a plan means something
        other = await converse.start_conversation(owner=("user", number))
        await other.add_user_message("x")
    conversation = await converse.start_conversation(owner=("user", 7))
    message = await conversation.start_streaming_assistant()
    commands.sent.clear()

    async def page() -> None:
        async with converse.watch_conversation(conversation.id) as events:
            async for event in events:
                if event.type == "message.completed":
                    return

    watching = [asyncio.create_task(page()), asyncio.create_task(collect(converse, message))]
    await stream(message, "a b c d")
    await asyncio.gather(*watching)
    message.metadata["x"] = 1
    await message.save()
    await conversation.save()
    await conversation.messages()
    await converse.get_message(message.id)
    await converse.get_conversation(conversation.id)
    assert [chunk.content async for chunk in message.iter_chunks()]
    assert [found.id async for found in converse.conversations(("user", 7))]

    database = converse.message_model.store().messages.database
    explained = 0
    for name, command in commands.sent:
        if name == "find":
            query = {key: command[key] for key in ("find", "filter", "sort") if key in command}
        elif name == "update":
            query = {"find": command["update"], "filter": command["updates"][0]["q"]}
        else:
            continue
        for branch in branches(query["filter"]):
            plan = await database.command(
                {"explain": {**query, "filter": branch}, "verbosity": "queryPlanner"}
            )
            assert not collection_scans(plan["queryPlanner"]["winningPlan"]), (name, branch)
            explained += 1
    assert explained >= 15


async def test_indexes__a_scan_would_be_seen(converse: Converse) -> None:
    await (await converse.start_conversation()).add_user_message("x")
    database = converse.message_model.store().messages.database
    query = {"find": "messages", "filter": {"content": "x"}}
    plan = await database.command({"explain": query, "verbosity": "queryPlanner"})
    assert collection_scans(plan["queryPlanner"]["winningPlan"])


@pytest.mark.parametrize(
    "options",
    [
        {"poll_interval": 0},
        {"check_interval": -1},
        {"retry_timeout": True},
        {"poll_interval": "1"},
        {"message_model": Conversation},
        {"conversation_model": dict},
    ],
    ids=str,
)
def test_options__that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        Converse("mongodb://localhost", database="x", **options)


async def test_open__cannot_work(server_uri: str) -> None:
    with pytest.raises(ConfigurationError, match="database"):
        await Converse(server_uri).open()
    with pytest.raises(ConfigurationError, match="URI"):
        await Converse("http://localhost", database="x").open()
    with pytest.raises(ConfigurationError, match="not int"):
        await Converse(5, database="x").open()
    options = {"serverSelectionTimeoutMS": 50}
    nobody = Converse("mongodb://127.0.0.1:9/", database="x", client_options=options)
    with pytest.raises(StoreUnavailableError, match="reached"):
        await nobody.open()
    with pytest.raises(ConverseClosedError, match="async with"):
        await nobody.get_message("0" * 24)


async def test_open__with_a_client_of_the_other_driver() -> None:
    other: Any
    if driver_name() == "motor":
        from pymongo import AsyncMongoClient

        other = AsyncMongoClient("mongodb://127.0.0.1:9/", connect=False)
    else:
        motor = pytest.importorskip("motor.motor_asyncio")
        other = motor.AsyncIOMotorClient("mongodb://127.0.0.1:9/", connect=False)
    with pytest.raises(ConfigurationError, match="Beanie"):
        await Converse(other, database="x").open()
    closing = other.close()
    if closing is not None:
        await closing


async def test_ids__unknown_and_malformed(converse: Converse) -> None:
    for bad in ("", "xyz", 5, None, "g" * 24):
        with pytest.raises(InvalidIdError):
            await converse.get_message(bad)  # type: ignore[arg-type]
        with pytest.raises(InvalidIdError):
            await converse.get_conversation(bad)  # type: ignore[arg-type]
    with pytest.raises(MessageNotFoundError, match="0" * 24):
        await converse.get_message("0" * 24)
    with pytest.raises(ConversationNotFoundError, match="0" * 24):
        await converse.get_conversation("0" * 24)
