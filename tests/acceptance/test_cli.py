"""``converse-mongo tail``, ``doctor`` and ``serve`` as their users run them: real processes."""

import asyncio
import json
import os
import pty
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from bson import ObjectId

from converse_mongo import Converse, WorkState
from converse_mongo.embedded import EmbeddedServer, free_port

SECONDS = 60
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("CONVERSE_")},
    "PYTHONUTF8": "1",
}

Facade = Callable[..., Any]


async def start(*arguments: str, **environment: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "converse_mongo", *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**ENVIRONMENT, **environment},
    )


async def run(*arguments: str, **environment: str) -> tuple[int | None, str, str]:
    """The exit code, the output and the errors of a command."""
    return await finish(await start(*arguments, **environment))


async def finish(process: asyncio.subprocess.Process) -> tuple[int | None, str, str]:
    try:
        async with asyncio.timeout(SECONDS):
            output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode, output.decode(), errors.decode()


def server(converse: Converse, uri: str) -> tuple[str, ...]:
    return "--uri", uri, "--database", converse.database_name


# tail


async def test_tail__writes_the_text_as_it_comes(converse: Converse, server_uri: str) -> None:
    conversation = await converse.start_conversation()
    message = await conversation.start_streaming_assistant()
    await message.append_chunk("Grüße, ")
    process = await start("tail", str(message.id), *server(converse, server_uri))
    assert process.stdout is not None
    async with asyncio.timeout(SECONDS):
        assert await process.stdout.readexactly(len("Grüße, ".encode())) == "Grüße, ".encode()
        await message.append_chunk("世界!")
        assert await process.stdout.readexactly(len("世界!".encode())) == "世界!".encode()
    await message.complete_streaming()
    assert await finish(process) == (0, "", "")


async def test_tail__of_a_failed_message_exits_with_1(converse: Converse, server_uri: str) -> None:
    conversation = await converse.start_conversation()
    message = await conversation.start_streaming_assistant()
    await message.append_chunk("partial")
    await message.fail_streaming("the model went away")
    code, output, errors = await run("tail", str(message.id), *server(converse, server_uri))
    assert (code, output) == (1, "partial")
    assert errors == "converse-mongo: the message failed: the model went away\n"


async def test_tail__of_a_cancelled_message_exits_with_1(
    converse: Converse, server_uri: str
) -> None:
    conversation = await converse.start_conversation()
    message = await conversation.start_streaming_assistant()
    await message.append_chunk("partial")
    await message.request_stop("enough")
    code, output, errors = await run("tail", str(message.id), *server(converse, server_uri))
    assert (code, output) == (1, "partial")
    assert errors == "converse-mongo: the message was cancelled: enough\n"


async def test_tail__writes_events_as_lines_of_json(converse: Converse, server_uri: str) -> None:
    conversation = await converse.start_conversation()
    message = await conversation.start_streaming_assistant()
    await message.append_chunks(["a", "é\n", "c"])
    await message.complete_streaming({"finish_reason": "stop"})
    arguments = ("--json", "--after", "0")
    code, output, _ = await run("tail", str(message.id), *arguments, *server(converse, server_uri))
    assert code == 0
    expected = [event.to_dict() async for event in converse.watch_message(str(message.id), after=0)]
    assert [json.loads(line) for line in output.splitlines()] == expected


async def test_tail__takes_the_server_from_the_environment(
    converse: Converse, server_uri: str
) -> None:
    conversation = await converse.start_conversation()
    message = await conversation.start_streaming_assistant()
    await message.append_chunk("hello")
    await message.complete_streaming()
    environment = {"CONVERSE_URI": server_uri, "CONVERSE_DATABASE": converse.database_name}
    assert await run("tail", str(message.id), **environment) == (0, "hello", "")


async def test_tail__into_a_closed_pipe_ends_quietly(converse: Converse, server_uri: str) -> None:
    conversation = await converse.start_conversation()
    message = await conversation.start_streaming_assistant()
    await message.append_chunk("first")
    reading, writing = os.pipe()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "converse_mongo", "tail", str(message.id)),
        *server(converse, server_uri),
        stdout=writing,
        stderr=asyncio.subprocess.PIPE,
        env=ENVIRONMENT,
    )
    os.close(writing)
    assert await asyncio.to_thread(os.read, reading, 5) == b"first"
    os.close(reading)
    await message.append_chunk("second")
    async with asyncio.timeout(SECONDS):
        _, errors = await process.communicate()
    assert (process.returncode, errors) == (141, b"")
    await message.complete_streaming()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((str(ObjectId()),), "No message has the id"),
        (("nonsense",), "nonsense"),
        ((str(ObjectId()), "--after", "-7"), "-7"),
    ],
)
async def test_tail__that_cannot_begin_says_why_in_one_line(
    server_uri: str, arguments: tuple[str, ...], complaint: str
) -> None:
    code, output, errors = await run(
        "tail", *arguments, "--uri", server_uri, "--database", "test_empty"
    )
    assert (code, output) == (2, "")
    assert complaint in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize("command", ["tail 0123456789abcdef01234567", "doctor"])
async def test_command__without_a_server_asks_for_one(command: str) -> None:
    code, _, errors = await run(*command.split())
    assert code == 2
    assert "--uri" in errors
    assert "CONVERSE_URI" in errors


EVIL = "\x1b]52;c;eA==\x07\x1b[2J\x9b31m\x7f\u202eback\r"
STEERING = set("\x1b\x07\x9b\x7f\u202e\r")


async def test_tail__does_not_let_a_text_steer_the_terminal(
    converse: Converse, server_uri: str
) -> None:
    conversation = await converse.start_conversation()
    message = await conversation.start_streaming_assistant()
    await message.append_chunk(f"text\n{EVIL}")
    await message.fail_streaming(EVIL)
    to = server(converse, server_uri)
    # Anything but a terminal gets what is stored.
    code, output, errors = await run("tail", str(message.id), *to)
    assert (code, output) == (1, f"text\n{EVIL}")
    assert STEERING.isdisjoint(errors)

    _, output, _ = await run("tail", str(message.id), *to, "--json")
    assert STEERING.isdisjoint(output)
    assert json.loads(output.splitlines()[0])["chunk"]["content"] == f"text\n{EVIL}"

    ours, its = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "converse_mongo", "tail", str(message.id), *to),
        stdout=its,
        stderr=its,
        env=ENVIRONMENT,
    )
    os.close(its)
    shown = b""
    with suppress(OSError):  # the terminal is gone with the process
        while data := await asyncio.wait_for(asyncio.to_thread(os.read, ours, 4096), SECONDS):
            shown += data
    os.close(ours)
    assert await process.wait() == 1
    text = shown.decode().replace("\r\n", "\n")  # the terminal itself makes these
    assert STEERING.isdisjoint(text)
    assert text.startswith("text\n␛]52;c;eA==␇␛[2J\\x9b31m␡\\u202eback␍")


# serve


async def test_serve__serves_the_chat_until_it_is_ended(
    converse: Converse, server_uri: str, tmp_path: Path
) -> None:
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        # Elsewhere, it is the installed package and what that has with it.
        *(sys.executable, "-m", "converse_mongo", "serve", "--port", str(port)),
        *server(converse, server_uri),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=ENVIRONMENT,
        cwd=tmp_path,
    )
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
            async with asyncio.timeout(SECONDS):
                assert process.stderr is not None
                while b"running on" not in (line := await process.stderr.readline()):
                    assert line, "it ended"
            assert "<title>Chat</title>" in (await http.get("/")).text
            assert (await http.get("/client/index.js")).status_code == 200
            assert (await http.get("/api/me")).json()["canned"] is True
            begun = await http.post("/api/conversations", json={"title": "Hello"})
        stored = await converse.get_conversation(begun.json()["id"])
        assert stored.title == "Hello"
        process.terminate()
        assert (await finish(process))[0] == 128 + signal.SIGTERM
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@asynccontextmanager
async def serving(
    uri: str, database: str, *arguments: str, **environment: str
) -> AsyncIterator[tuple[asyncio.subprocess.Process, httpx.AsyncClient]]:
    """The chat as a process, and a user of it."""
    port = free_port()
    process = await start(
        *("serve", "--port", str(port), "--uri", uri, "--database", database, *arguments),
        **environment,
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(SECONDS):
            while b"running on" not in (line := await process.stderr.readline()):
                assert line, "it ended"
        base = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=base, timeout=20, trust_env=False) as http:
            assert (await http.get("/api/me")).status_code == 200
            yield process, http
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def connected(http: httpx.AsyncClient, method: str, path: str, *headers: str) -> Any:
    """A connection with a request of which only the head was sent, in a small buffer."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", http.base_url.port))
        _, writer = await asyncio.open_connection(sock=client.dup())
    cookie = f"cookie: chat_session={http.cookies['chat_session']}"
    head = [f"{method} {path} HTTP/1.1", f"host: 127.0.0.1:{http.base_url.port}", cookie, *headers]
    writer.write("\r\n".join([*head, "", ""]).encode())
    return writer


@pytest.mark.parametrize("freezes", [False, True], ids=["MongoDB answers", "MongoDB is frozen"])
async def test_serve__ends_in_time_whatever_clients_and_mongodb_do(
    start_server: Callable[..., EmbeddedServer], freezes: bool
) -> None:
    server = start_server()
    assert server.pid is not None
    uri = f"{server.uri}?retryWrites=false"
    async with serving(uri, "test_ends") as (process, http), AsyncExitStack() as stack:
        begun = (await http.post("/api/conversations", json={})).json()["id"]
        said = {"content": "/long"}  # it takes half a minute
        path = f"/api/conversations/{begun}"
        answer = (await http.post(f"{path}/messages", json=said)).json()["answer"]
        stream = await stack.enter_async_context(http.stream("GET", f"{path}/events"))
        texts = stream.aiter_text()
        while "chunk" not in await anext(texts):
            pass

        sent = ["content-type: application/json", "content-length: 9000"]
        trickling = [
            await connected(http, "POST", "/api/conversations", *sent),
            await connected(http, "POST", "/api/chat", *sent),
        ]
        silent = [await connected(http, "GET", f"{path}/events") for _ in range(3)]

        async def trickle() -> None:
            while True:
                for writer in trickling:
                    writer.write(b" ")
                await asyncio.sleep(0.05)

        dripping = asyncio.create_task(trickle())
        stack.callback(dripping.cancel)
        if freezes:
            os.kill(server.pid, signal.SIGSTOP)
            stack.callback(os.kill, server.pid, signal.SIGCONT)
            # Requests wait for it in all of Motor's threads.
            silent += [await connected(http, "GET", "/api/conversations") for _ in range(20)]
        await asyncio.sleep(0.5)
        process.terminate()
        assert process.stderr is not None
        async with asyncio.timeout(SECONDS):  # without an end of its own, it would take for ever
            log = (await process.stderr.read()).decode()
            code = await process.wait()
        for writer in (*trickling, *silent):
            writer.close()
    assert code == 128 + signal.SIGTERM, log
    assert "Traceback" not in log
    if not freezes:
        async with Converse(uri, "test_ends") as converse:
            left = await converse.get_message(answer["id"])
        assert left.is_streaming, left.status
        assert left.work is not None
        assert left.work.state is WorkState.QUEUED  # the next process goes on with it


async def test_ctrl_c__during_the_imports_ends_in_silence() -> None:
    process = await asyncio.create_subprocess_exec(
        # It tells of each module that is imported.
        *(sys.executable, "-X", "importtime", "-m", "converse_mongo", "serve", "--port", "0"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=ENVIRONMENT,
    )
    assert process.stderr is not None
    async with asyncio.timeout(SECONDS):
        while b" beanie.odm" not in (line := await process.stderr.readline()):
            assert line, "it ended"
    process.send_signal(signal.SIGINT)
    code, _, errors = await finish(process)
    assert code == 130
    assert [line for line in errors.splitlines() if not line.startswith("import time:")] == []


async def test_ctrl_c__ends_the_chat_with_130_and_in_silence(
    converse: Converse, server_uri: str
) -> None:
    async with serving(server_uri, converse.database_name) as (process, http):
        begun = (await http.post("/api/conversations", json={})).json()["id"]
        path = f"/api/conversations/{begun}/messages"
        answer = (await http.post(path, json={"content": "/fail"})).json()["answer"]
        assert process.stderr is not None
        async with asyncio.timeout(SECONDS):
            model, data, stop, failure = [
                (await process.stderr.readline()).decode() for _ in "1234"
            ]
        process.send_signal(signal.SIGINT)
        assert await finish(process) == (130, "", "")
    assert model.startswith("Model: a built-in text")
    assert data == f"Data: at {urlsplit(server_uri).netloc}\n"
    assert "Ctrl-C" in stop
    assert answer["id"] in failure


async def test_server__runs_as_the_examples_expect_it() -> None:
    process = await start("server", "--port", "0")
    assert process.stdout is not None
    try:
        async with asyncio.timeout(SECONDS):
            shown = (await process.stdout.readline()).decode()
        uri = shown.split()[-1]
        assert re.fullmatch(r"mongodb://localhost:\d+/\?replicaSet=rs0", uri)
        async with Converse(uri, "test_server") as converse:
            assert converse.watch_mode == "change_stream"
        port = str(urlsplit(uri).port)
        assert await run("server", "--port", port) == (
            2,
            "",
            f"converse-mongo: The port {port} of 127.0.0.1 cannot be used: "
            "Address already in use.\n",
        )
        process.send_signal(signal.SIGINT)
        code, output, errors = await finish(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert (code, errors) == (130, "")
    assert "in memory" in output


async def test_serve__refuses_other_names_on_the_loopback_interface(
    converse: Converse, server_uri: str
) -> None:
    hosts = {"CHAT_HOSTS": " one.example , two.example:81"}
    arguments = ("--allow-host", "three.example")
    async with serving(server_uri, converse.database_name, *arguments, **hosts) as (_, http):
        port = http.base_url.port
        for host, status in {
            f"localhost:{port}": 200,
            f"[::1]:{port}": 200,
            "one.example": 200,
            "two.example:81": 200,
            "three.example:82": 200,
            f"rebound.example:{port}": 400,
            "two.example": 400,
            "localhost": 400,
        }.items():
            for path in ("/", "/api/me"):
                answer = await http.get(path, headers={"host": host})
                assert answer.status_code == status, host


# doctor


async def test_doctor__finds_no_failure_where_a_facade_was_open(
    converse: Converse, server_uri: str
) -> None:
    conversation = await converse.start_conversation()
    await conversation.add_user_message("hello")
    code, output, errors = await run("doctor", *server(converse, server_uri))
    assert (code, errors) == (0, "")
    assert "fail" not in output
    for subject in ("python", "packages", "server", "topology", "change streams", "oplog"):
        assert f" {subject} " in output
    assert f"{converse.database_name}.messages has all" in output
    assert f"{converse.database_name}.conversations has all" in output


async def test_doctor__changes_nothing(client: Any, server_uri: str) -> None:
    code, output, _ = await run("doctor", "--uri", server_uri, "--database", "test_untouched")
    assert code == 0
    assert "test_untouched.messages does not exist yet" in output
    assert await client["test_untouched"].list_collection_names() == []


async def test_doctor__names_the_index_that_is_missing(
    converse: Converse, client: Any, server_uri: str
) -> None:
    messages = client[converse.database_name]["messages"]
    await messages.drop_index("conversation_position")
    code, output, _ = await run("doctor", *server(converse, server_uri))
    assert code == 1
    assert "messages lacks conversation_position" in output
    assert "create_indexes()" in output


async def test_doctor__warns_that_a_standalone_is_polled(
    start_server: Callable[..., EmbeddedServer],
) -> None:
    standalone = start_server("--standalone")
    code, output, _ = await run("doctor", "--uri", standalone.uri, "--database", "test")
    assert code == 0
    assert "warn  topology" in output
    assert "warn  change streams" in output
    assert "Watchers poll instead" in output


async def test_doctor__says_what_to_do_about_a_server_that_does_not_answer() -> None:
    uri = f"mongodb://127.0.0.1:{free_port()}/test?wtimeoutMS=soon"
    code, output, errors = await run("doctor", "--uri", uri)
    assert (code, errors) == (2, "")
    assert "warn  uri             The value of wtimeoutms must be an integer" in output
    (line,) = [line for line in output.splitlines() if line.startswith("fail  server")]
    assert "Connection refused" in line
    assert "Topology" not in output
    assert "Is MongoDB running" in output
