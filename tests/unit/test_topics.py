"""Topics and a reader that answers as it is told: which reads and which hints they believe."""

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
from bson import ObjectId, Timestamp

from converse_mongo.domain.chunks import MessageChunk
from converse_mongo.domain.errors import InvalidCursorError, MessageNotFoundError
from converse_mongo.domain.events import ChunkReceived
from converse_mongo.domain.headers import MessageHeader, MessageRow
from converse_mongo.domain.leases import Lease
from converse_mongo.store.reads import Counters, Streaming
from converse_mongo.watching.changes import Deleted, Inserted, MessageHint, Updated
from converse_mongo.watching.doubts import OutdatedReadError
from converse_mongo.watching.message_topic import MessageTopic
from converse_mongo.watching.topics import Routes, Topic

CONVERSATION, MESSAGE, OTHER = ObjectId(), ObjectId(), ObjectId()
LOG = ObjectId()
FOUND = Timestamp(10, 0)
AT = datetime(2026, 1, 1, tzinfo=UTC)


def stored(count: int, *, position: int = 3, **fields: Any) -> dict[str, Any]:
    return {
        "_id": MESSAGE,
        "conversation_id": CONVERSATION,
        "position": position,
        "role": "assistant",
        "status": "streaming",
        "next_sequence": count,
        "log_id": LOG,
        "created_at": AT,
        "chunks": [chunk(sequence) for sequence in range(count)],
        **fields,
    }


def chunk(sequence: int) -> Any:
    return {"sequence": sequence, "content": f"{sequence} ", "created_at": AT}


def ended(count: int) -> dict[str, Any]:
    return stored(count, status="completed", end_id=ObjectId(), completed_at=AT)


def appended(*sequences: int, time: int = 11, **fields: Any) -> Updated:
    return Updated(
        MESSAGE,
        [chunk(sequence) for sequence in sequences],
        next_sequence=sequences[-1] + 1,
        time=Timestamp(time, 0),
        **fields,
    )


class Answers:
    """A reader of one conversation, whose last message may be streaming.

    Attributes:
        message: The message as a majority read shows it; ``None`` where it does not.
        local: The same reader, or another one for what the primary has.
    """

    def __init__(self, message: dict[str, Any] | None) -> None:
        self.message = message
        self.local: Answers | None = self
        self.turns = asyncio.Semaphore(1)
        self.end: int | None = 4

    def _found(self, start: int) -> tuple[MessageHeader, list[MessageChunk]] | None:
        if self.message is None:
            return None
        chunks = [MessageChunk.from_stored(each) for each in self.message["chunks"][start:]]
        return MessageHeader.from_stored(self.message), chunks

    async def read_tail(self, message_id: ObjectId, limit: int) -> Any:
        return self._found(max(0, len(self.message["chunks"]) - limit) if self.message else 0)

    async def read(
        self, message_id: ObjectId, conversation_id: ObjectId, start: int, *_: Any, **__: Any
    ) -> Any:
        return self._found(start)

    async def read_at(
        self, conversation_id: ObjectId, position: int, start: int, *_: Any, **__: Any
    ) -> Any:
        here = self.message is not None and self.message["position"] == position
        return self._found(start) if here else None

    async def committed_time(self) -> Timestamp:
        return FOUND

    async def has_message(self, message_id: ObjectId) -> bool:
        return self.message is not None

    async def has_messages(self, conversation_id: ObjectId, start: int, stop: int) -> bool:
        return self.message is not None and start <= self.message["position"] < stop

    async def has_conversation(self, conversation_id: ObjectId) -> bool:
        return self.end is not None

    async def conversation_end(self, conversation_id: ObjectId) -> int | None:
        return self.end

    async def moment(self) -> int:
        return 0

    async def last_saves(self, conversation_id: ObjectId, limit: int) -> list[Any]:
        return []

    async def streaming(self, conversation_id: ObjectId, before: int) -> Mapping[int, Any]:
        message = self.message
        if message is None or message["status"] != "streaming" or message["position"] >= before:
            return {}
        found = Streaming(
            message["_id"], message["next_sequence"], "assistant", message.get("work")
        )
        return {message["position"]: found}

    async def messages_at(self, conversation_id: ObjectId, positions: Any) -> list[MessageHeader]:
        found = self.message and self.message["position"] in positions
        return [MessageHeader.from_stored(self.message)] if self.message and found else []

    async def rows(self, conversation_id: ObjectId, start: int, stop: int, _: int) -> Any:
        message = self.message
        there = message is not None and start <= message["position"] < stop
        return [MessageRow.from_stored(message)] if message and there else []


def contents(topic: Topic) -> list[Any]:
    events = [topic.window.get(index) for index in range(topic.window.first, topic.window.head)]
    return [
        event.chunk.sequence if isinstance(event, ChunkReceived) else event and event.type
        for event in events
    ]


@pytest.fixture(params=["message", "conversation"])
async def watched(request: pytest.FixtureRequest) -> tuple[Topic, Answers]:
    """A topic that has read two chunks of a streaming message."""
    answers: Any = Answers(stored(2))
    if request.param == "message":
        topic: Topic = MessageTopic(MESSAGE, answers)
    else:
        topic = Topic(CONVERSATION, answers, Routes())
    await topic.catch_up()
    return topic, answers


def sequence_of(topic: Topic) -> int | None:
    assert topic.cursor is not None
    return topic.cursor.open.get(3)


async def test_hint__that_continues_is_an_event(watched: tuple[Topic, Answers]) -> None:
    topic, _ = watched
    topic.receive(appended(2, 3))
    assert contents(topic)[-2:] == [2, 3]
    assert (sequence_of(topic), topic.stale) == (4, False)


@pytest.mark.parametrize("hint", [appended(3), appended(2, ended=True)])
async def test_hint__that_leaves_something_out_has_it_read(
    watched: tuple[Topic, Answers], hint: MessageHint
) -> None:
    topic, _ = watched
    topic.receive(hint)
    assert topic.stale


async def test_hint__of_chunks_that_a_redaction_changed_is_no_news(
    watched: tuple[Topic, Answers],
) -> None:
    topic, _ = watched
    topic.receive(appended(2))
    before = contents(topic)
    topic.receive(Updated(MESSAGE, [chunk(1), chunk(2)], time=Timestamp(12, 0)))
    assert contents(topic) == before
    assert not topic.stale
    topic.receive(appended(3, time=13))
    assert sequence_of(topic) == 4


async def test_hint__from_before_the_message_was_found_is_of_another(
    watched: tuple[Topic, Answers],
) -> None:
    topic, _ = watched
    topic.receive(appended(2, time=9))
    assert 2 not in contents(topic)


async def test_hints__are_held_while_the_topic_is_stale(watched: tuple[Topic, Answers]) -> None:
    topic, answers = watched
    topic.mark_stale()
    topic.receive(appended(2))
    assert 2 not in contents(topic)
    answers.message = stored(3)
    await topic.catch_up()
    assert contents(topic)[-1:] == [2]
    assert sequence_of(topic) == 3


@pytest.mark.parametrize(
    ("told", "older", "newer"),
    [
        (appended(4), stored(2), stored(5)),
        (appended(2, ended=True), stored(3), ended(3)),
    ],
    ids=["counter", "end"],
)
async def test_read__behind_what_hints_told_is_made_again(
    watched: tuple[Topic, Answers], told: MessageHint, older: Any, newer: Any
) -> None:
    topic, answers = watched
    topic.receive(told)
    answers.message = older
    with pytest.raises(OutdatedReadError):
        await topic.catch_up()
    assert topic.stale
    topic._again_at = 0.0
    answers.message = newer
    await topic.catch_up()
    assert not topic.stale
    assert 2 in contents(topic)


async def test_read__behind_the_window_is_made_again(watched: tuple[Topic, Answers]) -> None:
    topic, answers = watched
    topic.mark_stale()
    answers.message = stored(1)
    with pytest.raises(OutdatedReadError):
        await topic.catch_up()
    assert sequence_of(topic) == 2


async def test_read__without_the_message_is_made_again() -> None:
    answers: Any = Answers(stored(2))
    topic = MessageTopic(MESSAGE, answers)
    await topic.catch_up()
    topic.mark_stale()
    answers.message = None
    with pytest.raises(OutdatedReadError):
        await topic.catch_up()
    assert topic.failure is None


@pytest.mark.parametrize(
    "hint",
    [
        Deleted(MESSAGE, Timestamp(11, 0)),
        Inserted(MESSAGE, CONVERSATION, stored(0, log_id=OTHER), Timestamp(11, 0)),
    ],
    ids=["deleted", "anew"],
)
@pytest.mark.parametrize("found", [None, stored(1, log_id=OTHER)], ids=["nothing", "another"])
async def test_message__that_was_told_to_be_gone_is_gone(hint: MessageHint, found: Any) -> None:
    answers: Any = Answers(stored(2))
    topic = MessageTopic(MESSAGE, answers)
    await topic.catch_up()
    topic.receive(hint)
    answers.message = found
    with pytest.raises(MessageNotFoundError):
        await topic.catch_up()
    assert isinstance(topic.failure, MessageNotFoundError)


async def test_message__is_not_started_anew_by_its_own_insertion() -> None:
    answers: Any = Answers(stored(2))
    topic = MessageTopic(MESSAGE, answers)
    await topic.catch_up()
    topic.receive(Inserted(MESSAGE, CONVERSATION, stored(0), Timestamp(11, 0)))
    assert MESSAGE in topic.open


async def test_deletion__has_hints_of_the_next_one_with_the_id_go_elsewhere(
    watched: tuple[Topic, Answers],
) -> None:
    topic, _ = watched
    topic.receive(Deleted(MESSAGE, Timestamp(11, 0)))
    topic.receive(appended(2, time=12))
    topic._apply(appended(2, time=12))
    assert topic.stale
    assert 2 not in contents(topic)


async def test_deletion__of_an_earlier_one_with_the_id_is_not_its_own(
    watched: tuple[Topic, Answers],
) -> None:
    topic, _ = watched
    topic.receive(Deleted(MESSAGE, Timestamp(9, 0)))
    assert MESSAGE in topic.open


async def test_counters__of_a_message_that_the_cursor_lacks_are_compared(
    watched: tuple[Topic, Answers],
) -> None:
    """A read that fails halfway leaves it so."""
    topic, _ = watched
    assert topic.cursor is not None
    topic.cursor = topic.cursor.ended(3)
    assert topic.is_behind({})
    assert topic.is_behind({MESSAGE: Counters(2, False, Lease(), False)})


async def test_deletion__during_the_first_read_has_the_message_read_again() -> None:
    answers: Any = Answers(stored(2))
    topic = MessageTopic(MESSAGE, answers)
    committed = answers.committed_time

    async def deleted_meanwhile() -> Timestamp:
        topic.receive(Deleted(MESSAGE, FOUND))
        found: Timestamp = await committed()
        return found

    answers.committed_time = deleted_meanwhile
    await topic.catch_up()
    assert topic.stale


async def test_end__closes_the_message(watched: tuple[Topic, Answers]) -> None:
    topic, answers = watched
    answers.message = ended(3)
    topic.mark_stale()
    await topic.catch_up()
    assert contents(topic)[-2:] == [2, "message.completed"]
    assert not topic.open
    assert topic.ended == isinstance(topic, MessageTopic)


async def test_first_read__of_a_message_brings_its_last_chunks() -> None:
    answers: Any = Answers(ended(2))
    topic = MessageTopic(MESSAGE, answers)
    await topic.catch_up()
    assert contents(topic) == [0, 1, "message.completed"]
    assert topic.locate(await topic.start(0)) == 1
    assert topic.locate(await topic.start(9)) == 2  # more than there is: just the end


async def test_cursor__of_another_process_is_waited_for() -> None:
    answers: Any = Answers(stored(2))
    answers.local = Answers(stored(5))
    topic = Topic(CONVERSATION, answers, Routes())
    await topic.catch_up()
    with pytest.raises(OutdatedReadError):
        await topic.enter(await topic.start(f"{CONVERSATION}.4.3-5"))
    answers.message = stored(5)
    await topic.enter(await topic.start(f"{CONVERSATION}.4.3-5"))
    assert sequence_of(topic) == 5


async def test_cursor__ahead_of_an_end_is_refused() -> None:
    answers: Any = Answers(ended(2))
    topic = Topic(CONVERSATION, answers, Routes())
    await topic.catch_up()
    with pytest.raises(InvalidCursorError, match="has no chunk 2"):
        await topic.enter(await topic.start(f"{CONVERSATION}.4.3-3"))


async def test_save__of_an_unknown_role_is_logged_and_not_told(
    watched: tuple[Topic, Answers], caplog: pytest.LogCaptureFixture
) -> None:
    topic, _ = watched
    head = topic.window.head
    topic.saved(MESSAGE, "developer", 1, 3)
    assert topic.window.head == head
    assert "has the role 'developer', which is not valid" in caplog.text
    topic.saved(MESSAGE, "assistant", 2, 3)
    assert topic.window.head == head + 1
