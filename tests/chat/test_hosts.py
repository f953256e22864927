"""The names of its host that the chat answers to."""

import pytest

from converse_mongo import ConfigurationError
from converse_mongo.tools.chat.hosts import Hosts, loopback_hosts


@pytest.mark.parametrize(
    ("host", "port", "names"),
    [
        ("127.0.0.1", 8000, {"localhost:8000", "127.0.0.1:8000", "[::1]:8000"}),
        ("localhost", 80, {"localhost:80", "127.0.0.1:80", "[::1]:80"}),
        ("::1", 8000, {"localhost:8000", "127.0.0.1:8000", "[::1]:8000"}),
        ("127.0.0.9", 1, {"localhost:1", "127.0.0.1:1", "[::1]:1", "127.0.0.9:1"}),
        ("127.0.0.1", 0, {"localhost", "127.0.0.1", "[::1]"}),
        ("0.0.0.0", 8000, set()),  # noqa: S104 - nothing listens
        ("::", 8000, set()),
        ("192.168.1.5", 8000, set()),
        ("chat.example.com", 8000, set()),
    ],
)
def test_loopback__has_its_names_and_port(host: str, port: int, names: set[str]) -> None:
    assert set(loopback_hosts(host, port)) == names


@pytest.mark.parametrize("name", ["", "http://localhost", "a b", "*", "localhost:", "localhost/x"])
def test_host__that_is_none_is_refused_at_the_start(name: str) -> None:
    with pytest.raises(ConfigurationError, match="is not a host"):
        Hosts([name])
