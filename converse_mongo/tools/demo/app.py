"""Plays a demonstration: workers of which one dies, and viewers of which one joins, one dies."""

import contextlib
import queue
import signal
import sys
import threading
from typing import Any, Self

from rich.console import Console

from converse_mongo.domain.errors import ConverseError
from converse_mongo.embedded import EmbeddedServer
from converse_mongo.tools.demo.children import Children
from converse_mongo.tools.demo.recording import (
    Recording,
    Seen,
    StoredMessage,
    Viewer,
    Worker,
)
from converse_mongo.tools.demo.screen import Screen, print_verdict
from converse_mongo.tools.demo.texts import answer_of, read_text, tokenise
from converse_mongo.tools.terminal import one_line

ASKER = "asker"
PATIENCE = 45.0


def run(uri: str | None, database: str, path: str | None, tokens_per_second: float) -> int:
    """Runs a demonstration and returns its exit code: 0 if every text was equal, else 1.

    Without ``uri`` it starts an embedded server. ``path`` is as for ``read_text``.

    Raises:
        ConverseError: It could not begin: no text, no server.
    """
    text, source = read_text(path)
    viewers = [Viewer(f"viewer {number}") for number in (1, 2, 3)]
    workers = [
        Worker("worker 1", "killed (SIGKILL)"),
        Worker("worker 2", "ended (SIGTERM)"),
        Worker("worker 3", "goes on to the end"),
    ]
    recording = Recording(text, len(answer_of(text)), viewers, workers)
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
        self._killed, self._told, self._last = recording.workers
        text = len(tokenise(recording.text))
        # The workers live or die in the text, behind the other parts. Each waits at a later token,
        # so that a fast one does not escape.
        self._deaths = [recording.total - text + text * number // 10 for number in (5, 6, 7, 8)]
        self._server: tuple[str, str] = ("", "")
        self._arguments: dict[str, tuple[float, int]] = {}
        self._stack = contextlib.ExitStack()
        self._children = Children()
        self._left = {ASKER, *(each.name for each in recording.workers)}
        self._left |= {each.name for each in recording.viewers}

    def __enter__(self) -> Self:
        self._stack.enter_context(self._children)
        self._children.start(ASKER, "post")
        for worker in self._recording.workers:
            self._children.start(worker.name, "work")
        self._children.start(self._first.name, "view")
        self._children.start(self._mortal.name, "view")
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, uri: str, database: str, tokens_per_second: float) -> None:
        """Plays it to the end.

        Raises:
            ConverseError: A process failed, or all were silent for too long.
        """
        self._server = uri, database
        viewers = {viewer.name: viewer for viewer in self._recording.viewers}
        workers = {worker.name: worker for worker in self._recording.workers}
        patience = min(PATIENCE + 2 / tokens_per_second, threading.TIMEOUT_MAX)
        _, hold_first, _, hold_second = self._deaths
        holds = hold_first, hold_second, self._recording.total
        self._arguments = {
            name: (tokens_per_second, hold) for name, hold in zip(workers, holds, strict=True)
        }
        self._children.send(ASKER, self._server)
        self._employ(self._killed)
        try:
            while self._left:
                name, report = self._children.reports.get(timeout=patience)
                if report[0] == "failed":
                    raise ConverseError(report[1])
                if report[0] == "gone":
                    self._left.discard(name)
                if name == ASKER:
                    self._follow_asker(report)
                elif name in workers:
                    self._follow_worker(workers[name], report)
                    self._direct()
                else:
                    self._follow_viewer(viewers[name], report)
        except queue.Empty:
            raise ConverseError("all processes were silent for too long") from None

    def _follow_asker(self, report: list[Any]) -> None:
        recording = self._recording
        match report:
            case ["started", conversation_id, message_id]:
                self.message_id = message_id
                self._screen.note(f"conversation {conversation_id}, message {message_id}")
                for viewer in (self._first, self._mortal):
                    self._children.send(viewer.name, [*self._server, message_id])
            case ["stored", status, content, chunks]:
                recording.stored = StoredMessage(status, content, chunks)
            case ["gone"] if recording.stored.status == "missing":
                raise ConverseError("the process that asked ended too early")

    def _follow_worker(self, worker: Worker, report: list[Any]) -> None:
        recording = self._recording
        match report:
            case ["ready"]:
                worker.state = "ready"
                if worker is not self._killed:
                    self._children.send(worker.name, recording.text)
            case ["attempt", attempt, begin]:
                worker.state = "working"
                behind = f", behind chunk {begin - 1}" if begin else ""
                self._screen.note(f"{worker.name} generates, in attempt {attempt}{behind}")
            case ["written", sequence, sent_at]:
                recording.sent_at[sequence], recording.sent_by[sequence] = sent_at, worker.name
            case ["finished"]:
                recording.finished = True
                worker.state = "done"
                self._children.send(ASKER, "read")
                for each in recording.workers:
                    self._children.signal(each.name, signal.SIGTERM)
            case ["gone"]:
                worker.gone = True
                if worker.state not in ("killed", "told to end") and not recording.finished:
                    raise ConverseError(f"{worker.name} ended too early")

    def _direct(self) -> None:
        """Has the others enter, and leave, when their time has come."""
        kill, _, tell, _ = self._deaths
        recording, written = self._recording, len(self._recording.sent_at)
        if self._killed.state == "working":
            self._employ(self._told)
        if self._told.state == "working":
            self._employ(self._last)
        if 2 * written > recording.total:
            self._join()
        if written >= kill and self._killed.state == "working" and self._told.state == "ready":
            self._children.signal(self._killed.name, signal.SIGKILL)
            self._killed.state = "killed"
            self._screen.note(f"{self._killed.name} is killed (SIGKILL)")
        if (
            written >= tell
            and self._killed.gone
            and self._told.state == "working"
            and self._last.state in ("ready", "working")
        ):
            self._children.signal(self._told.name, signal.SIGTERM)
            self._told.state = "told to end"
            self._screen.note(f"{self._told.name} is told to end (SIGTERM)")

    def _employ(self, worker: Worker) -> None:
        """Has a worker begin to work, once."""
        if worker.name in self._arguments:
            arguments = self._arguments.pop(worker.name)
            self._children.send(worker.name, [*self._server, *arguments])

    def _join(self) -> None:
        if self._late.state == "waiting":
            self._late.state = "joining"
            self._children.start(self._late.name, "view")
            self._children.send(self._late.name, [*self._server, self.message_id])

    def _follow_viewer(self, viewer: Viewer, report: list[Any]) -> None:
        match report:
            case ["watching", since, mode]:
                viewer.state, viewer.since = "watching", since
                if viewer is self._late:
                    missed = sum(at < since for at in self._recording.sent_at.values())
                    viewer.manner = f"joined at {missed}"
                self._screen.note(f"{viewer.name} follows by {mode}, {viewer.manner}")
                attached = self._first.state == self._mortal.state == "watching"
                if attached and not self._recording.sent_at:
                    self._children.send(self._killed.name, self._recording.text)
            case ["seen", chunk, received_at]:
                viewer.seen.append(Seen(chunk, received_at, viewer.since))
                if viewer is self._first:
                    self._screen.add(chunk)
                if viewer is self._mortal and len(viewer.seen) == 1 + self._recording.total // 3:
                    self._children.signal(viewer.name, signal.SIGKILL)
                    viewer.state = "killed"
                    self._screen.note(f"{viewer.name} is killed (SIGKILL)")
            case ["news", "message.queued", attempt] if viewer is self._first and viewer.seen:
                self._screen.note(f"{viewer.name} waits for a worker, for attempt {attempt}")
            case ["ended", event_type]:
                viewer.end = event_type
                if viewer.state == "watching":
                    viewer.state = "done"
            case ["gone"] if viewer.state == "killed":
                last = viewer.seen[-1].sequence
                viewer.manner = f"resumed at {last}"
                self._left.add(viewer.name)
                self._children.start(viewer.name, "view")
                self._children.send(viewer.name, [*self._server, self.message_id, last])
            case ["gone"] if viewer.state != "done":
                raise ConverseError(f"{viewer.name} ended too early")
