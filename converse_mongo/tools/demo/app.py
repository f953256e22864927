"""Plays a demonstration: a writer, a viewer from the start, one that joins late, one that dies."""

import asyncio
import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from typing import IO, Any

from pymongo.errors import PyMongoError
from rich.console import Console

from converse_mongo.converse import Converse
from converse_mongo.domain.errors import ConverseError
from converse_mongo.embedded import EmbeddedServer
from converse_mongo.tools.demo.recording import Recording, Seen, StoredMessage, Viewer
from converse_mongo.tools.demo.screen import Screen, print_verdict
from converse_mongo.tools.demo.texts import read_text, tokenise

END_SECONDS = 3.0
PATIENCE = 45.0


def run(uri: str | None, database: str, path: str | None, tokens_per_second: float) -> int:
    """Runs a demonstration and returns its exit code: 0 if every text was equal, else 1.

    Without ``uri`` it starts an embedded server. ``path`` is as for ``read_text``.

    Raises:
        ConverseError: It could not begin: no text, no server.
    """
    text, source = read_text(path)
    viewers = [Viewer(f"viewer {number}") for number in (1, 2, 3)]
    recording = Recording(text, len(tokenise(text)), viewers)
    # A terminal only if it is one, whatever the environment says.
    console = Console(force_terminal=sys.stdout.isatty(), highlight=False)
    with contextlib.ExitStack() as stack:
        if uri is None:
            server = stack.enter_context(EmbeddedServer())
            console.print(f"Embedded server on 127.0.0.1:{server.port}, for this demonstration.")
            uri = server.uri
        play = _Play(recording, Screen(console, recording), uri, database)
        try:
            with play.screen:
                play.screen.note(f"{recording.total} tokens of {source}, {tokens_per_second:g}/s")
                play.run(tokens_per_second)
            recording.stored = asyncio.run(_read_back(uri, database, play.message_id))
        except (ConverseError, PyMongoError) as error:
            if not play.message_id:
                raise
            sys.stderr.write(f"converse-mongo: The demonstration broke off: {error}\n")
            return 1
    print_verdict(console, recording)
    return 1 if any(recording.verdict().values()) else 0


async def _read_back(uri: str, database: str, message_id: str) -> StoredMessage:
    async with Converse(uri, database, create_indexes=False) as converse:
        message = await converse.get_message(message_id)
        chunks = [(chunk.sequence, chunk.content) async for chunk in message.iter_chunks()]
    return StoredMessage(message.status.value, message.content, chunks)


class _Play:
    """The plot. The recording fills while it plays, so that the screen can show it."""

    def __init__(self, recording: Recording, screen: Screen, uri: str, database: str) -> None:
        self.screen = screen
        self.message_id = ""
        self._recording = recording
        self._first, self._late, self._mortal = recording.viewers
        self._database = database
        self._environment = {**os.environ, "CONVERSE_URI": uri}
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._reports: queue.SimpleQueue[tuple[str, list[Any]]] = queue.SimpleQueue()

    def run(self, tokens_per_second: float) -> None:
        """Plays it to the end, and ends all processes in every case.

        Raises:
            ConverseError: A process failed, or all were silent for too long.
        """
        viewers = {viewer.name: viewer for viewer in self._recording.viewers}
        try:
            self._start("writer", "write", self._database, str(tokens_per_second))
            while self._running:
                name, report = self._reports.get(timeout=PATIENCE + 2 / tokens_per_second)
                if report[0] == "failed":
                    raise ConverseError(report[1])
                if report[0] == "gone":
                    self._running.pop(name).wait()
                if name == "writer":
                    self._follow_writer(report)
                else:
                    self._follow_viewer(viewers[name], report)
        except queue.Empty:
            raise ConverseError("all processes were silent for too long") from None
        finally:
            for process in self._running.values():
                process.terminate()
            for process in self._running.values():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(END_SECONDS)
                process.kill()
                process.wait()

    def _follow_writer(self, report: list[Any]) -> None:
        recording = self._recording
        match report:
            case ["started", conversation_id, message_id]:
                self.message_id = message_id
                self.screen.note(f"conversation {conversation_id}, message {message_id}")
                self._watch(self._first)
                self._watch(self._mortal)
            case ["written", sequence, sent_at]:
                recording.sent_at[sequence] = sent_at
                if len(recording.sent_at) == (recording.total + 1) // 2:
                    self._watch(self._late)
            case ["finished"]:
                recording.finished = True
            case ["gone"] if not recording.finished:
                raise ConverseError("the writer ended too early")

    def _follow_viewer(self, viewer: Viewer, report: list[Any]) -> None:
        match report:
            case ["watching", since, mode]:
                viewer.state, viewer.since = "watching", since
                if viewer is self._late:
                    missed = sum(at < since for at in self._recording.sent_at.values())
                    viewer.manner = f"joined after {missed} chunks"
                self.screen.note(f"{viewer.name} follows by {mode}, {viewer.manner}")
                attached = self._first.state == self._mortal.state == "watching"
                if attached and not self._recording.sent_at:
                    self._send_text()
            case ["seen", sequence, content, received_at]:
                viewer.seen.append(Seen(sequence, content, received_at, viewer.since))
                if viewer is self._first:
                    self.screen.grow(content)
                if viewer is self._mortal and len(viewer.seen) == 1 + self._recording.total // 3:
                    self._running[viewer.name].kill()
                    viewer.state = "killed"
            case ["ended", event_type]:
                viewer.end = event_type
                if viewer.state == "watching":
                    viewer.state = "done"
            case ["gone"] if viewer.state == "killed":
                last = viewer.seen[-1].sequence
                viewer.manner = f"killed at {last}, resumed"
                self._watch(viewer, str(last))
            case ["gone"] if viewer.state != "done":
                raise ConverseError(f"{viewer.name} ended too early")

    def _watch(self, viewer: Viewer, *after: str) -> None:
        self._start(viewer.name, "view", self._database, self.message_id, *after)

    def _start(self, name: str, *arguments: str) -> None:
        self._running[name] = process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "converse_mongo.tools.demo.programs", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=self._environment,
            process_group=0,  # Ctrl-C in the terminal is for the parent, which ends them
        )
        threading.Thread(target=self._read, args=(name, process.stdout), daemon=True).start()

    def _read(self, name: str, output: IO[bytes]) -> None:
        for line in output:
            if line.endswith(b"\n"):  # else it was killed in the middle of it
                self._reports.put((name, json.loads(line)))
        self._reports.put((name, ["gone"]))

    def _send_text(self) -> None:
        pipe = self._running["writer"].stdin
        assert pipe is not None  # noqa: S101 - it was started with one
        with contextlib.suppress(OSError), pipe:  # the end of its reports tells that it is gone
            pipe.write(self._recording.text.encode())
