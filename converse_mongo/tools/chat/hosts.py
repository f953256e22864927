"""Hosts and origins: the names under which the chat is served, and the pages that may use it."""

import ipaddress
import re
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection

from converse_mongo import ConfigurationError

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
DEFAULT_PORTS = {"http": 80, "https": 443}

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::([0-9]{1,5}))?")
_ORIGIN = re.compile(rf"(https?)://{_HOST.pattern}")


class Hosts:
    """The names under which the chat is served.

    A page of another site can make its own name point to the loopback interface, and is then of the
    same origin for browsers. Only the ``Host`` header tells: it has that name.

    Args:
        names: Names, each with or without a port; without one, with every port.

    Raises:
        ConfigurationError: A name is invalid.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._known: set[tuple[str, int | None]] = set()
        for name in names:
            if (found := _HOST.fullmatch(name.lower())) is None:
                raise ConfigurationError(
                    f"{name!r} is not a host: pass one such as chat.example.com or [::1]:8000."
                )
            self._known.add((found[1], int(found[2]) if found[2] else None))

    def serve(self, connection: HTTPConnection) -> bool:
        """Reports whether a request names one of them."""
        found = _named_host(connection.headers, scheme_of(connection))
        return found is not None and (found in self._known or (found[0], None) in self._known)


def loopback_hosts(host: str, port: int) -> tuple[str, ...]:
    """Returns the names of a server that listens on an address; none if it is not a loopback one.

    Args:
        host: The address, or its name.
        port: The port; 0 for any.
    """
    name = f"[{host}]" if ":" in host else host.lower()
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = name == "localhost"
    if not local:
        return ()
    return tuple(f"{each}:{port}" if port else each for each in {*LOOPBACK, name})


def is_same_origin(connection: HTTPConnection) -> bool:
    """Reports whether a request comes from a page of this server, or from no page.

    Browsers send ``Origin`` with each request that can change something. Programs that are not
    browsers do not, nor ``Sec-Fetch-Site``.
    """
    headers = connection.headers
    if headers.getlist("sec-fetch-site") not in ([], ["same-origin"]):
        return False
    origins = headers.getlist("origin")
    if not origins:
        return True
    scheme = scheme_of(connection)
    if len(origins) > 1 or (found := _ORIGIN.fullmatch(origins[0].lower())) is None:
        return False
    port = int(found[3]) if found[3] else DEFAULT_PORTS[found[1]]
    return found[1] == scheme and (found[2], port) == _named_host(headers, scheme)


def scheme_of(connection: HTTPConnection) -> str:
    """Returns "http" or "https", as far as the server knows: a proxy may have to tell it."""
    return "https" if connection.scope["scheme"] in ("https", "wss") else "http"


def _named_host(headers: Headers, scheme: str) -> tuple[str, int] | None:
    hosts = headers.getlist("host")
    if len(hosts) != 1 or (found := _HOST.fullmatch(hosts[0].lower())) is None:
        return None
    return found[1], int(found[2]) if found[2] else DEFAULT_PORTS[scheme]
