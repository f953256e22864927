"""Shielded tasks: work that is finished in spite of cancellations.

A loop that ends cancels all of its tasks, and then waits for them: text can still be stored, and a
message be ended, if the tasks that do so continue.
"""

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any

from converse_mongo.domain.errors import ConverseClosedError

MAX_CANCELLATIONS = 100


class ShieldedTask:
    """A task that continues when it is cancelled, and that inherits no context of its caller.

    Storing text must not depend on a deadline that the caller set for something else.

    Args:
        work: Makes the work; a second coroutine must continue where the first was cancelled.
        name: The name of the task.
        cancelled: Called each time that the task was cancelled.
    """

    def __init__(
        self,
        work: Callable[[], Coroutine[Any, Any, None]],
        name: str,
        cancelled: Callable[[], None] = lambda: None,
    ) -> None:
        self._work = work
        self._name = name
        self._cancelled = cancelled
        self._task = self._start()

    def _start(self) -> asyncio.Task[None]:
        return asyncio.create_task(self._persist(), name=self._name, context=Context())

    async def _persist(self) -> None:
        for _ in range(MAX_CANCELLATIONS):
            try:
                return await self._work()
            except asyncio.CancelledError:
                self._cancelled()
                task = asyncio.current_task()
                if task is not None:
                    task.uncancel()
        raise ConverseClosedError("A writer was cancelled repeatedly: its loop is ending.")

    @property
    def done(self) -> bool:
        """True once the work is finished."""
        return self._task.done() and not self._task.cancelled()

    def interrupt(self) -> None:
        """Cancels the current wait of the work, which then continues, unless it ends."""
        self._task.cancel()

    async def wait(self) -> None:
        """Waits until the work is finished; raises nothing but the caller's own cancellation."""
        while not self.done:
            if self._task.cancelled():  # before its first step, so that it never ran
                self._cancelled()
                self._task = self._start()
            await asyncio.wait({self._task})

    async def finish(self) -> None:
        """Waits until the work is finished, even if the caller is cancelled.

        Raises:
            CancelledError: The caller was; the work is finished.
            Exception: What the work raised.
        """
        cancelled: asyncio.CancelledError | None = None
        while not self.done:
            try:
                await self.wait()
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled from self._task.exception()
        self._task.result()
