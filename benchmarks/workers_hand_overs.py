"""How soon another process goes on with an answer whose process is ended or killed.

The processes are workers, or web processes with ``Generations``. One writes a token and waits; a
second one has nothing to do. The first gets SIGTERM, as at a deployment, and hands over; or
SIGKILL, and its lease has to run out. The time is that to the next token at a viewer.
"""

import asyncio
import signal
import time
from statistics import median

import httpx

from benchmarks.children import Child, Children
from benchmarks.figures import Figure, single
from benchmarks.settings import Setting
from benchmarks.workers_programs import GENERATIONS, PROGRAMS, token_and_wait
from converse_mongo import ChunkReceived, Conversation, Converse

__all__ = ["LEASE", "first_chunk", "measure"]

LEASE = 3.0
HAND_OVERS = 5
KINDS = {"work": "a worker", "serve": "a web process with Generations"}
SIGNALS = {
    signal.SIGTERM: "SIGTERM of {} to the next token from another one",
    signal.SIGKILL: f"SIGKILL of {{}} to the next token, with a lease of {LEASE:g} s",
}


async def measure(setting: Setting) -> list[Figure]:
    """Measures it."""
    found = []
    for program, kind in KINDS.items():
        for number, name in SIGNALS.items():
            milliseconds = await _hand_over(setting, program, number)
            found.append(single(name.format(kind), "ms", milliseconds))
    return found


async def _hand_over(setting: Setting, program: str, number: signal.Signals) -> float:
    times = []
    async with (
        setting.database() as database,
        Converse(setting.server.uri, database) as converse,
        Children(setting.server.uri) as children,
    ):
        conversation = await converse.start_conversation()

        async def start() -> tuple[Child, int]:
            arguments = program, database, token_and_wait.__name__, str(LEASE)
            child = await children.start(KINDS[program], PROGRAMS, *arguments)
            return child, (await child.expect("ready")).get("port", 0)

        first, port = await start()
        for _ in range(HAND_OVERS):
            answer = await _ask(conversation, port)
            await first_chunk(converse, answer)
            second, next_port = await start()
            next_chunk = asyncio.create_task(first_chunk(converse, answer, 0))
            since = time.monotonic()
            first.signal(number)
            await next_chunk
            times.append((time.monotonic() - since) * 1e3)
            await first.end()
            first, port = second, next_port
    return median(times)


async def _ask(conversation: Conversation, port: int) -> str:
    """Starts an answer in the web process, or in the queue if there is none; returns its id."""
    if not port:
        message = await conversation.start_streaming_assistant(queue="default")
        return str(message.id)
    url = f"http://127.0.0.1:{port}/{GENERATIONS}/conversations/{conversation.id}/messages"
    async with httpx.AsyncClient() as client:
        response = await client.post(url, json={"content": "How do I read a file?"})
    answer: str = response.raise_for_status().json()["answer"]["id"]
    return answer


async def first_chunk(converse: Converse, message_id: str, after: int | None = None) -> None:
    """Returns once a viewer has the first chunk behind a sequence."""
    async with converse.watch_message(message_id, after) as events:
        async for event in events:
            if isinstance(event, ChunkReceived):
                return
