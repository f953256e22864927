"""``converse-mongo worker`` and ``queue`` as their users run them: real processes."""

import asyncio
import re
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from bson import ObjectId

from converse_mongo import ChunkReceived, Converse, Message, MessageStatus, Queue, ToolCallPart
from converse_mongo.store.message_loads import find_header
from converse_mongo.tools.queues import why_not
from tests.acceptance.test_cli import ENVIRONMENT, SECONDS, finish, run, server

APPLICATION = '''
import asyncio
import os
import threading

from converse_mongo import Conversation, Message


async def respond(conversation: Conversation, message: Message) -> None:
    """Writes four numbers; the first process has to hand over, or to die, in the middle."""
    async with message.writer() as writer:
        first = message.next_sequence
        for number in range(first, 4):
            await writer.write(f"{number} ")
            await writer.flush()
            if number == 1:
                await writer.write(f"pid={os.getpid()} ")
                await writer.flush()
                await writer.wait_handing_over()
                await writer.detach({"next": 2})
                return


async def deaf(conversation: Conversation, message: Message) -> None:
    async with message.writer() as writer:
        await writer.write("0 ")
        await writer.flush()
        await asyncio.Event().wait()


async def traced(conversation: Conversation, message: Message) -> None:
    from opentelemetry import trace

    span = trace.get_current_span()
    async with message.writer() as writer:
        await writer.write(f"recording={span.is_recording()}")


if os.environ.get("TRACED"):
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider

    trace.set_tracer_provider(TracerProvider())


def hangs(conversation: Conversation, message: Message) -> list[str]:
    print("hanging", flush=True)
    threading.Event().wait()
    return []
'''

ONE = Queue("one", per_key=1)


@asynccontextmanager
async def worker(
    directory: Path, target: str, *arguments: str, traced: str = ""
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A worker that is ready."""
    (directory / "app.py").write_text(APPLICATION)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "converse_mongo", "worker", target, *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**ENVIRONMENT, "TRACED": traced},
        cwd=directory,
    )
    try:
        assert (await line_of(process.stderr)).startswith(f"Worker ready: {target} answers ")
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def line_of(stream: asyncio.StreamReader | None) -> str:
    assert stream is not None
    async with asyncio.timeout(SECONDS):
        line = (await stream.readline()).decode()
    assert line, "it ended"
    return line


async def enqueue(converse: Converse, queue: Any = "default", **options: Any) -> Message:
    conversation = await converse.start_conversation()
    return await conversation.start_streaming_assistant(queue=queue, **options)


async def begun(converse: Converse, message: Message) -> int:
    """Waits until the first process cannot go on; returns its id."""
    text = ""
    async with asyncio.timeout(SECONDS), converse.watch_message(message.id) as events:
        async for event in events:
            if isinstance(event, ChunkReceived):
                text += event.chunk.content
            if found := re.search(r"pid=(\d+) ", text):
                return int(found[1])
    raise AssertionError("it ended")


async def ended(converse: Converse, message: Message) -> Message:
    async with asyncio.timeout(SECONDS), converse.watch_message(message.id) as events:
        async for _ in events:
            pass
    return await converse.get_message(message.id)


async def change(converse: Converse, message: Message, fields: Mapping[str, Any]) -> None:
    await converse.message_model.store().messages.update_one(
        {"_id": message.id}, {"$set": dict(fields)}
    )


# worker


@pytest.mark.parametrize("arguments", [("--telemetry",), ()], ids=["on", "off"])
async def test_worker__gives_spans_to_what_the_application_set_up(
    converse: Converse, server_uri: str, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    message = await enqueue(converse)
    where = server(converse, server_uri)
    async with worker(tmp_path, "app:traced", *arguments, *where, traced="yes"):
        assert (await ended(converse, message)).content == f"recording={bool(arguments)}"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)], ids=["sigterm", "ctrl-c"]
)
async def test_worker__that_is_told_to_end_hands_over(
    converse: Converse, server_uri: str, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    message = await enqueue(converse)
    to = (*server(converse, server_uri), "--grace", str(SECONDS))
    async with worker(tmp_path, "app:respond", *to) as first:
        assert await begun(converse, message) == first.pid
        async with worker(tmp_path, "app:respond", *to) as second:
            first.send_signal(number)
            assert await finish(first) == (
                code,
                "",
                f"Handing over 1 message within {SECONDS} s.\n",
            )
            read = await ended(converse, message)
            second.terminate()
            assert await finish(second) == (0, "", "")
    assert (read.status, read.content) == (*(MessageStatus.COMPLETED, f"0 1 pid={first.pid} 3 "),)
    assert read.checkpoint == {"next": 2}
    assert read.work is not None
    assert read.work.attempt == 1


async def test_worker__that_is_killed_is_followed_by_another(
    converse: Converse, server_uri: str, tmp_path: Path
) -> None:
    message = await enqueue(converse, "a")
    to = (*server(converse, server_uri), "--lease", "1", "--queue", "b", "--queue", "a")
    async with worker(tmp_path, "app:respond", *to) as first:
        assert await begun(converse, message) == first.pid
        first.kill()
        assert (await finish(first))[0] == -signal.SIGKILL
    async with worker(tmp_path, "app:respond", *to):
        read = await ended(converse, message)
    assert (read.status, read.content) == (*(MessageStatus.COMPLETED, f"0 1 pid={first.pid} 3 "),)
    assert read.work is not None
    assert (read.work.crashes, read.work.attempt) == (1, 2)


@pytest.mark.parametrize("at_once", [False, True])
async def test_worker__of_one_that_does_not_listen_ends_at_the_second_signal(
    converse: Converse, server_uri: str, tmp_path: Path, at_once: bool
) -> None:
    message = await enqueue(converse)
    to = (*server(converse, server_uri), "--grace", "3600")
    async with worker(tmp_path, "app:deaf", *to) as process:
        async with asyncio.timeout(SECONDS), converse.watch_message(message.id) as events:
            async for event in events:
                if isinstance(event, ChunkReceived):
                    break
        process.send_signal(signal.SIGINT if at_once else signal.SIGTERM)
        if not at_once:
            assert await line_of(process.stderr) == "Handing over 1 message within 3600 s.\n"
        process.terminate()
        # Which of two at once it hears of first is not said.
        assert (await finish(process))[0] in ((0, 128 + signal.SIGINT) if at_once else (0,))
    read = await converse.get_message(message.id)
    assert read.work is not None
    assert (read.content, read.work.state) == ("0 ", "queued")


async def test_worker__ends_though_a_thread_hangs(
    converse: Converse, server_uri: str, tmp_path: Path
) -> None:
    message = await enqueue(converse)
    to = (*server(converse, server_uri), "--grace", "0")
    async with worker(tmp_path, "app:hangs", *to) as process:
        assert await line_of(process.stdout) == "hanging\n"
        process.terminate()
        assert (await finish(process))[0] == 0
    read = await converse.get_message(message.id)
    assert read.work is not None
    assert read.work.state == "queued"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("app:nothing",), "There is no 'nothing' in the module 'app'."),
        (("app:respond", "--queue", "x" * 600), "must have from 1 to 512 bytes"),
        (("app:respond", "--queue", "a", "--concurrency", "0"), "must be an integer greater than"),
    ],
)
async def test_worker__that_cannot_begin_says_why_in_one_line(
    server_uri: str, tmp_path: Path, arguments: tuple[str, ...], complaint: str
) -> None:
    (tmp_path / "app.py").write_text(APPLICATION)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "converse_mongo", "worker", *arguments, "--uri", server_uri),
        *("--database", "test_empty"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=ENVIRONMENT,
        cwd=tmp_path,
    )
    code, output, errors = await finish(process)
    assert (code, output) == (2, "")
    assert complaint in errors
    assert errors.count("\n") == 1


# queue


async def test_queue_list__counts_and_lists(converse: Converse, server_uri: str) -> None:
    to = server(converse, server_uri)
    assert await run("queue", "list", *to) == (0, "No message is queued.\n", "")
    first = await enqueue(converse)
    await change(converse, first, {"created_at": first.created_at - timedelta(hours=5)})
    delayed = await enqueue(converse, delay=3600, max_attempts=7)
    await enqueue(converse, "other")
    code, output, errors = await run("queue", "list", *to)
    assert (code, errors) == (0, "")
    heading, *rows = [line.split() for line in output.splitlines()]
    assert heading == ["queue", "queued", "delayed", "blocked", "running", "waiting", "oldest"]
    assert [row[:6] for row in rows] == [
        ["default", "1", "1", "0", "0", "0"],
        ["other", "1", "0", "0", "0", "0"],
    ]
    arguments = ("--messages", "--queue", "default")
    code, output, errors = await run("queue", "list", *arguments, *to)
    assert (code, errors) == (0, "")
    heading, *rows = [line.split() for line in output.splitlines()]
    assert heading == ["message", "queue", "state", "attempt", "age"]
    assert rows[0] == [str(first.id), "default", "queued", "1", "of", "3", "5", "h"]
    assert rows[1][:6] == [str(delayed.id), "default", "delayed", "1", "of", "7"]
    code, output, _ = await run("queue", "list", *arguments, "--limit", "1", *to)
    assert "There are more than these 1" in output.splitlines()[-1]


async def test_queue_retry__takes_a_delayed_message_at_once_or_says_why_not(
    converse: Converse, server_uri: str
) -> None:
    to = server(converse, server_uri)
    delayed = await enqueue(converse, delay=3600)
    assert await run("queue", "retry", str(delayed.id), *to) == (
        *(0, f"Message {delayed.id} waits for a worker of the queue default.\n", ""),
    )
    jobs = converse.message_model.store().jobs
    (due,) = await jobs.due(["default"], 10)
    assert due.message_id == delayed.id
    assert await run("queue", "retry", str(delayed.id), *to) == (
        *(1, ""),
        f"converse-mongo: Message {delayed.id} cannot be retried: it is not delayed. If no worker "
        "takes it, run one for the queue default.\n",
    )


async def explained(converse: Converse, message: Message) -> str:
    """What the command says of a message, without a process for it."""
    return why_not(await find_header(converse.message_model.store(), message.id))


async def test_queue_retry__knows_each_reason(converse: Converse) -> None:
    running, blocked = [await enqueue(converse, ONE, key="k") for _ in range(2)]
    jobs = converse.message_model.store().jobs
    (due,) = await jobs.due(["one"], 10)
    assert await jobs.claim(due)
    assert await explained(converse, running) == "a worker is at it, in attempt 1."
    assert 'place of its key "k", of which 1 may run' in await explained(converse, blocked)
    conversation = await converse.start_conversation()
    message = await conversation.start_streaming_assistant()
    assert "without a queue" in await explained(converse, message)
    await message.complete_streaming()
    assert "it is completed" in await explained(converse, message)
    waiting = await enqueue(converse)

    async def ask(_: Any, message: Message) -> None:
        async with message.writer() as writer:
            call = await writer.start_tool_call("erase", call_id="call_1")
            await call.set_input({})
            await call.request_approval()
            await writer.suspend()

    async with converse.worker(ask) as worker:
        running_worker = asyncio.create_task(worker.run())
        async with asyncio.timeout(SECONDS):
            while worker.statistics().suspended == 0:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        worker.close()
        await running_worker
    assert "people to answer call_1 (its approval)" in await explained(converse, waiting)
    read = await converse.get_message(waiting.id)
    assert isinstance(read.parts[0], ToolCallPart)


async def test_queue_cancel__ends_what_waits(converse: Converse, server_uri: str) -> None:
    to = server(converse, server_uri)
    message = await enqueue(converse)
    arguments = ("queue", "cancel", str(message.id), "--reason", "not needed", *to)
    assert await run(*arguments) == (0, f"Message {message.id} is cancelled.\n", "")
    read = await converse.get_message(message.id)
    assert (read.status, read.stop_reason) == (MessageStatus.CANCELLED, "not needed")
    code, output, errors = await run(*arguments)
    assert (code, output) == (1, "")
    assert errors == f"converse-mongo: Message {message.id} has ended already: it is cancelled.\n"


# doctor


async def test_doctor__names_stuck_work(converse: Converse, server_uri: str) -> None:
    due = await enqueue(converse)
    first, blocked = [await enqueue(converse, ONE, key="k") for _ in range(2)]
    store = converse.message_model.store()
    (one,) = await store.jobs.due(["one"], 10)
    assert await store.jobs.claim(one)
    long_ago = due.created_at - timedelta(hours=3)
    await change(converse, due, {"work.due": long_ago})
    await change(converse, blocked, {"work.ticket": ObjectId.from_datetime(long_ago)})
    await change(converse, first, {"lease.renewed_at": long_ago})
    await store.places.delete_many({"queue": "one"})
    code, output, errors = await run("doctor", *server(converse, server_uri))
    assert (code, errors) == (0, "")
    found = [line for line in output.splitlines() if line.startswith("warn  queues")]
    assert [re.sub(r"\s+", " ", line) for line in found] == [
        f"warn queues message {due.id} of the queue default is due for 3 h, and no worker has "
        "taken it",
        f"warn queues message {blocked.id} of the queue one is blocked for 3 h, though its key has "
        "a free place",
        f"warn queues message {first.id} of the queue one is running, but the lease of its worker "
        "ran out 2 h ago",
    ]
    assert "Is a worker running? converse-mongo worker MODULE:FUNCTION --queue default" in output
