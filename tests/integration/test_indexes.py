"""Opening: indexes are listed, those that are missing are built, however long that takes."""

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar

import pytest
from beanie import Indexed
from bson import Int64
from pymongo import DESCENDING, TEXT, IndexModel
from pymongo.collation import Collation
from pymongo.errors import NetworkTimeout, OperationFailure

from converse_mongo import (
    DOCUMENT_MODELS,
    Message,
    StoreUnavailableError,
)
from converse_mongo.driver.deadlines import remaining
from converse_mongo.embedded import EmbeddedServer
from converse_mongo.store import indexes
from converse_mongo.store.indexes import (
    Indexes,
    build_missing,
    list_indexes,
)
from converse_mongo.tools import doctor
from tests.conftest import Commands, Facade
from tests.integration.helpers import failing


def infos(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "converse_mongo" and record.levelno == logging.INFO
    ]


async def test_open__builds_only_what_is_missing(
    facade: Facade, commands: Commands, client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "converse_mongo")
    name = (await facade()).database_name
    options = {"event_listeners": [commands]}
    await facade(name, client_options=options)
    assert commands.named("createIndexes") == []
    assert len(commands.named("listIndexes")) == len(DOCUMENT_MODELS)
    assert infos(caplog) == []
    await client[name]["messages"].drop_index("conversation_position")
    again = await facade(name, client_options=options)
    (command,) = commands.named("createIndexes")
    assert [index["name"] for index in command["indexes"]] == ["conversation_position"]
    (line,) = infos(caplog)
    assert f"conversation_position on {name}.messages" in line
    await again.create_indexes()
    assert len(commands.named("createIndexes")) == 1


async def test_open__takes_an_equal_index_of_another_name(facade: Facade, client: Any) -> None:
    name = (await facade()).database_name
    messages = client[name]["messages"]
    await messages.drop_index("conversation_position")
    await messages.create_index([("conversation_id", 1), ("position", 1)], unique=True, name="own")
    await facade(name)
    assert "conversation_position" not in await messages.index_information()


async def test_indexes__of_subclasses_are_built_by_both_ways(facade: Facade) -> None:
    class Tagged(Message):
        tag: Annotated[str, Indexed(unique=False)] = ""

        class Settings(Message.Settings):
            indexes: ClassVar[list[Any]] = [
                "role",
                [("created_at", DESCENDING)],
                IndexModel([("tag", 1), ("role", 1)], name="tag_and_role"),
            ]

    wanted = {"conversation_position", "role_1", "created_at_-1", "tag_and_role", "tag_1"}
    at_once = await facade(message_model=Tagged)
    later = await facade(message_model=Tagged, create_indexes=False)
    await later.create_indexes()
    for converse in (at_once, later):
        messages = converse.message_model.store().messages
        assert wanted <= (await messages.index_information()).keys()


# Trouble


async def test_open__waits_longer_than_the_sockets_timeout(
    failing_server: EmbeddedServer, facade: Facade
) -> None:
    converse = await facade(uri=failing_server.uri)
    messages = converse.message_model.store().messages
    await messages.drop_index("conversation_status")
    slow = {"blockConnection": True, "blockTimeMS": 1500}
    with failing(failing_server, ["createIndexes"], **slow):
        await facade(
            converse.database_name, failing_server.uri, client_options={"socketTimeoutMS": 500}
        )
    assert "conversation_status" in await messages.index_information()


async def test_open__goes_on_with_a_build_whose_connection_is_lost(
    failing_server: EmbeddedServer, facade: Facade
) -> None:
    converse = await facade(uri=failing_server.uri)
    messages = converse.message_model.store().messages
    await messages.drop_index("conversation_status")
    with failing(failing_server, ["createIndexes"], {"times": 2}, closeConnection=True):
        await facade(converse.database_name, failing_server.uri)
    assert "conversation_status" in await messages.index_information()


async def test_open__says_what_kept_an_index_from_being_built(
    failing_server: EmbeddedServer, facade: Facade
) -> None:
    not_built = pytest.raises(StoreUnavailableError, match=r"conversation_position.* not be built")
    with failing(failing_server, ["createIndexes"], errorCode=117), not_built:
        await facade("kept", failing_server.uri, retry_timeout=0.2)
    with failing(failing_server, ["createIndexes"], errorCode=13), pytest.raises(OperationFailure):
        await facade("kept", failing_server.uri)
    await facade("kept", failing_server.uri)


# Stand-ins for what the embedded server does not have


class Database:
    name = "chat"

    def __init__(self, reply: Callable[[], Any]) -> None:
        self._reply = reply

    async def command(self, command: dict[str, Any]) -> Any:
        assert command == {"listIndexes": "messages", "includeBuildUUIDs": True}
        return {"cursor": {"firstBatch": self._reply()}}


class Collection:
    """A collection whose server builds an index for as long as a test says."""

    name = "messages"

    def __init__(self, listed: Callable[[], list[Any]], created: Callable[[], None]) -> None:
        self.database = Database(listed)
        self._created = created
        self.asked: list[list[str]] = []
        self.left: float | None = None

    async def create_indexes(self, indexes: list[IndexModel]) -> None:
        self.asked.append([index.document["name"] for index in indexes])
        self.left = remaining()
        self._created()

    async def index_information(self) -> Any:
        return {"_id_": {"key": [("_id", 1)]}, "a_1": {"key": [("a", 1)], "unique": True}}


ID: dict[str, Any] = {"name": "_id_", "key": {"_id": 1}}
A: dict[str, Any] = {"name": "a_1", "key": {"a": 1}}


async def test_build__that_is_under_way_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexes, "PAUSE_SECONDS", 0.01)
    times = 0

    def listed() -> list[Any]:
        return [ID, {"spec": A, "buildUUID": b"x"} if times < 5 else A]

    def created() -> None:
        nonlocal times
        times += 1
        raise NetworkTimeout("a load balancer cut the connection")

    collection = Collection(listed, created)
    # No time for tries of its own, yet it goes on as long as the server does.
    await build_missing(collection, [IndexModel("a")], retry_timeout=0.0)
    assert collection.asked == [["a_1"]] * 5
    assert collection.left is not None
    assert collection.left > 86_400


async def test_list__tells_what_is_being_built() -> None:
    collection = Collection(lambda: [ID, {"spec": A, "buildUUID": b"x"}], lambda: None)
    assert await list_indexes(collection) == Indexes([ID], [A])


@pytest.mark.parametrize("code", [323, 40415, 9, 8000])
async def test_list__of_a_server_that_does_not_tell(code: int) -> None:
    def refuse() -> list[Any]:
        raise OperationFailure("unknown field", code)

    found = await list_indexes(Collection(refuse, lambda: None))
    assert [spec["name"] for spec in found.ready] == ["_id_", "a_1"]
    assert (found.ready[1]["key"], found.building, found.exists) == ({"a": 1}, [], True)


async def test_doctor__says_that_an_index_is_being_built(
    facade: Facade, server_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    converse = await facade()
    real = list_indexes

    async def listed(collection: Any) -> Indexes:
        found = await real(collection)
        if collection.name != "messages":
            return found
        return Indexes(
            [each for each in found.ready if each["name"] != "conversation_status"],
            [each for each in found.ready if each["name"] == "conversation_status"],
        )

    monkeypatch.setattr("converse_mongo.tools.doctor.list_indexes", listed)
    told = [str(each) async for each in doctor.examine(server_uri, converse.database_name)]
    assert [line for line in told if "messages: conversation_status is being built" in line]


@pytest.mark.parametrize(
    ("present", "wanted", "same"),
    [
        (A, IndexModel("a"), True),
        ({**A, "name": "other"}, IndexModel("a"), True),
        ({**A, "key": {"a": 1.0}}, IndexModel("a"), True),
        ({**A, "key": {"a": Int64(1)}}, IndexModel("a"), True),
        ({**A, "key": {"a": -1}}, IndexModel("a"), False),
        ({**A, "key": {"a": 1, "b": 1}}, IndexModel(["b", "a"]), False),
        ({**A, "key": {"a": "hashed"}}, IndexModel([("a", "hashed")]), True),
        ({**A, "unique": True}, IndexModel("a"), False),
        ({**A, "unique": False}, IndexModel("a"), True),
        (A, IndexModel("a", unique=True), False),
        ({**A, "sparse": True}, IndexModel("a", sparse=True), True),
        ({**A, "expireAfterSeconds": Int64(5)}, IndexModel("a", expireAfterSeconds=5), True),
        ({**A, "expireAfterSeconds": 6}, IndexModel("a", expireAfterSeconds=5), False),
        (
            {**A, "partialFilterExpression": {"at": {"$gt": datetime(1970, 1, 1)}}},  # noqa: DTZ001
            IndexModel(
                "a", partialFilterExpression={"at": {"$gt": datetime(1970, 1, 1, tzinfo=UTC)}}
            ),
            True,
        ),
        (A, IndexModel("a", partialFilterExpression={"b": 1}), False),
        (
            {**A, "collation": {"locale": "de", "strength": 3, "version": "57.1"}},
            IndexModel("a", collation=Collation("de")),
            True,
        ),
        ({**A, "collation": {"locale": "de"}}, IndexModel("a"), False),
        ({**A, "collation": {"locale": "simple"}}, IndexModel("a"), True),
        (
            {"name": "a_text", "key": {"_fts": "text", "_ftsx": 1}, "weights": {"a": 1}},
            IndexModel([("a", TEXT)]),
            True,
        ),
    ],
)
def test_same__is_what_the_server_would_take_for_the_same(
    present: dict[str, Any], wanted: IndexModel, same: bool
) -> None:
    assert indexes._is_same(present, wanted.document) is same
