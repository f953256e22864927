"""Workers: what a claim costs, how soon an answer begins, and how soon another worker goes on.

Each worker has a facade and a client of its own, as in a process of its own, with a change stream.
The answers are of one token, so that the claim is what is measured. Commands are those that the
clients of the workers send, without those of their change streams.

- Claims: a burst of messages on one queue, for 1, 10 and 100 workers.
- Idle: the commands of a worker without a message.
- First token: from the start of a message to its first chunk at a viewer, through a queue, against
  a message that the same process writes at once.
- Hand-over: from the shutdown of a worker in mid-answer to the next chunk from another one; and
  from the death of one, which takes its lease.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from statistics import median, quantiles
from typing import Any

from pymongo import monitoring

from benchmarks.figures import Figure, compare, single
from benchmarks.settings import Setting
from converse_mongo import ChunkReceived, Conversation, Converse, Message, Worker
from converse_mongo.working.attempt import Verdict

__all__ = ["run"]

WORKERS = 1, 10, 100
CLAIMS = 100
ANSWERS = 40
IDLE_SECONDS = 12.0
HAND_OVERS = 5
LEASE = 3.0
COMMANDS_TARGET = 5.0
QUEUED, DIRECT = "through a queue", "written at once"

_OF_STREAMS = frozenset({"getMore", "hello", "ping", "killCursors", "endSessions"})


class Commands(monitoring.CommandListener):
    """Counts the commands of clients, without those of change streams and of connections."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        stages = event.command.get("pipeline", ())
        if event.command_name in _OF_STREAMS or any("$changeStream" in each for each in stages):
            return
        self.counts[event.command_name] += 1

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        pass

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        pass


async def run(setting: Setting) -> list[Figure]:
    """Measures it."""
    found: list[Figure] = []
    for count in WORKERS:
        setting.note(f"claims of {count} workers")
        found += await _claims(setting, count)
    setting.note("an idle worker")
    found.append(await _idle(setting))
    setting.note("first tokens")
    found += await _first_tokens(setting)
    setting.note("hand-overs")
    found += await _hand_overs(setting)
    return found


@asynccontextmanager
async def _workers(
    setting: Setting, database: str, respond: Any, count: int, lease: float = 30.0, **options: Any
) -> AsyncIterator[tuple[list[Worker], Commands]]:
    """Workers that listen, each with a facade of its own."""
    commands = Commands()
    async with AsyncExitStack() as stack:
        workers: list[Worker] = []
        for _ in range(count):
            converse = await stack.enter_async_context(
                Converse(
                    setting.server.uri,
                    database=database,
                    create_indexes=False,
                    lease=lease,
                    client_options={"event_listeners": [commands]},
                )
            )
            worker = await stack.enter_async_context(converse.worker(respond, **options))
            running = asyncio.create_task(worker.run())
            stack.callback(running.cancel)
            workers.append(worker)
            await _until_it_listens(converse, worker)
        yield workers, commands


async def _until_it_listens(converse: Converse, worker: Worker) -> None:
    while not converse.statistics().streams_opened or not worker.statistics().looks:  # noqa: ASYNC110
        await asyncio.sleep(0.01)  # nothing tells


async def _one_token(_: Conversation, message: Message) -> None:
    async with message.writer() as writer:
        await writer.write("token")


async def _claims(setting: Setting, count: int) -> list[Figure]:
    async with setting.database() as database, Converse(setting.server.uri, database) as web:
        begun = asyncio.Semaphore(0)
        let_go = asyncio.Event()

        async def note(_: Conversation, message: Message) -> None:
            begun.release()
            await let_go.wait()
            await message.complete_streaming()

        concurrency = -(-CLAIMS // count) * 2
        options = {"concurrency": concurrency, "poll_interval": 60.0}
        async with _workers(setting, database, note, count, **options) as (_, commands):
            conversation = await web.start_conversation()
            commands.counts.clear()
            since = time.monotonic()
            for _ in range(CLAIMS):
                await conversation.start_streaming_assistant(queue="default")
            for _ in range(CLAIMS):
                await begun.acquire()
            seconds = time.monotonic() - since
            sent = commands.counts.total()
            let_go.set()
            workers = f"{count} worker{'s' if count > 1 else ''}"
            return [
                single(f"enqueue and claim, {workers}", "ms", seconds * 1e3 / CLAIMS),
                single(
                    f"commands of a claim, {workers}", "", sent / CLAIMS, target=COMMANDS_TARGET
                ),
            ]


async def _idle(setting: Setting) -> Figure:
    async with (
        setting.database() as database,
        Converse(setting.server.uri, database),
        _workers(setting, database, _one_token, 1) as (_, commands),
    ):
        await asyncio.sleep(1)  # what the start has left
        commands.counts.clear()
        await asyncio.sleep(IDLE_SECONDS)
        sent = commands.counts.total()
    return single("commands of an idle worker", "a minute", sent * 60 / IDLE_SECONDS)


async def _first_tokens(setting: Setting) -> list[Figure]:
    found: dict[str, list[list[float]]] = {QUEUED: [], DIRECT: []}
    async with (
        setting.database() as database,
        Converse(setting.server.uri, database) as web,
        _workers(setting, database, _one_token, 1),
    ):
        conversation = await web.start_conversation()
        for _ in range(setting.rounds):
            for how, series in found.items():
                times = []
                for _ in range(ANSWERS):
                    since = time.monotonic()
                    queue = "default" if how == QUEUED else None
                    message = await conversation.start_streaming_assistant(queue=queue)
                    if queue is None:
                        writing = asyncio.create_task(_one_token(conversation, message))
                    await _first_chunk(web, message)
                    times.append((time.monotonic() - since) * 1e3)
                    if queue is None:
                        await writing
                series.append(times)
    return [
        compare(
            f"start to first token at a viewer, {name}",
            "ms",
            {how: list(map(of, series)) for how, series in found.items()},
            of=QUEUED,
            against=DIRECT,
        )
        for name, of in (("p50", median), ("p99", _p99))
    ]


def _p99(times: list[float]) -> float:
    return quantiles(times, n=100)[98]


async def _first_chunk(converse: Converse, message: Message, after: int | None = None) -> None:
    async with converse.watch_message(message.id, after) as events:
        async for event in events:
            if isinstance(event, ChunkReceived):
                return


async def _hand_overs(setting: Setting) -> list[Figure]:
    async def respond(_: Conversation, message: Message) -> None:
        async with message.writer() as writer:
            await writer.write("token ")
            await writer.flush()
            await writer.wait_handing_over()
            await writer.detach({})

    def shut_down(worker: Worker) -> None:
        worker.close()

    def die(worker: Worker) -> None:
        # What a killed process leaves: a lease that nobody renews or gives back.
        for attempt in worker._attempts:  # noqa: SLF001 - it has no other way to die
            attempt.cut(Verdict.LOST)

    return [
        single(
            "shutdown to the next token from another worker",
            "ms",
            await _hand_over(setting, respond, shut_down),
        ),
        single(
            f"death to the next token from another worker, with a lease of {LEASE:g} s",
            "ms",
            await _hand_over(setting, respond, die),
        ),
    ]


async def _hand_over(setting: Setting, respond: Any, end: Callable[[Worker], None]) -> float:
    times = []
    async with setting.database() as database, Converse(setting.server.uri, database) as web:
        conversation = await web.start_conversation()
        for _ in range(HAND_OVERS):
            async with _workers(setting, database, respond, 1, LEASE, grace=LEASE) as ((first,), _):
                message = await conversation.start_streaming_assistant(queue="default")
                await _first_chunk(web, message)
                async with _workers(setting, database, respond, 1, LEASE, grace=LEASE):
                    next_chunk = asyncio.create_task(_first_chunk(web, message, 0))
                    since = time.monotonic()
                    end(first)
                    first.close()
                    await next_chunk
                    times.append((time.monotonic() - since) * 1e3)
                    await message.request_stop()
    return median(times)
