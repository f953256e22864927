"""How one streams answers from workers with PostgreSQL: procrastinate for the jobs, tokens by hand.

procrastinate runs jobs, and has no streams. So a job inserts each token into a table and notifies,
and viewers listen and read what is new. At the end, it saves the finished message.

A worker that is killed leaves its job ``doing`` for ever, unless the application has a periodic
task that looks for jobs of workers without a heartbeat and has them retried: the one here is that
of procrastinate's how-to, "Retry stalled jobs", which runs it each ten minutes and waits 30 s for a
heartbeat. Here it runs each second, which is as often as a periodic task can, and waits as long as
the library's lease.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Any

from benchmarks.children import Child, Children, tell
from benchmarks.workers_programs import one_token

__all__ = ["Recipe"]

PROGRAM = "benchmarks.procrastinate_recipe"
CONCURRENCY = 100
"""As many jobs of a worker at once as the library has by default."""
CONNECTIONS = 4

_TABLES = """
CREATE EXTENSION pg_stat_statements;
CREATE TABLE messages (
  id bigserial PRIMARY KEY, status text NOT NULL DEFAULT 'streaming', content text
);
CREATE TABLE tokens (
  id bigserial PRIMARY KEY, message bigint NOT NULL REFERENCES messages, token text
);
CREATE INDEX ON tokens (message, id);
"""
_START = "INSERT INTO messages DEFAULT VALUES RETURNING id"
_APPEND = """
WITH added AS (INSERT INTO tokens (message, token) VALUES (%s, %s) RETURNING message)
SELECT pg_notify('tokens', message::text) FROM added
"""  # a token that is null is the end
_SAVE = "UPDATE messages SET status = 'completed', content = %s WHERE id = %s"
_READ = "SELECT id, token FROM tokens WHERE message = %s AND id > %s ORDER BY id"
_LISTENING = """
SELECT 1 FROM pg_stat_activity WHERE application_name = %s AND query LIKE 'LISTEN%%'
"""
_CALLS = "SELECT sum(calls) FROM pg_stat_statements"


class Recipe:
    """Messages and tokens in PostgreSQL, and jobs of procrastinate."""

    def __init__(self, url: str, app: Any, pool: Any, respond: str, lease: float) -> None:
        self._url = url
        self._app = app
        self._pool = pool
        self._lease = lease
        self._changed: dict[str, asyncio.Event] = {}
        self._waits = respond != one_token.__name__
        self._task = app.task(self._answer, name="answer")

    @classmethod
    @asynccontextmanager
    async def open(
        cls, url: str, respond: str = one_token.__name__, lease: float = 30.0
    ) -> AsyncIterator["Recipe"]:
        """On the PostgreSQL at ``url``."""
        package, pools = import_module("procrastinate"), import_module("psycopg_pool")
        app = package.App(connector=package.PsycopgConnector(conninfo=url))
        options = {"min_size": CONNECTIONS, "kwargs": {"autocommit": True}, "open": False}
        async with app.open_async(), pools.AsyncConnectionPool(url, **options) as pool:
            yield cls(url, app, pool, respond, lease)

    async def _execute(self, statement: str, *values: Any) -> list[Any]:
        async with self._pool.connection() as connection:
            cursor = await connection.execute(statement, values or None)
            return await cursor.fetchall() if cursor.description else []

    async def create(self) -> None:
        """Creates all tables."""
        await self._app.schema_manager.apply_schema_async()
        await self._execute(_TABLES)

    async def statements(self) -> float:
        """The number of statements so far, of all clients."""
        return float((await self._execute(_CALLS))[0][0])

    # Who asks and views

    async def start(self) -> str:
        """Starts an answer, and returns its key."""
        key = (await self._execute(_START))[0][0]
        await self._task.defer_async(message=key)
        return str(key)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Hears of tokens, with one connection for all viewers of this process."""
        async with self._pool.connection() as connection:
            await connection.execute("LISTEN tokens")
            hearing = asyncio.create_task(self._hear(connection))
            try:
                yield
            finally:
                hearing.cancel()
                await asyncio.wait([hearing])

    async def _hear(self, connection: Any) -> None:
        async for note in connection.notifies():
            if note.payload in self._changed:
                self._changed[note.payload].set()

    async def view(self, key: str) -> AsyncIterator[str]:
        """Yields the tokens of an answer, to its end."""
        changed, last = self._changed.setdefault(key, asyncio.Event()), 0
        try:
            while True:
                changed.clear()
                for number, token in await self._execute(_READ, int(key), last):
                    if token is None:
                        return
                    yield token
                    last = number
                await changed.wait()
        finally:
            self._changed.pop(key, None)

    # The worker

    async def start_worker(self, children: Children, respond: str, lease: float) -> Child:
        """Starts a worker in a process, and returns once it listens."""
        child = await children.start("procrastinate", PROGRAM, self._url, respond, str(lease))
        await child.expect("ready")
        return child

    async def _answer(self, message: int) -> None:
        begun = self._waits and await self._execute(_READ, message, 0)
        await self._execute(_APPEND, message, "token")
        if self._waits and not begun:
            await asyncio.Event().wait()  # until it is killed
        await self._execute(_APPEND, message, None)
        await self._execute(_SAVE, "token", message)

    def _retry_stalled(self) -> None:
        """Has the jobs of workers that died run again."""
        app, lease = self._app, self._lease

        async def retry_stalled_jobs(timestamp: int) -> None:  # noqa: ARG001 - it is passed
            for job in await app.job_manager.get_stalled_jobs(seconds_since_heartbeat=lease):
                await app.job_manager.retry_job(job)

        task = app.task(retry_stalled_jobs, queueing_lock="retry_stalled_jobs")
        app.periodic(cron="* * * * * */1")(task)

    async def run_worker(self, name: str) -> None:
        """Works until it is killed, and tells when it listens."""
        if self._waits:
            self._retry_stalled()
        working = asyncio.create_task(
            self._app.run_worker_async(
                concurrency=CONCURRENCY,
                update_heartbeat_interval=self._lease / 3,
                stalled_worker_timeout=self._lease,
                install_signal_handlers=False,
            )
        )
        while not (working.done() or await self._execute(_LISTENING, name)):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        tell("ready")
        await working


async def main(arguments: Sequence[str]) -> None:
    """Runs a worker, of the answers that ``arguments`` name."""
    url, respond, lease = arguments
    name = f"worker-{os.getpid()}"
    async with Recipe.open(f"{url} application_name={name}", respond, float(lease)) as recipe:
        await recipe.run_worker(name)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
