"""What runs the programs of the documentation, on the server of the tests."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import uvicorn
from pymongo import MongoClient
from starlette.routing import Route

from tests.chat.fake_openai import KEY, Fake
from tests.docs.blocks import TIMEOUT, Forks, Runner
from tests.docs.fake_anthropic import answer


@pytest.fixture(scope="session")
def provider() -> Iterator[dict[str, str]]:
    """A server like OpenAI's and Anthropic's; the environment with which the SDKs find it."""
    app = Fake().app
    app.router.routes.append(Route("/v1/messages", answer, methods=["POST"]))
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None)
    server = uvicorn.Server(config)
    serving = threading.Thread(target=server.run, daemon=True)
    serving.start()
    until = time.monotonic() + TIMEOUT
    while not server.started:
        assert time.monotonic() < until, "the provider did not start"
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield {
        "ANTHROPIC_API_KEY": KEY,
        "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{port}",
        "OPENAI_API_KEY": KEY,
        "OPENAI_BASE_URL": f"http://127.0.0.1:{port}/v1",
    }
    server.should_exit = True
    serving.join(TIMEOUT)


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    process = Forks()
    yield process
    process.close()


@pytest.fixture
def runner(tmp_path: Path, server_uri: str, forks: Forks) -> Iterator[Runner]:
    prefix = f"docs_{uuid4().hex[:12]}_"
    yield Runner(tmp_path, server_uri, prefix, forks)
    with MongoClient[dict[str, object]](server_uri) as client:
        for name in client.list_database_names():
            if name.startswith(prefix):
                client.drop_database(name)
