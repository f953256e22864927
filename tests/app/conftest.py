"""Runs the tests of an application twice: with no server (polling), and on one (change stream)."""

from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
import pytest_asyncio

from converse_mongo import Converse
from tests.conftest import USES_MOTOR, drop_database


@pytest.fixture(params=["mongomock", "server"])
def uri(request: pytest.FixtureRequest) -> str | None:
    """Where the server is; ``None`` for no server."""
    if request.param == "server":
        return str(request.getfixturevalue("server_uri"))
    if not USES_MOTOR:
        pytest.skip("mongomock-motor poses as Motor, so it needs Beanie 1")
    return None


@pytest_asyncio.fixture
async def converse(uri: str | None) -> AsyncIterator[Converse]:
    """What the application is given: a facade that is open."""
    name = f"app_{uuid4().hex[:16]}"
    if uri is not None:
        async with Converse(uri, database=name) as opened:
            yield opened
        await drop_database(uri, name)
        return
    from mongomock_motor import AsyncMongoMockClient

    async with Converse(AsyncMongoMockClient(), database=name, poll_interval=0.01) as opened:
        yield opened
