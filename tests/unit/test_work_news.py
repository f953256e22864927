"""Tests of what watchers are told of queued messages."""

from datetime import UTC, datetime
from typing import Any

from bson import ObjectId

from converse_mongo.domain.events import MessageQueued, MessageStarted
from converse_mongo.domain.work import Job, Work
from converse_mongo.watching.work_news import WorkNews

MOMENT = datetime(2026, 1, 1, tzinfo=UTC)
MESSAGE, CONVERSATION = ObjectId(), ObjectId()
QUEUED = Work.of(Job(queue="default"), MOMENT)


def read(news: WorkNews, work: Work) -> bool:
    return news.read(MESSAGE, CONVERSATION, "assistant", work.to_stored())


def kinds(news: WorkNews) -> list[Any]:
    return [type(event) for event in news.since(0)]


def test_read__of_a_first_attempt_is_no_news_however_often() -> None:
    news = WorkNews()
    assert [read(news, QUEUED.claimed()) for _ in range(3)] == [False, False, False]
    assert kinds(news) == []


def test_read__of_a_first_attempt_is_news_after_it_was_queued() -> None:
    news = WorkNews()
    assert read(news, QUEUED)
    assert kinds(news) == [MessageQueued]
    assert read(news, QUEUED.claimed())
    assert not read(news, QUEUED.claimed())
    assert kinds(news) == [MessageStarted]


def test_read__of_a_later_attempt_is_news() -> None:
    news = WorkNews()
    assert not read(news, QUEUED.claimed())
    assert read(news, QUEUED.claimed().model_copy(update={"crashes": 1}))
    assert [event.attempt for event in news.since(0)] == [2]
