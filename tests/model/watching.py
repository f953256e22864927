"""A model of watching: a replica set that fails over, change streams that lag, and who watches.

The topics and watchers are the library's own. What they read and hear is the model's: a log of
writes of which a majority has a part, and of which a majority read shows a part of that.
"""

import asyncio
import copy
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from bson import ObjectId, Timestamp

from converse_mongo.domain.chunks import MessageChunk
from converse_mongo.domain.errors import MessageNotFoundError
from converse_mongo.domain.events import (
    ChunkReceived,
    Event,
    FinalEvent,
    MessageCreated,
    MessageUpdated,
)
from converse_mongo.domain.headers import MessageHeader, MessageRow
from converse_mongo.domain.types import MessageRole
from converse_mongo.driver import retry
from converse_mongo.store.reads import Streaming
from converse_mongo.watching import doubts, message_topic, topics, watcher
from converse_mongo.watching.changes import (
    Deleted,
    Inserted,
    MessageHint,
    Updated,
)
from converse_mongo.watching.doubts import OutdatedReadError
from converse_mongo.watching.message_topic import MessageTopic
from converse_mongo.watching.topics import Routes, Topic
from converse_mongo.watching.watcher import Watcher

__all__ = ["explore"]

CONVERSATION = ObjectId("c" * 24)
CREATED_AT = datetime(2026, 1, 1, tzinfo=UTC)
NAMES = [ObjectId(f"{number:024x}") for number in range(1, 4)]
"""The ids that messages have: few, so that they come again."""
MAX_MESSAGES = 6
MAX_CHUNKS = 4
STEPS = 60
MAX_WAITS = 3000
OLDER_SECONDS = 1.5
"""The longest time for which a new primary shows an older snapshot."""

State = dict[int, dict[str, Any]]
"""Position to message."""


@dataclass
class Set:
    """A replica set. Index *n* is the state after *n* writes.

    Attributes:
        states: What there was after each write.
        hints: What a change stream tells of each write.
        committed: How many writes a majority has.
        shown: How many of them a majority read shows.
        older_since: When it began to show fewer.
    """

    drawn: random.Random
    now: float = 0.0
    states: list[State] = field(default_factory=lambda: [{}])
    ends: list[int] = field(default_factory=lambda: [0])
    hints: list[MessageHint] = field(default_factory=list)
    committed: int = 0
    shown: int = 0
    older_since: float | None = None
    logs: int = 0

    @property
    def applied(self) -> int:
        return len(self.hints)

    def _write(self, state: State, hint: MessageHint, end: int | None = None) -> None:
        self.states.append(state)
        self.ends.append(self.ends[-1] if end is None else end)
        self.hints.append(hint)

    def _time(self) -> Timestamp:
        return Timestamp(1, self.applied + 1)

    def add(self) -> None:
        state, end = copy.deepcopy(self.states[-1]), self.ends[-1]
        taken = {message["_id"] for message in state.values()}
        free = [name for name in NAMES if name not in taken]
        if not free or end >= MAX_MESSAGES:
            return
        self.logs += 1
        streams = self.drawn.random() < 0.8
        message = state[end] = {
            "_id": self.drawn.choice(free),
            "conversation_id": CONVERSATION,
            "position": end,
            "role": MessageRole.ASSISTANT.value,
            "status": "streaming" if streams else "completed",
            "content": "" if streams else f"whole {self.logs}",
            "next_sequence": 0,
            "chunks": [],
            "log_id": ObjectId(f"{self.logs:024x}") if streams else None,
            "metadata": {"number": self.logs},
            "created_at": CREATED_AT,
        }
        self._write(state, Inserted(message["_id"], CONVERSATION, copy.deepcopy(message)), end + 1)

    def _streaming(self) -> dict[str, Any] | None:
        found = [each for each in self.states[-1].values() if each["status"] == "streaming"]
        return self.drawn.choice(found) if found else None

    def append(self) -> None:
        if (chosen := self._streaming()) is None or chosen["next_sequence"] >= MAX_CHUNKS:
            return
        state = copy.deepcopy(self.states[-1])
        message = state[chosen["position"]]
        sequence = message["next_sequence"]
        chunk = {
            "sequence": sequence,
            "content": f"{message['metadata']['number']}.{sequence}",
            "created_at": CREATED_AT,
        }
        message["chunks"].append(chunk)
        message["next_sequence"] += 1
        hint = Updated(message["_id"], [chunk], next_sequence=sequence + 1, time=self._time())
        self._write(state, hint)

    def end(self) -> None:
        if (chosen := self._streaming()) is None:
            return
        state = copy.deepcopy(self.states[-1])
        state[chosen["position"]] |= {"status": "completed", "end_id": ObjectId()}
        self._write(state, Updated(chosen["_id"], [], ended=True, time=self._time()))

    def delete(self) -> None:
        if not self.states[-1]:
            return
        state = copy.deepcopy(self.states[-1])
        gone = state.pop(self.drawn.choice(list(state)))
        self._write(state, Deleted(gone["_id"]))

    def commit(self) -> None:
        """Has a majority get some more."""
        self.committed = self.drawn.randint(self.committed, self.applied)
        if self.older_since is None:
            self.shown = self.committed

    def fail_over(self) -> None:
        """Makes another the primary: it has what a majority has, and shows less for a while."""
        del self.states[self.committed + 1 :]
        del self.ends[self.committed + 1 :]
        del self.hints[self.committed :]
        if self.older_since is None:
            self.older_since = self.now
            self.shown = self.drawn.randint(0, self.committed)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        if self.older_since is not None and self.now - self.older_since > OLDER_SECONDS:
            self.older_since, self.shown = None, self.committed


class ModelReader:
    """Reads as the library's reader does, of one of the states."""

    waits = True
    """Whether majority reads carry the time of what was seen."""

    def __init__(self, replicas: Set, local: "ModelReader | None") -> None:
        self._set = replicas
        self.local = local
        self.seen_time: Timestamp | None = None
        self.turns = asyncio.Semaphore()

    def note_time(self, time: Timestamp) -> None:
        self.seen_time = max(self.seen_time or time, time)

    @property
    def _index(self) -> int:
        if self.local is None:
            return self._set.applied
        if self.waits and self.seen_time is not None and self.seen_time.inc > self._set.shown:
            raise OutdatedReadError  # a server waits until it can show it
        return self._set.shown

    @property
    def _state(self) -> State:
        return self._set.states[self._index]

    def _find(self, **wanted: Any) -> dict[str, Any] | None:
        for message in self._state.values():
            if all(message[name] == value for name, value in wanted.items()):
                return message
        return None

    def _chunks(
        self, message: dict[str, Any] | None, start: int, stop: int | None
    ) -> tuple[MessageHeader, list[MessageChunk]] | None:
        if message is None:
            return None
        chunks = [MessageChunk.from_stored(each) for each in message["chunks"][start:stop]]
        return MessageHeader.from_stored(message), chunks

    async def read_tail(self, message_id: ObjectId, limit: int) -> Any:
        return self._chunks(self._find(_id=message_id), 0, None)

    async def read(
        self,
        message_id: ObjectId,
        conversation_id: ObjectId,
        start: int,
        limit: int,
        page_start: int = 0,
        stop: int | None = None,
    ) -> Any:
        return self._chunks(self._find(_id=message_id), start, stop)

    async def read_at(
        self,
        conversation_id: ObjectId,
        position: int,
        start: int,
        limit: int,
        stop: int | None = None,
    ) -> Any:
        return self._chunks(self._find(position=position), start, stop)

    async def rows(
        self, conversation_id: ObjectId, start: int, stop: int, limit: int
    ) -> list[MessageRow]:
        found = [
            self._state[position] for position in range(start, stop) if position in self._state
        ]
        return [
            MessageRow(MessageHeader.from_stored(each), each["content"]) for each in found[:limit]
        ]

    async def messages_at(self, conversation_id: ObjectId, positions: Sequence[int]) -> Any:
        found = [self._state[position] for position in positions if position in self._state]
        return [MessageHeader.from_stored(each) for each in found]

    async def conversation_end(self, conversation_id: ObjectId) -> int:
        return self._set.ends[self._index]

    async def streaming(self, conversation_id: ObjectId, before: int) -> dict[int, Streaming]:
        return {
            position: Streaming(message["_id"], message["next_sequence"], message["role"])
            for position, message in self._state.items()
            if position < before and message["status"] == "streaming"
        }

    async def has_message(self, message_id: ObjectId) -> bool:
        return self._find(_id=message_id) is not None

    async def has_conversation(self, conversation_id: ObjectId) -> bool:
        return True

    async def has_messages(self, conversation_id: ObjectId, start: int, stop: int) -> bool:
        return any(start <= position < stop for position in self._state)

    async def committed_time(self) -> Timestamp:
        return Timestamp(1, self._set.shown)

    async def confirm_primary(self, conversation_id: ObjectId) -> bool:
        return True

    async def moment(self) -> int:
        return 0

    async def last_saves(self, conversation_id: ObjectId, limit: int) -> list[Any]:
        return []


class ModelHub:
    """A process: its topics, and a change stream that may lag, get lost, and be opened again."""

    probe = None
    begins_behind_what_is_applied = False
    """A bug: the stream of a server that is given no time to begin at."""

    def __init__(self, replicas: Set, *, polls: bool) -> None:
        self._set = replicas
        self.polls = polls
        self._reader: Any = ModelReader(replicas, ModelReader(replicas, None))
        self._routes = Routes()
        self.messages: dict[ObjectId, MessageTopic] = {}
        self.conversation: Topic | None = None
        self._next = 0
        self.open_stream()

    @property
    def topics(self) -> list[Any]:
        return [*self.messages.values(), *filter(None, [self.conversation])]

    def check(self) -> None:
        """Has all that is watched read, as a comparison does that finds news."""
        for topic in self.topics:
            topic.mark_stale()

    def open_stream(self) -> None:
        if self.polls:
            return
        replicas = self._set
        self._next = replicas.applied if self.begins_behind_what_is_applied else replicas.shown
        self._reader.note_time(Timestamp(1, replicas.shown))
        self.check()

    def hear(self) -> None:
        """Takes the next event, if the primary knows that a majority has it."""
        if self.polls or self._next >= self._set.shown:
            return
        hint = self._set.hints[self._next]
        self._next += 1
        self._reader.note_time(Timestamp(1, self._next))
        told: list[Any] = [self.messages.get(hint.message_id)]
        if hint.conversation_id is not None:
            told.append(self.conversation)
        elif opened := self._routes.open.get(hint.message_id):
            told.append(opened)
        else:
            told += self._routes.reading
        for topic in filter(None, told):
            topic.receive(hint)

    def hear_all(self) -> None:
        while self._next < self._set.shown and not self.polls:
            self.hear()

    def join_message(self, message_id: ObjectId) -> MessageTopic:
        topic = self.messages.get(message_id)
        if topic is None or topic.failure is not None:
            topic = self.messages[message_id] = MessageTopic(message_id, self._reader)
        topic.watchers += 1
        return topic

    def join_conversation(self, conversation_id: ObjectId) -> Topic:
        if self.conversation is None:
            self.conversation = Topic(conversation_id, self._reader, self._routes)
        self.conversation.watchers += 1
        return self.conversation

    def leave(self, topic: Any) -> None:
        topic.watchers -= 1
        if not topic.watchers:
            topic.forget()
            if self.conversation is topic:
                self.conversation = None
            else:
                self.messages = {
                    key: value for key, value in self.messages.items() if value is not topic
                }


class Viewer:
    """Somebody who watches the conversation, or a message; what they had, and how it ended."""

    def __init__(self, model: "Model", message_id: ObjectId | None = None) -> None:
        self.model = model
        self.message_id = message_id
        self.seen: list[Event] = []
        self.error: Exception | None = None
        self.watcher = self._watch()

    def _watch(self) -> Watcher[Any]:
        hub: Any = self.model.drawn.choice(self.model.hubs)
        if self.message_id is None:
            after = self.seen[-1].cursor if self.seen else None
            return Watcher(hub, ModelHub.join_conversation, CONVERSATION, after)  # type: ignore[arg-type]
        return Watcher(hub, ModelHub.join_message, self.message_id, None)  # type: ignore[arg-type]

    async def come_back(self) -> None:
        """Goes on in another process; who watches a message has no cursor across its end."""
        if self.message_id is None:
            await self.watcher.aclose()
            self.watcher = self._watch()

    async def poll(self) -> bool:
        """Takes what there is; says whether there was something."""
        if self.error is not None:
            return False
        try:
            event = await self.watcher.poll()
        except StopAsyncIteration:
            return False
        except MessageNotFoundError as error:
            self.error = error
            return False
        if event is None:
            return False
        if not isinstance(event, MessageUpdated):
            self.seen.append(event)
        return True


class Model:
    """One run, drawn from a seed."""

    def __init__(self, seed: int) -> None:
        self.drawn = random.Random(seed)
        self._waits = 0
        self.set = Set(self.drawn)
        self.hubs = [ModelHub(self.set, polls=self.drawn.random() < 0.3) for _ in range(2)]
        self.viewers = [Viewer(self), Viewer(self)]

    def monotonic(self) -> float:
        return self.set.now

    async def sleep(self, seconds: float) -> None:
        """What a watcher does that waits before it reads again: the world goes on."""
        self._waits += 1
        assert self._waits < MAX_WAITS, "a watcher waits for ever"
        self.set.pass_time(seconds)
        if self.drawn.random() < 0.5:
            self.happen()

    def happen(self) -> None:
        """Something happens that is not in the hands of who watches."""
        replicas = self.set
        hub = self.drawn.choice(self.hubs)
        does: list[tuple[Callable[[], None], int]] = [
            (replicas.add, 3),
            (replicas.append, 8),
            (replicas.end, 2),
            (replicas.delete, 1),
            (replicas.commit, 8),
            (replicas.fail_over, 1),
            (hub.hear, 8),
            (hub.hear_all, 2),
            (hub.open_stream, 1),
            (hub.check, 1),
            (lambda: replicas.pass_time(0.4), 1),
        ]
        self.drawn.choices([each for each, _ in does], [weight for _, weight in does])[0]()

    async def run(self) -> None:
        for _ in range(STEPS):
            self.happen()
            if self.drawn.random() < 0.1:
                self.viewers.append(Viewer(self, self.drawn.choice(NAMES)))
            viewer = self.drawn.choice(self.viewers)
            if self.drawn.random() < 0.05:
                await viewer.come_back()
            if self.drawn.random() < 0.6:
                await viewer.poll()
        await self.settle()
        for viewer in self.viewers:
            self.judge(viewer)

    async def settle(self) -> None:
        """Nothing happens any more, and everybody hears of all; only who polls needs a check."""
        self.set.commit = self.set.fail_over = lambda: None  # type: ignore[method-assign]
        self.happen = lambda: None  # type: ignore[method-assign]
        self.set.committed = self.set.applied
        self.set.pass_time(2 * OLDER_SECONDS)
        self.set.shown = self.set.committed
        for hub in self.hubs:
            hub.hear_all()
            if hub.polls:
                hub.check()
        for viewer in self.viewers:
            while await viewer.poll():
                pass

    # The judge

    def judge(self, viewer: Viewer) -> None:
        """Judges what a viewer had: by the number of each message, which no other has."""
        there = {m["metadata"]["number"]: m for m in self.set.states[-1].values()}
        had: dict[int, list[Event]] = {}
        for event in viewer.seen:
            had.setdefault(_number(event), []).append(event)
        if viewer.message_id is not None:
            assert len(had) <= 1, "two messages mixed"
            there = {
                number: message
                for number, message in there.items()
                if viewer.error is None
                and message["_id"] == viewer.message_id
                # Who watched another with the same id to its end has had an end.
                and (number in had or not had)
            }
        positions = [each.position for each in viewer.seen if isinstance(each, MessageCreated)]
        assert positions == sorted(set(positions)), "created in order, and once"
        for number in had.keys() | there.keys():
            created = viewer.message_id is None
            self._judge_one(had.get(number, []), there.get(number), created=created)

    def _judge_one(
        self, events: list[Event], there: Mapping[str, Any] | None, *, created: bool
    ) -> None:
        """Its creation, its chunks in order and one end; all of it, if it was not deleted."""
        sequences = [each.chunk.sequence for each in events if isinstance(each, ChunkReceived)]
        assert sequences == sorted(set(sequences)), "in order, each once"
        ends = [each for each in events if isinstance(each, FinalEvent)]
        assert len(ends) <= 1, "one end"
        assert not ends or events[-1] is ends[0], "nothing behind the end"
        if there is None:
            return
        if created:
            assert events, "never told of"
            assert isinstance(events[0], MessageCreated), "never told of"
        assert sequences == list(range(there["next_sequence"])), "a chunk was missed"
        ended = there["status"] != "streaming" and (bool(there["log_id"]) or not created)
        assert bool(ends) == ended, "the end"


def _number(event: Any) -> int:
    if isinstance(event, ChunkReceived):
        return int(event.chunk.content.partition(".")[0])
    number: int = event.metadata["number"]
    return number


def explore(monkeypatch: pytest.MonkeyPatch, seeds: Sequence[int]) -> None:
    """Runs the model for each of ``seeds``.

    Raises:
        AssertionError: A watcher was not exact.
    """
    for seed in seeds:
        asyncio.run(_explore(monkeypatch, seed))


async def _explore(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    model = Model(seed)
    clock = SimpleNamespace(monotonic=model.monotonic)
    waits = SimpleNamespace(
        sleep=model.sleep,
        current_task=asyncio.current_task,
        CancelledError=asyncio.CancelledError,
    )
    with monkeypatch.context() as patch:
        patch.setattr(doubts, "time", clock)
        patch.setattr(topics, "time", clock)
        patch.setattr(topics, "AGAIN_SECONDS", 0.0)
        patch.setattr(message_topic, "WINDOW_EVENTS", 3)
        patch.setattr(topics, "WINDOW_EVENTS", 3)
        patch.setattr(watcher, "asyncio", waits)
        patch.setattr(retry, "random", model.drawn)
        try:
            await model.run()
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise
