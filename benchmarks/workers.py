"""Workers: what a claim costs, how soon an answer begins, and how soon another process goes on.

- Claims: two bursts of messages on one queue, for 1, 10 and 100 workers. In the first one the
  workers do not know yet how many they are. Each has a facade and a
  client of its own, with a change stream, as in a process of its own. Commands are those of these
  clients, without those of change streams. No message has a key: a place of a limited key is taken
  by commands of its own.
- Idle: the commands of a worker, and of a web process with ``Generations``, without a message.
- First token: see :mod:`benchmarks.workers_first_tokens`.
- Hand-over: see :mod:`benchmarks.workers_hand_overs`.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from pymongo import monitoring

from benchmarks import workers_first_tokens, workers_hand_overs
from benchmarks.figures import Figure, single
from benchmarks.settings import Setting
from benchmarks.workers_programs import one_token, until_it_listens
from converse_mongo import Conversation, Converse, Message
from converse_mongo.web import Generations

__all__ = ["run"]

WORKERS = 1, 10, 100
CLAIMS = 100
COMMANDS_TARGET = 5.0
ENDED_AT_ONCE = 8
IDLE_SECONDS = 30.0
SELDOM: dict[str, Any] = {"lease": 1800.0, "check_interval": 600.0}
"""So that no command is counted that a worker sends because time passes: it passes slower on a slow
server. What those are is told of an idle worker."""

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
    for what, idle in IDLE.items():
        setting.note(f"idle, {what}")
        found.append(await _idle(setting, what, idle))
    setting.note("first tokens")
    found += await workers_first_tokens.measure(setting)
    setting.note("hand-overs")
    found += await workers_hand_overs.measure(setting)
    return found


async def _claims(setting: Setting, count: int) -> list[Figure]:
    begun, ended = asyncio.Semaphore(0), asyncio.Semaphore(0)
    let_go, ending = asyncio.Event(), asyncio.Semaphore(ENDED_AT_ONCE)

    async def note(_: Conversation, message: Message) -> None:
        begun.release()
        await let_go.wait()
        async with ending:
            await message.complete_streaming()
        ended.release()

    async with setting.database() as database, Converse(setting.server.uri, database) as web:
        since = time.monotonic()
        async with _workers(setting, database, note, count) as commands:
            opening = time.monotonic() - since
            conversation = await web.start_conversation()
            sent: list[int] = []
            for _ in range(2):
                commands.counts.clear()
                since, used = time.monotonic(), setting.server.cpu_seconds()
                for _ in range(CLAIMS):
                    await conversation.start_streaming_assistant(queue="default")
                for _ in range(CLAIMS):
                    await begun.acquire()
                seconds, until = time.monotonic() - since, setting.server.cpu_seconds()
                sent.append(commands.counts.total())
            let_go.set()
            for _ in range(2 * CLAIMS):
                await ended.acquire()
    workers = f"{count} worker{'s' if count > 1 else ''}"
    found = [
        single(f"until all listen, {workers}", "s", opening),
        single(f"enqueue and claim, {workers}", "ms", seconds * 1e3 / CLAIMS),
    ]
    if used is not None and until is not None:
        name = f"server time of enqueue and claim, {workers}"
        found.append(single(name, "ms", (until - used) * 1e3 / CLAIMS))
    for which, commands_sent in zip((f"the first {CLAIMS}", "later"), sent, strict=True):
        name = f"commands of a claim, {workers}, {which}"
        found.append(single(name, "", commands_sent / CLAIMS, target=COMMANDS_TARGET))
    return found


@asynccontextmanager
async def _workers(
    setting: Setting, database: str, respond: Any, count: int
) -> AsyncIterator[Commands]:
    """Workers that listen, each with a facade of its own."""
    commands = Commands()
    async with AsyncExitStack() as stack:
        for _ in range(count):
            converse = await stack.enter_async_context(_facade(setting, database, commands, SELDOM))
            worker = await stack.enter_async_context(
                converse.worker(respond, concurrency=-(-CLAIMS // count) * 4, poll_interval=60.0)
            )
            running = asyncio.create_task(worker.run())
            stack.callback(running.cancel)
            await until_it_listens(converse, worker)
        yield commands


def _facade(
    setting: Setting, database: str, commands: Commands, options: dict[str, Any]
) -> Converse:
    return Converse(
        setting.server.uri,
        database=database,
        create_indexes=False,
        client_options={"event_listeners": [commands]},
        **options,
    )


@asynccontextmanager
async def _idle_worker(converse: Converse) -> AsyncIterator[None]:
    async with converse.worker(one_token) as worker:
        running = asyncio.create_task(worker.run())
        yield
        running.cancel()


@asynccontextmanager
async def _idle_generations(converse: Converse) -> AsyncIterator[None]:
    generations = Generations(one_token)
    generations.serve(converse)
    async with generations:
        yield


IDLE = {"a worker": _idle_worker, "a web process with Generations": _idle_generations}


async def _idle(setting: Setting, what: str, idle: Any) -> Figure:
    commands = Commands()
    async with (
        setting.database() as database,
        Converse(setting.server.uri, database),
        _facade(setting, database, commands, {}) as converse,
        idle(converse),
    ):
        while not converse.statistics().streams_opened:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.01)
        await asyncio.sleep(1)  # what the start has left
        commands.counts.clear()
        await asyncio.sleep(IDLE_SECONDS)
        sent = commands.counts.total()
    return single(f"commands of {what}, idle", "a minute", sent * 60 / IDLE_SECONDS)
