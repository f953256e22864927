"""What all tests share: servers, clients and facades, each ended with its test."""

import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio
from pymongo import MongoClient, monitoring

from converse_mongo import Converse
from converse_mongo.driver.clients import close_client, open_client
from converse_mongo.driver.installed import driver_name
from converse_mongo.embedded import EmbeddedServer
from tests.majority import Majority, behind

USES_MOTOR = driver_name() == "motor"

Facade = Callable[..., Any]


LAG = "--majority-lag"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        LAG,
        type=float,
        default=0.0,
        help="seconds by which the majority is behind the primary, as with the write concern w:1",
    )


@pytest.fixture(autouse=True)
def majority_lag(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, Majority]]:
    """Has the majority lag behind the primary in each test, where the option asks for it."""
    lag = request.config.getoption(LAG)
    if not lag or request.node.get_closest_marker("commits_at_once"):
        yield {}
        return
    # Servers of a test's own are harmed, and nobody could follow them.
    with behind(monkeypatch, request.getfixturevalue("server_uri"), lag) as majorities:
        yield majorities


@pytest.fixture(scope="session")
def server_uri() -> Iterator[str]:
    """A server with change streams: the one in CONVERSE_TEST_URI, else one of our own."""
    if uri := os.environ.get("CONVERSE_TEST_URI"):
        yield uri
        return
    # Each change stream that is opened costs it the whole oplog.
    with EmbeddedServer(arguments=("--oplog-max-entries", "1000")) as server:
        # It looks at all of its records of retryable writes with each write: after ten thousand of
        # them one takes ten times as long. The library tries again by itself.
        yield f"{server.uri}?retryWrites=false"


@pytest.fixture
def start_server() -> Iterator[Callable[..., EmbeddedServer]]:
    """Starts servers that a test may harm; all are ended with the test."""
    if os.environ.get("CONVERSE_TEST_URI"):
        pytest.skip("this test breaks its server, so it needs the embedded one")
    with ExitStack() as stack:

        def start(*arguments: str, **options: Any) -> EmbeddedServer:
            return stack.enter_context(EmbeddedServer(arguments=arguments, **options))

        yield start


@pytest.fixture(scope="session")
def server_with_fail_points() -> Iterator[EmbeddedServer]:
    with EmbeddedServer(
        arguments=("--enable-test-commands", "--oplog-max-entries", "1000")
    ) as server:
        yield server


@pytest.fixture
def failing_server(request: pytest.FixtureRequest) -> Iterator[EmbeddedServer]:
    """A server whose commands fail where a test says; its data is shared, as that of any other."""
    if os.environ.get("CONVERSE_TEST_URI"):
        pytest.skip("this test makes its server fail, so it needs the embedded one")
    server: EmbeddedServer = request.getfixturevalue("server_with_fail_points")
    yield server
    with MongoClient[dict[str, Any]](server.uri) as admin:
        admin.admin.command("configureFailPoint", "failCommand", mode="off")


class Commands(monitoring.CommandListener):
    """Counts and keeps the commands that a client sends."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, Any]]] = []

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        self.sent.append((event.command_name, dict(event.command)))

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        pass

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        pass

    def named(self, name: str) -> list[dict[str, Any]]:
        """Those with a name, but no ``find`` that only asks for the time of the server."""
        commands = [command for sent, command in self.sent if sent == name]
        return [each for each in commands if name != "find" or "filter" in each]

    def change_streams(self) -> list[dict[str, Any]]:
        return [
            command
            for command in self.named("aggregate")
            if any("$changeStream" in stage for stage in command["pipeline"])
        ]


@pytest_asyncio.fixture
async def facade(server_uri: str) -> AsyncIterator[Facade]:
    """Opens facades on a real server: ``await facade(database=..., uri=..., **options)``.

    Each gets a database of its own unless it names one; all databases are dropped in the end.
    """
    async with AsyncExitStack() as stack:

        async def open_one(
            database: str | None = None, uri: str | None = None, **options: Any
        ) -> Converse:
            name = database or f"test_{uuid4().hex[:16]}"
            if database is None and uri is None:
                stack.push_async_callback(drop_database, server_uri, name)
            converse = Converse(uri or server_uri, database=name, **options)
            await stack.enter_async_context(converse)
            return converse

        yield open_one


async def drop_database(uri: str, name: str) -> None:
    client = open_client(uri, {})
    try:
        await client.drop_database(name)
    finally:
        await close_client(client)


@pytest_asyncio.fixture
async def client(server_uri: str) -> AsyncIterator[Any]:
    """A client of the installed driver, on the shared server."""
    opened = open_client(server_uri, {})
    yield opened
    await close_client(opened)


@pytest_asyncio.fixture
async def converse(facade: Facade) -> Converse:
    """A facade on a real server and a database of its own."""
    opened: Converse = await facade()
    return opened


@pytest.fixture
def commands() -> Commands:
    """A command listener: pass it as ``client_options={"event_listeners": [commands]}``."""
    return Commands()
