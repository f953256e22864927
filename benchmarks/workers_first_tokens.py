"""From the POST of a question to the first token of its answer, over HTTP.

A browser has the stream of a conversation open and posts questions to it, one after the other. All
ways have the same web process, stream and ``respond``:

- through a queue: ``routes(generations=Queue(...))``, with a worker in another process;
- in the web process: ``routes(generations=Generations(respond))``;
- written at once: a route by hand that adds the question, starts the message and writes to it in a
  task. It is the floor: nobody sees such an answer through.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from statistics import median, quantiles
from typing import Self

import httpx

from benchmarks.children import Children
from benchmarks.figures import BenchmarkError, Figure, compare
from benchmarks.settings import Setting
from benchmarks.workers_programs import BARE, GENERATIONS, PROGRAMS, QUEUE, one_token
from converse_mongo import Converse

__all__ = ["measure", "p99"]

ANSWERS = 40
LEASE = "30"
PATIENCE = 60.0
WAYS = {QUEUE: "through a queue", GENERATIONS: "in the web process", BARE: "written at once"}
PAIRS = (QUEUE, GENERATIONS), (QUEUE, BARE), (GENERATIONS, BARE)


async def measure(setting: Setting) -> list[Figure]:
    """Measures it."""
    async with (
        setting.database() as database,
        Converse(setting.server.uri, database) as converse,
        Children(setting.server.uri) as children,
        AsyncExitStack() as stack,
    ):
        arguments = database, one_token.__name__, LEASE
        web = await children.start("web process", PROGRAMS, "serve", *arguments)
        worker = await children.start("worker", PROGRAMS, "work", *arguments)
        port = (await web.expect("ready"))["port"]
        await worker.expect("ready")
        browsers = {}
        for way in WAYS:
            conversation = await converse.start_conversation()
            url = f"http://127.0.0.1:{port}/{way}/conversations/{conversation.id}"
            browsers[way] = await stack.enter_async_context(Browser(url))
            await browsers[way].ask()  # the first one opens connections
        series: dict[str, list[list[float]]] = {way: [] for way in WAYS}
        for number in range(setting.rounds):
            names = list(WAYS)
            first = number % len(names)
            for way in names[first:] + names[:first]:
                series[way].append([await browsers[way].ask() * 1e3 for _ in range(ANSWERS)])
    return [
        compare(
            f"POST to first token, {name}",
            "ms",
            {WAYS[way]: [of(times) for times in rounds] for way, rounds in series.items()},
            of=WAYS[mine],
            against=WAYS[other],
        )
        for mine, other in PAIRS
        for name, of in (("p50", median), ("p99", p99))
    ]


def p99(times: list[float]) -> float:
    """The time that one in a hundred exceeds."""
    return quantiles(times, n=100)[98]


class Browser:
    """Watches a conversation, and asks.

    Args:
        url: The conversation.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._client = httpx.AsyncClient(timeout=PATIENCE)
        self._stack = AsyncExitStack()
        self._lines: AsyncIterator[str]

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self._client)
        stream = self._client.stream("GET", f"{self._url}/events")
        response = await self._stack.enter_async_context(stream)
        self._lines = response.raise_for_status().aiter_lines()
        await anext(self._lines)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def ask(self) -> float:
        """Asks, and returns the seconds to the first token, once the answer has ended."""
        question = {"content": "How do I read a file?"}
        since = time.monotonic()
        asking = asyncio.create_task(self._client.post(f"{self._url}/messages", json=question))
        await self._see("chunk.received")
        seconds = time.monotonic() - since
        (await asking).raise_for_status()
        await self._see("message.completed")
        return seconds

    async def _see(self, event: str) -> None:
        async for line in self._lines:
            if line == f"event: {event}":
                return
        raise BenchmarkError(f"The stream ended before {event}.")
