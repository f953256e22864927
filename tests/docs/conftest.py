"""What runs the programs of the documentation, on the server of the tests."""

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from pymongo import MongoClient

from tests.docs.blocks import Runner


@pytest.fixture
def runner(tmp_path: Path, server_uri: str) -> Iterator[Runner]:
    prefix = f"docs_{uuid4().hex[:12]}_"
    yield Runner(tmp_path, server_uri, prefix)
    with MongoClient[dict[str, object]](server_uri) as client:
        for name in client.list_database_names():
            if name.startswith(prefix):
                client.drop_database(name)
