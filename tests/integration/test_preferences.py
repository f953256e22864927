"""What a client was told about reads and writes does not reach calls that need something else."""

from typing import Any

import pytest

from converse_mongo import (
    Converse,
)
from converse_mongo.driver import clients
from converse_mongo.tools import doctor
from tests.conftest import Commands, Facade
from tests.streams import assert_exact, collect, until

OPTIONS: dict[str, dict[str, Any]] = {
    "secondaryPreferred": {"readPreference": "secondaryPreferred"},
    "secondary": {"readPreference": "secondary", "maxStalenessSeconds": 90},
    "nearest": {"readPreference": "nearest"},
    "primaryPreferred": {"readPreference": "primaryPreferred"},
    "local": {"readConcernLevel": "local"},
    "available": {"readConcernLevel": "available"},
    "majority": {"readConcernLevel": "majority"},
    "linearizable": {"readConcernLevel": "linearizable"},
    "snapshot": {"readConcernLevel": "snapshot"},
    "w1": {"w": 1},
    "majority with a journal": {"w": "majority", "journal": True, "wTimeoutMS": 10_000},
}


def preferences(commands: Commands) -> set[str]:
    return {
        command["$readPreference"]["mode"]
        for _, command in commands.sent
        if "$readPreference" in command
    }


def concerns(commands: Commands) -> set[str]:
    return {
        command["readConcern"]["level"]
        for _, command in commands.sent
        if "level" in command.get("readConcern", {})
    }


async def use(converse: Converse) -> None:
    """Uses all kinds of calls, with and without a transaction."""
    async with converse.transaction() as transaction:
        conversation = await converse.start_conversation("title", owner=("user", "ada"))
        await conversation.add_user_message("hi")
        assert transaction.session.in_transaction
    message = await conversation.start_streaming_assistant()
    async with message.writer() as writer:
        await writer.write("answer")
    assert_exact(await collect(converse, message), await converse.get_message(message.id))
    conversation.metadata["seen"] = True
    await conversation.save()
    assert [one.content for one in await conversation.messages()] == ["hi", "answer"]
    assert [one.id async for one in converse.conversations(("user", "ada"))] == [conversation.id]
    await converse.recover_stale()
    async with converse.watch_conversation(conversation.id, after="now"):
        await until(lambda: converse.statistics().checks > 0)
    async with converse.transaction():
        await conversation.add_user_message("more")
        assert len(await conversation.messages()) == 3
    await (await conversation.messages())[0].delete()
    await conversation.delete()


@pytest.mark.parametrize("how", OPTIONS)
async def test_calls__state_what_they_read(facade: Facade, commands: Commands, how: str) -> None:
    options = {**OPTIONS[how], "event_listeners": [commands]}
    converse = await facade(client_options=options, check_interval=0.05)
    await use(converse)
    assert preferences(commands) <= {"primary"}
    assert concerns(commands) <= {"local", "majority", "snapshot"}
    # A read concern is only in the first command of a transaction.
    first = [command for _, command in commands.sent if command.get("startTransaction")]
    assert [command["readConcern"]["level"] for command in first] == ["snapshot"] * 2
    # Lacking one of its own, a transaction has what the client asks for.
    (commit, *_) = commands.named("commitTransaction")
    assert commit.get("writeConcern", {}).get("w") == OPTIONS[how].get("w")


async def test_doctor__reads_from_the_primary(
    converse: Converse, server_uri: str, monkeypatch: pytest.MonkeyPatch, commands: Commands
) -> None:
    real = clients.open_client

    def open_client(uri: str, options: Any) -> Any:
        preferring = {"readPreference": "nearest", "readConcernLevel": "linearizable"}
        return real(uri, {**options, **preferring, "event_listeners": [commands]})

    monkeypatch.setattr(clients, "open_client", open_client)
    found = [each async for each in doctor.examine(server_uri, converse.database_name)]
    assert not [each for each in found if each.level is doctor.Level.FAIL]
    # "primaryPreferred" is what a driver says as long as it does not know the topology.
    assert preferences(commands) <= {"primary", "primaryPreferred"}
    assert concerns(commands) <= {"local", "majority"}
