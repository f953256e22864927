"""The plot: a writer, a viewer from the start, one that comes late, and one that dies.

The recording fills while it plays, so that a screen can show it.
"""

import asyncio
from collections.abc import AsyncIterator

from converse_mongo.converse import Converse
from converse_mongo.tools.demo.children import Child, Children
from converse_mongo.tools.demo.recording import Recording, StoredMessage, ViewerLog, Watch
from converse_mongo.tools.demo.reports import Appended, Ended, Finished, Seen, Started, Watching
from converse_mongo.tools.demo.screens import Screen

__all__ = ["Performance"]

WRITER = "converse_mongo.tools.demo.writer"
VIEWER = "converse_mongo.tools.demo.viewer"


class Performance:
    """Plays a demonstration once.

    Args:
        recording: Filled with what happens.
        children: Starts and ends the processes.
        screen: Is told what to show.
        database: The name of the database.
    """

    def __init__(
        self, recording: Recording, children: Children, screen: Screen, database: str
    ) -> None:
        self._recording = recording
        self._children = children
        self._screen = screen
        self._database = database
        self._half_way = asyncio.Event()
        self._message_id = ""
        self._first = ViewerLog("viewer 1", "there from the start")
        self._late = ViewerLog("viewer 2", "joined half-way")
        self._killed = ViewerLog("viewer 3", "killed and resumed")
        recording.viewers += [self._first, self._late, self._killed]

    async def play(self, question: str, tokens_per_second: float) -> Started:
        """Plays it to the end, and returns the ids.

        Raises:
            DemoError: A process failed, or was silent for too long.
        """
        writer = await self._children.start(
            "writer",
            WRITER,
            *("--database", self._database, "--question", question),
            *("--tokens-per-second", str(tokens_per_second)),
        )
        started = await writer.first(Started)
        self._message_id = started.message_id
        self._screen.note(f"conversation {started.conversation_id}, message {started.message_id}")
        (first, first_watch), (killed, killed_watch) = await asyncio.gather(
            self._start_viewer(self._first), self._start_viewer(self._killed)
        )
        await writer.send(self._recording.text.encode(), close=True)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._follow_writer(writer))
                tasks.create_task(self._follow_first(first, first_watch))
                tasks.create_task(self._play_late())
                tasks.create_task(self._play_killed(killed, killed_watch))
        except ExceptionGroup as group:
            raise group.exceptions[0] from group
        return started

    async def _start_viewer(
        self, viewer: ViewerLog, *, after: int | None = None
    ) -> tuple[Child, Watch]:
        resume = [] if after is None else ["--after", str(after)]
        child = await self._children.start(
            viewer.name, VIEWER, self._message_id, "--database", self._database, *resume
        )
        watch = Watch(await child.first(Watching))
        viewer.watches.append(watch)
        viewer.state = "watching"
        return child, watch

    async def _follow_writer(self, writer: Child) -> None:
        async for report in writer.reports():
            if isinstance(report, Appended):
                self._recording.sent_at[report.sequence] = report.sent_at
                if len(self._recording.sent_at) * 2 >= self._recording.total:
                    self._half_way.set()
            elif isinstance(report, Finished):
                self._recording.finished = True
        if not self._recording.finished:
            raise writer.unexpected_end()

    async def _follow_first(self, child: Child, watch: Watch) -> None:
        async for seen in self._follow(child, self._first, watch):
            self._screen.grow(seen.content)

    async def _play_late(self) -> None:
        await self._half_way.wait()
        child, watch = await self._start_viewer(self._late)
        missed = sum(at < watch.beginning.since for at in self._recording.sent_at.values())
        self._late.manner = f"joined after {missed} chunks"
        self._screen.note(f"viewer 2 joins after {missed} chunks, and reads those first")
        async for _ in self._follow(child, self._late, watch):
            pass

    async def _play_killed(self, child: Child, watch: Watch) -> None:
        enough = max(1, self._recording.total // 3)
        async for _ in self._follow(child, self._killed, watch, may_die=True):
            # What it told before it died is still to be read: only the first call does something.
            if self._killed.count >= enough and self._killed.state == "watching":
                child.kill()
                self._killed.state = "killed"
        last = watch.seen[-1].sequence if watch.seen else None
        self._killed.manner = f"killed at {last}, resumed"
        self._killed.ended = None
        self._screen.note(f"viewer 3 was killed; a new process resumes with after={last}")
        child, watch = await self._start_viewer(self._killed, after=last)
        async for _ in self._follow(child, self._killed, watch):
            pass

    async def _follow(
        self, child: Child, viewer: ViewerLog, watch: Watch, *, may_die: bool = False
    ) -> AsyncIterator[Seen]:
        """Writes down what ``child`` reports, and yields the chunks.

        Raises:
            DemoError: It ended before the message did.
        """
        async for report in child.reports():
            if isinstance(report, Seen):
                watch.seen.append(report)
                yield report
            elif isinstance(report, Ended):
                viewer.ended, viewer.state = report, "done"
        if viewer.ended is None and not may_die:
            raise child.unexpected_end()


async def read_back(converse: Converse, message_id: str) -> StoredMessage:
    """The message as it is stored now, read in both ways that the library has.

    Raises:
        ConverseError: It cannot be read.
    """
    message = await converse.get_message(message_id)
    chunks = [chunk async for chunk in message.iter_chunks()]
    return StoredMessage(
        status=message.status.value,
        content=message.content,
        sequences=[chunk.sequence for chunk in chunks],
        joined="".join(chunk.content for chunk in chunks),
    )
