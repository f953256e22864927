"""The places of the processes of a run of workers, one after the other; and how far it is."""

import asyncio
import contextlib
from typing import Any

from tests.faults.children import Child, Report

__all__ = ["STALL_SECONDS", "Progress", "Slot", "Web", "WebDiedError"]

STALL_SECONDS = 2.0
"""How long a fault waits for tokens that do not come."""


class Slot:
    """A place for processes, one after the other."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lives = 0
        self.child: Child | None = None
        self.is_ready = asyncio.Event()
        self.was_killed = self.has_left = self.may_die = self.stands_still = False
        self.pause = 0.0
        self.runs: set[tuple[int, int, int]] = set()

    @property
    def is_busy(self) -> bool:
        return bool(self.runs) and not (self.was_killed or self.stands_still)

    def order(self, **order: Any) -> None:
        if self.child is not None:
            self.child.order(**order)

    def kill(self, pause: float) -> bool:
        if self.child is None or self.was_killed:
            return False
        self.was_killed, self.pause = True, pause
        self.child.kill()
        return True

    async def stand_still(self, seconds: float) -> bool:
        child = self.child
        if child is None:
            return False
        child.pause()
        self.stands_still = True
        await asyncio.sleep(seconds)
        child.resume()
        self.stands_still = False
        return True

    def resume(self) -> None:
        if self.child is not None:
            self.child.resume()

    def died(self) -> None:
        self.child = None
        self.is_ready.clear()
        self.runs.clear()


class Web(Slot):
    """A place for web processes, which answer."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._replies: dict[int, asyncio.Future[Report]] = {}
        self._asked = 0

    async def ask(self, do: str, **order: Any) -> Report:
        """Has it do something.

        Raises:
            WebDiedError: It died.
        """
        self._asked += 1
        number = self._asked
        reply = self._replies[number] = asyncio.get_running_loop().create_future()
        self.order(do=do, id=number, **order)
        found: Report = await reply
        return found

    def replied(self, report: Report) -> None:
        if not (reply := self._replies.pop(report["id"])).done():
            reply.set_result(report)

    def died(self) -> None:
        super().died()
        replies, self._replies = self._replies, {}
        for reply in replies.values():
            if not reply.done():  # nobody waits for it any more
                reply.set_exception(WebDiedError())


class WebDiedError(Exception):
    """A web process died before it answered."""


class Progress:
    """How many of all tokens were written; who waits goes on as well while none comes."""

    def __init__(self, goal: int) -> None:
        self._goal = goal
        self._written = 0
        self._is_finished = False
        self._news = asyncio.Event()

    def advance(self) -> None:
        self._written += 1
        self._wake()

    def finish(self) -> None:
        self._is_finished = True
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def reaches(self, at: float) -> None:
        while not self._is_finished and self._written < at * self._goal:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STALL_SECONDS):
                    await self._news.wait()
                continue
            if self._written:
                return
