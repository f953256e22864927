"""Plays a demonstration: a writer, a viewer from the start, one that joins late, one that dies."""

import contextlib
import json
import queue
import subprocess
import sys
import threading
from typing import IO, Any, Self

from rich.console import Console

from converse_mongo.domain.errors import ConverseError
from converse_mongo.embedded import EmbeddedServer
from converse_mongo.tools.demo.recording import Recording, Seen, StoredMessage, Viewer
from converse_mongo.tools.demo.screen import Screen, print_verdict
from converse_mongo.tools.demo.texts import answer_of, read_text
from converse_mongo.tools.terminal import one_line

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
    recording = Recording(text, len(answer_of(text)), viewers)
    # A terminal only if it is one, whatever the environment says.
    console = Console(force_terminal=sys.stdout.isatty(), highlight=False)
    screen = Screen(console, recording)
    # The processes import what they need while the server starts.
    with contextlib.ExitStack() as stack:
        play = stack.enter_context(_Play(recording, screen))
        if uri is None:
            server = stack.enter_context(EmbeddedServer())
            console.print(f"Embedded server on 127.0.0.1:{server.port}, for this demonstration.")
            uri = server.uri
        try:
            with screen:
                screen.note(f"{recording.total} pieces of {source}, {tokens_per_second:g}/s")
                play.run(uri, database, tokens_per_second)
        except ConverseError as error:
            if not play.message_id:
                raise
            reason = one_line(f"The demonstration broke off: {error}")
            sys.stderr.write(f"converse-mongo: {reason}\n")
            return 1
    print_verdict(console, recording)
    return 1 if any(recording.verdict().values()) else 0


class _Play:
    """The plot. The recording fills while it plays, so that the screen can show it.

    Entering it starts the processes of the beginning, and leaving it ends all.
    """

    def __init__(self, recording: Recording, screen: Screen) -> None:
        self.message_id = ""
        self._screen = screen
        self._recording = recording
        self._first, self._late, self._mortal = recording.viewers
        self._server: tuple[str, str] = ("", "")
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._reports: queue.SimpleQueue[tuple[str, list[Any]]] = queue.SimpleQueue()

    def __enter__(self) -> Self:
        self._start("writer")
        self._start(self._first.name)
        self._start(self._mortal.name)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._running.values():
            process.terminate()
        for process in self._running.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_SECONDS)
            process.kill()
            process.wait()

    def run(self, uri: str, database: str, tokens_per_second: float) -> None:
        """Plays it to the end.

        Raises:
            ConverseError: A process failed, or all were silent for too long.
        """
        self._server = uri, database
        viewers = {viewer.name: viewer for viewer in self._recording.viewers}
        patience = min(PATIENCE + 2 / tokens_per_second, threading.TIMEOUT_MAX)
        self._begin("writer", tokens_per_second)
        try:
            while self._running:
                name, report = self._reports.get(timeout=patience)
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

    def _follow_writer(self, report: list[Any]) -> None:
        recording = self._recording
        match report:
            case ["started", conversation_id, message_id]:
                self.message_id = message_id
                self._screen.note(f"conversation {conversation_id}, message {message_id}")
                self._begin(self._first.name, message_id)
                self._begin(self._mortal.name, message_id)
            case ["written", sequence, sent_at]:
                recording.sent_at[sequence] = sent_at
                if len(recording.sent_at) == (recording.total + 1) // 2:
                    self._start(self._late.name)
                    self._begin(self._late.name, self.message_id)
            case ["finished"]:
                recording.finished = True
            case ["stored", status, content, chunks]:
                recording.stored = StoredMessage(status, content, chunks)
            case ["gone"] if not recording.finished:
                raise ConverseError("the writer ended too early")

    def _follow_viewer(self, viewer: Viewer, report: list[Any]) -> None:
        match report:
            case ["watching", since, mode]:
                viewer.state, viewer.since = "watching", since
                if viewer is self._late:
                    missed = sum(at < since for at in self._recording.sent_at.values())
                    viewer.manner = f"joined after {missed} chunks"
                self._screen.note(f"{viewer.name} follows by {mode}, {viewer.manner}")
                attached = self._first.state == self._mortal.state == "watching"
                if attached and not self._recording.sent_at:
                    self._send_text()
            case ["seen", chunk, received_at]:
                viewer.seen.append(Seen(chunk, received_at, viewer.since))
                if viewer is self._first:
                    self._screen.add(chunk)
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
                self._start(viewer.name)
                self._begin(viewer.name, self.message_id, last)
            case ["gone"] if viewer.state != "done":
                raise ConverseError(f"{viewer.name} ended too early")

    def _start(self, name: str) -> None:
        program = "write" if name == "writer" else "view"
        self._running[name] = process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "converse_mongo.tools.demo.programs", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,  # Ctrl-C in the terminal is for the parent, which ends them
        )
        threading.Thread(target=self._read, args=(name, process.stdout), daemon=True).start()

    def _begin(self, name: str, *arguments: Any) -> None:
        line = json.dumps([*self._server, *arguments]).encode() + b"\n"
        pipe = self._running[name].stdin
        assert pipe is not None  # noqa: S101 - it was started with one
        with contextlib.suppress(OSError):  # the end of its reports tells that it is gone
            pipe.write(line)
            pipe.flush()

    def _read(self, name: str, output: IO[bytes]) -> None:
        for line in output:
            if line.endswith(b"\n"):  # else it was killed in the middle of it
                self._reports.put((name, json.loads(line)))
        self._reports.put((name, ["gone"]))

    def _send_text(self) -> None:
        pipe = self._running["writer"].stdin
        assert pipe is not None  # noqa: S101 - it was started with one
        with contextlib.suppress(OSError), pipe:
            pipe.write(self._recording.text.encode())
