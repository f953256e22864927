"""Harm: what happens to the server, and to the ways to it."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeAlias

from pymongo.errors import PyMongoError

from tests.faults.proxy import Proxy
from tests.faults.schedules import Fault
from tests.faults.servers import Server

__all__ = ["Does", "Harm"]

Does: TypeAlias = Callable[[Fault], Coroutine[Any, Any, bool]]
"""Does what a fault says; returns whether it came in time."""


class Harm:
    """Does harm to a server and to proxies.

    Args:
        server: The server.
        proxies: By name: that of a fault's target, or a word and a number behind it.
        note: Is told what happens.
    """

    def __init__(
        self, server: Server, proxies: Mapping[str, Proxy], note: Callable[[str], None]
    ) -> None:
        self._server = server
        self._proxies = proxies
        self._note = note
        self._one_at_a_time = asyncio.Lock()

    def does(self, fault: Fault) -> Does | None:
        """What does the harm of a fault; ``None`` if it is of another kind."""
        found: Does | None = getattr(self, f"_do_{fault.kind}", None)
        return found

    async def heal(self) -> None:
        """Ends all of it."""
        for proxy in self._proxies.values():
            proxy.heal()
        await self._server.heal()

    def _proxies_of(self, fault: Fault) -> list[Proxy]:
        return [p for name, p in self._proxies.items() if _is_meant(str(fault.target), name)]

    async def _do_cut(self, fault: Fault) -> bool:
        for proxy in self._proxies_of(fault):
            proxy.cut()
        return True

    async def _do_refuse(self, fault: Fault) -> bool:
        for proxy in self._proxies_of(fault):
            proxy.refusing = True
            proxy.cut()
        await asyncio.sleep(fault.seconds)
        for proxy in self._proxies_of(fault):
            proxy.heal()
        return True

    async def _do_delay(self, fault: Fault) -> bool:
        for proxy in self._proxies_of(fault):
            proxy.delay = 0.1
        await asyncio.sleep(fault.seconds)
        for proxy in self._proxies_of(fault):
            proxy.heal()
        return True

    async def _do_deaf(self, fault: Fault) -> bool:
        lost, then = fault.how.split()
        for proxy in self._proxies_of(fault):
            proxy.deafen(requests=lost != "answers", answers=lost != "requests")
        await asyncio.sleep(fault.seconds)
        for proxy in self._proxies_of(fault):
            proxy.heal(drop=then == "drop")
        return True

    async def _do_failpoint(self, fault: Fault) -> bool:
        try:
            await self._server.fail(fault)
        except PyMongoError as error:
            self._note(f"no failpoint: {error}")
            return False
        return True

    async def _do_kill_server(self, fault: Fault) -> bool:
        async with self._one_at_a_time:
            await self._server.kill()
            await asyncio.sleep(fault.seconds)
            await self._server.start()
            self._note("the server is back")
        return True

    async def _do_freeze_server(self, fault: Fault) -> bool:
        async with self._one_at_a_time:
            self._server.freeze()
            await asyncio.sleep(fault.seconds)
            self._server.thaw()
        return True


def _is_meant(target: str, name: str) -> bool:
    return target in ("all", name, f"{name.partition(' ')[0]}s")
