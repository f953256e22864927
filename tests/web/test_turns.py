"""Turns: one answer at a time, each request once, stops that always win, and deletions."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import httpx
import pymongo
import pytest
from bson import ObjectId

from converse_mongo import (
    Conversation,
    Converse,
    Message,
    MessageStatus,
    StreamStoppedError,
)
from converse_mongo.driver.collections import collection_of
from converse_mongo.store import answers
from converse_mongo.web import BusyError, Generations, Limits
from converse_mongo.web import turns as turns_module
from converse_mongo.web.answering import queued_answers
from converse_mongo.web.errors import ConflictError, LimitError
from converse_mongo.web.turns import Turns
from tests.conftest import Commands, Facade
from tests.streams import SOON, until
from tests.web.conftest import BOTH, MakeSite, Model, Site, read_all, read_events, working
from tests.web.helpers import say, wait_for_end

WAYS = pytest.mark.parametrize("by", ["here", "queue"])


@asynccontextmanager
async def a_process(
    model: Model | None = None, *, limit: int = 1000, by: str = "here", **limits: Any
) -> AsyncIterator[Turns]:
    """What one process has of the web edge; with ``by="queue"`` nobody writes its answers."""
    if by == "queue":
        yield Turns(queued_answers("default"), Limits(**limits))
        return
    async with Generations((model or Model()).respond, limit=limit, grace=0.05) as generations:
        yield Turns(generations, Limits(**limits))


async def post(site: Site, conversation: Conversation, content: str, **more: Any) -> httpx.Response:
    path = f"/conversations/{conversation.id}/messages"
    return await site.http.post(path, json={"content": content, **more})


async def stop(site: Site, conversation: Conversation, **body: Any) -> list[dict[str, str]]:
    response = await site.http.post(f"/conversations/{conversation.id}/stop", json=body)
    assert response.status_code == 200, response.text
    stopped: list[dict[str, str]] = response.json()["stopped"]
    return stopped


def error_of(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["message"]


# One at a time

WAIT = "An answer is being written. Wait for it, or stop it."


@BOTH
async def test_ask__while_an_answer_is_written_is_refused_and_stores_nothing(site: Site) -> None:
    conversation = await site.conversation()
    first = await say(site, conversation)
    assert error_of(await post(site, conversation, "And?")) == (409, WAIT)
    assert len(await conversation.messages()) == 2
    site.model.say("Yes", None)
    await wait_for_end(site, first["answer"]["id"])
    await say(site, conversation, "And?")


@BOTH
async def test_ask__right_after_a_stop_is_not_refused(site: Site) -> None:
    """The writer may still be storing what it has."""
    conversation = await site.conversation()
    first = await say(site, conversation)
    site.model.say("Well")
    async for _ in site.converse.watch_message(first["answer"]["id"]):
        break
    await stop(site, conversation)
    await say(site, conversation, "And?")
    listed = await conversation.messages()
    assert [each.status for each in listed[:2]] == [
        MessageStatus.COMPLETED,
        MessageStatus.CANCELLED,
    ]
    assert listed[1].content == "Well"


@WAYS
@pytest.mark.parametrize("processes", [1, 2])
async def test_ask__many_times_at_once_is_answered_once(
    facade: Facade, processes: int, by: str
) -> None:
    first: Converse = await facade()
    opened = [first]
    if processes > 1:
        opened.append(await facade(database=first.database_name))
    conversation = await first.start_conversation()

    async def ask(turns: Turns, converse: Converse, number: int) -> bool:
        try:
            await turns.ask(await converse.get_conversation(conversation.id), f"{number}")
        except ConflictError:
            return False
        return True

    async with a_process(by=by) as here, a_process(by=by) as there:
        asked = await asyncio.gather(
            *(
                ask(turns, converse, number)
                for number in range(4)
                for turns, converse in zip((here, there), opened, strict=False)
            )
        )
    assert sum(asked) == 1
    assert len(await conversation.messages()) == 2


@WAYS
@pytest.mark.parametrize("at_once", [2, None])
async def test_ask__several_at_once_if_the_application_says_so(
    make_site: MakeSite, at_once: int | None, by: str
) -> None:
    site = await make_site(by=by, limits=Limits(answers_per_conversation=at_once))
    conversation = await site.conversation()
    asked = [await post(site, conversation, str(number)) for number in range(3)]
    expected = [201, 201, 201 if at_once is None else 409]
    assert [each.status_code for each in asked] == expected
    roles = [each.role for each in await conversation.messages()]
    assert roles == ["user", "assistant"] * expected.count(201)


@WAYS
async def test_ask__may_stop_the_oldest_of_those_that_run(converse: Converse, by: str) -> None:
    conversation = await converse.start_conversation()
    async with a_process(by=by, answers_per_conversation=2) as turns:
        found = [
            (await turns.ask(conversation, str(number), meanwhile="stop"))[1] for number in range(3)
        ]
        states = [
            await turns.answers_to(conversation, each.id)
            for each in (await conversation.messages())
            if each.role == "user"
        ]
    assert all(found)
    assert [each[0].stop_requested or each[0].status.is_final for each in states] == [
        True,
        False,
        False,
    ]


async def of_a_dead_writer(conversation: Conversation) -> Message:
    message = await conversation.start_streaming_assistant()
    await message.writer().__aenter__()
    for writer in list(message.store().writers):
        writer.give_up(BusyError())
    return message


async def test_ask__waits_for_the_end_of_what_was_stopped(converse: Converse) -> None:
    """So that the model is told all of it."""
    conversation = await converse.start_conversation()
    message = await of_a_dead_writer(conversation)
    async with a_process() as turns:
        asking = asyncio.create_task(turns.ask(conversation, "And?", meanwhile="stop"))
        async with asyncio.timeout(SOON):
            while not (await turns.streaming(conversation))[0].stop_requested:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert len(await conversation.messages()) == 1
        await message.cancel_streaming()
        await asking


async def test_ask__is_not_blocked_by_an_answer_whose_writer_died(facade: Facade) -> None:
    converse: Converse = await facade(lease=0.3)
    conversation = await converse.start_conversation()
    message = await of_a_dead_writer(conversation)
    async with a_process() as turns, asyncio.timeout(SOON):
        with pytest.raises(ConflictError):
            await turns.ask(conversation, "Hello?")
        while True:
            try:
                await turns.ask(conversation, "Hello?")
            except ConflictError:
                await asyncio.sleep(0.05)
            else:
                break
    assert (await message.refresh()).status is MessageStatus.FAILED


async def test_turn__of_a_process_that_died_ends_with_a_lease(
    facade: Facade, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(answers, "WAIT_SECONDS", 0.2)
    converse: Converse = await facade(lease=60.0)
    conversation = await converse.start_conversation()
    held: dict[str, Any] = {"holder": ObjectId(), "at": datetime.now(UTC)}
    conversations = conversation.store().conversations
    await conversations.update_one({"_id": conversation.id}, {"$set": {"answer_turn": held}})
    async with a_process() as turns:
        with pytest.raises(Exception, match="another process"):
            await turns.ask(conversation, "Hello?")
        assert await conversation.messages() == []
        held["at"] -= timedelta(seconds=61)
        await conversations.update_one({"_id": conversation.id}, {"$set": {"answer_turn": held}})
        await turns.ask(conversation, "Hello?")
    stored = await conversations.find_one({"_id": conversation.id})
    assert "answer_turn" not in stored


@WAYS
async def test_answer__that_took_longer_than_its_turn_to_begin_is_cancelled(
    facade: Facade, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """Another process may have begun one since."""
    converse: Converse = await facade()
    conversation = await converse.start_conversation()
    monkeypatch.setattr(answers.Turn, "is_over", property(lambda _: True))
    model = Model()
    async with a_process(model, by=by) as turns:
        _, answer = await turns.ask(conversation, "Hello?")
    assert answer is not None
    assert (answer.status, model.asked) == (MessageStatus.CANCELLED, [])


@pytest.mark.parametrize(
    ("begun", "named", "wins"),
    [
        ("ask", None, True),
        ("ask", "second", True),
        ("ask", "first", False),
        ("retry", None, True),
        ("retry", "first", True),
        ("retry", "the answer", True),
        ("retry", "second", False),
    ],
)
async def test_stop__while_an_answer_waits_for_the_one_before_it(
    facade: Facade, monkeypatch: pytest.MonkeyPatch, begun: str, named: str | None, wins: bool
) -> None:
    """However slow another process is to end the one before."""
    monkeypatch.setattr(turns_module, "STOP_SECONDS", 2 * SOON)
    converse: Converse = await facade()
    conversation = await converse.start_conversation()
    writes, may_end = asyncio.Event(), asyncio.Event()

    async def respond(conversation: Conversation, message: Message) -> None:
        async with message.writer():
            writes.set()
            await may_end.wait()

    model = Model()
    model.say(None)
    async with Generations(respond, grace=0.05) as slow, a_process(model) as turns:
        await Turns(slow, Limits()).ask(conversation, "First", "first")
        await writes.wait()
        (old,) = await turns.streaming(conversation)

        async def begin() -> Message | None:
            if begun == "retry":
                return await turns.retry(conversation, old.message_id, meanwhile="stop")
            return (await turns.ask(conversation, "Second", "second", meanwhile="stop"))[1]

        async with asyncio.timeout(SOON), asyncio.TaskGroup() as tasks:
            beginning, stored = tasks.create_task(begin()), cast(Any, {})
            while "answer_turn" not in stored:
                stored = await conversation.store().conversations.find_one({"_id": conversation.id})
            name = str(old.message_id) if named == "the answer" else named
            await turns.stop(conversation, "enough", name)
            may_end.set()
        answer = beginning.result()
        assert answer is not None
        assert (answer.status is MessageStatus.CANCELLED) == wins
        if wins:
            assert (answer.stop_reason, model.asked) == ("enough", [])


@BOTH
async def test_chat__stops_the_answer_that_runs_and_keeps_its_text(site: Site) -> None:
    """The stop() of the AI SDK only disconnects."""
    conversation = await site.conversation()

    def request(name: str) -> dict[str, Any]:
        said = {"id": name, "role": "user", "parts": [{"type": "text", "text": name}]}
        return {"id": str(conversation.id), "messages": [said]}

    site.model.say("One is")
    async with site.http.stream("POST", "/chat", json=request("one")) as stream:
        async for sent in read_events(stream):
            if sent.data["type"] == "text-delta":
                break
    async with asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(site.http.post("/chat", json=request("two")))
        await until(lambda: len(site.model.asked) == 2)
        site.model.say("Two", None)
    assert asking.result().text.endswith("data: [DONE]\n\n")
    said = [(each.role, each.status, each.content) for each in await conversation.messages()]
    assert said == [
        ("user", "completed", "one"),
        ("assistant", "cancelled", "One is"),
        ("user", "completed", "two"),
        ("assistant", "completed", "Two"),
    ]


# Once


async def test_repeat__is_answered_at_every_limit(make_site: MakeSite) -> None:
    site = await make_site(limit=1, limits=Limits(answers_per_key=1))
    conversation = await site.conversation()
    first = await say(site, conversation, request_id="r1")
    again = await say(site, conversation, request_id="r1")
    assert again["message"] == first["message"]
    assert again["answer"]["id"] == first["answer"]["id"]
    answer = first["answer"]["id"]
    site.model.say("whole", None)
    await wait_for_end(site, answer)
    await say(site, await site.conversation())
    path = f"/conversations/{conversation.id}/messages/{answer}/retry"
    assert (await site.http.post(path, json={})).status_code == 503
    again = await say(site, conversation, request_id="r1")
    assert (again["answer"]["id"], again["answer"]["content"]) == (answer, "whole")


async def test_repeat__at_once_and_at_the_limit_is_one(make_site: MakeSite) -> None:
    site = await make_site(limit=1, limits=Limits(answers_per_key=1))
    conversation = await site.conversation()
    found = await asyncio.gather(*(say(site, conversation, request_id="r") for _ in range(5)))
    assert len({(each["message"]["id"], each["answer"]["id"]) for each in found}) == 1


@WAYS
async def test_repeat__at_once_in_two_processes_is_written_once(facade: Facade, by: str) -> None:
    first: Converse = await facade()
    second: Converse = await facade(database=first.database_name)
    conversation = await first.start_conversation()
    elsewhere = await second.get_conversation(conversation.id)
    model = Model()
    model.say("once ", None, "twice", None)
    async with AsyncExitStack() as stack:
        here = await stack.enter_async_context(a_process(model, by=by))
        there = await stack.enter_async_context(a_process(model, by=by))
        if by == "queue":
            await stack.enter_async_context(working(first, model.respond))
            await stack.enter_async_context(working(second, model.respond))
        found = await asyncio.gather(
            here.ask(conversation, "Hello?", "r"), there.ask(elsewhere, "Hello?", "r")
        )
        ((_, answer), (_, same)) = found
        assert answer is not None
        assert same is not None
        async for _ in first.watch_message(answer.id):
            pass
    assert answer.id == same.id
    assert [each.content for each in await conversation.messages()] == ["Hello?", "once "]


async def test_repeat__of_what_nobody_has_begun_to_write_is_begun(converse: Converse) -> None:
    """The process that added it died."""
    conversation = await converse.start_conversation()
    async with a_process() as turns:
        question, answer = await turns.ask(conversation, "Hello?", "r")
        assert answer is not None
    await conversation.store().messages.update_one(
        {"_id": answer.id},
        {
            "$set": {"status": "streaming", "lease.epoch": 0, "lease.holder": None},
            "$unset": {"end_id": "", "stop_requested_at": "", "work": "", "format": ""},
        },
    )
    model = Model()
    async with a_process(model) as turns:
        again = await turns.ask(conversation, "Hello?", "r")
        await until(lambda: len(model.asked) == 1)
    assert (again[0].id, model.asked[0].id) == (question.id, answer.id)


@BOTH
async def test_repeat__with_another_text_is_refused(site: Site) -> None:
    conversation = await site.conversation()
    first = await say(site, conversation, "Hello", request_id="r")
    other = await post(site, conversation, "Good bye", request_id="r")
    sentence = (
        "This message was already sent with another text or other files. Send it as a new message."
    )
    assert error_of(other) == (409, sentence)
    site.model.say(None)
    await wait_for_end(site, first["answer"]["id"])
    assert (await post(site, conversation, "Good bye", request_id="r")).status_code == 409
    assert [each.content for each in await conversation.messages()] == ["Hello", ""]


@BOTH
async def test_repeat__with_another_text_at_once_stores_one(site: Site) -> None:
    conversation = await site.conversation()
    texts = ["a", "b", "c"]
    found = await asyncio.gather(
        *(post(site, conversation, text, request_id="r") for text in texts)
    )
    assert sorted(each.status_code for each in found) == [201, 409, 409]
    assert len(await conversation.messages()) == 2


async def test_repeat_retry_stop_and_resume__read_no_text(
    facade: Facade, commands: Commands
) -> None:
    converse: Converse = await facade(client_options={"event_listeners": [commands]})
    conversation = await converse.start_conversation()
    async with a_process() as turns:
        _, answer = await turns.ask(conversation, "Hello?", "r")
        assert answer is not None
        copy = await converse.get_message(answer.id)
        commands.sent.clear()
        await turns.ask(conversation, "Hello?", "r")
        await turns.streaming(conversation)
        with pytest.raises(ConflictError):
            await turns.retry(conversation, answer.id)
        await turns.stop(conversation, request_id="r")
        for find in commands.named("find"):
            if find["find"] == "messages":
                projection = find["projection"]
                excluded = projection.get("chunks") == 0
                assert excluded or not {"chunks", "content"} & projection.keys(), find
        assert not [find for find in commands.named("find") if "pages" in find["find"]]
    assert copy.is_streaming


# Limits


async def test_limit_by_key__says_when_to_ask_again(make_site: MakeSite) -> None:
    site = await make_site(limits=Limits(answers_per_key=2))
    conversations = [await site.conversation() for _ in range(3)]
    first = (await say(site, conversations[0]))["answer"]["id"]
    await say(site, conversations[1])
    refused = await post(site, conversations[2], "Hello?")
    assert error_of(refused) == (429, "Too much is in progress. Try again in a few seconds.")
    assert refused.headers["retry-after"] == "2"
    assert await conversations[2].messages() == []
    # Nobody else is refused, and neither is he once one has ended.
    other = await site.conversation("eve")
    assert (
        await site.http.post(
            f"/conversations/{other.id}/messages",
            json={"content": "Hello?"},
            headers={"authorization": "eve"},
        )
    ).status_code == 201
    await stop(site, conversations[0])
    await wait_for_end(site, first)
    await say(site, conversations[2])


async def test_limit__is_free_when_the_stream_has_ended(make_site: MakeSite) -> None:
    """However long the function of the application goes on behind the end of its message."""
    site = await make_site(limit=1, limits=Limits(answers_per_key=1))
    tails = asyncio.Event()

    async def respond(conversation: Conversation, message: Message) -> None:
        async with message.writer() as writer:
            await writer.write("done")
        await tails.wait()

    site.generations._respond = respond
    for number in range(2):
        said = {"id": f"m{number}", "role": "user", "parts": [{"type": "text", "text": "Hi"}]}
        body = {"id": str((await site.conversation()).id), "messages": [said]}
        async with site.http.stream("POST", "/chat", json=body) as stream:
            assert stream.status_code == 200
            await read_all(stream)
    # These are bounded as well.
    assert (await post(site, await site.conversation(), "Hi")).status_code == 503
    tails.set()


async def test_limit__refuses_before_anything_is_stopped(converse: Converse) -> None:
    conversation = await converse.start_conversation()
    async with a_process(limit=1) as turns:
        _, answer = await turns.ask(conversation, "Hello?")
        assert answer is not None
        with pytest.raises(BusyError):
            await turns.ask(conversation, "And?", meanwhile="stop")
        with pytest.raises(BusyError):
            await turns.retry(conversation, answer.id, meanwhile="stop")
        (state,) = await turns.streaming(conversation)
    assert not state.stop_requested
    async with a_process(answers_per_key=1) as turns:
        other = await converse.start_conversation()
        await turns.ask(other, "Hello?", key="ada")
        with pytest.raises(LimitError):
            await turns.ask(other, "And?", key="ada", meanwhile="stop")
        (state,) = await turns.streaming(other)
    assert not state.stop_requested


# No worker


async def test_no_generations__change_nothing_and_say_what_is_missing(
    make_site: MakeSite, caplog: pytest.LogCaptureFixture
) -> None:
    site = await make_site(generations=None)
    conversation = await site.conversation()
    await conversation.create_user_message("Hello?")
    answer = await conversation.start_streaming_assistant()
    said = {"id": "m", "role": "user", "parts": [{"type": "text", "text": "Hi"}]}
    chat = {"id": str(conversation.id), "messages": [said]}
    for path, body in (
        (f"/conversations/{conversation.id}/messages/{answer.id}/retry", {}),
        ("/chat", chat),
        ("/chat", {**chat, "trigger": "regenerate-message"}),
        ("/chat", {**chat, "trigger": "regenerate-message", "messageId": str(answer.id)}),
    ):
        caplog.clear()
        refused = await site.http.post(path, json=body)
        assert error_of(refused) == (501, "Answers are not available here.")
        (record,) = [each for each in caplog.records if each.levelno >= logging.ERROR]
        assert "generations=" in record.getMessage()
    assert len(await conversation.messages()) == 2
    stored = await conversation.store().messages.find_one({"_id": answer.id})
    assert (stored["status"], stored.get("stop_requested_at")) == ("streaming", None)


# Stops


@BOTH
async def test_stop__that_comes_before_its_question_wins(site: Site) -> None:
    conversation = await site.conversation()
    (early,) = await stop(site, conversation, request_id="r", reason="no")
    assert early["status"] == "cancelled"
    assert await stop(site, conversation, request_id="r", reason="again") == [early]
    found = await say(site, conversation, request_id="r")
    assert (found["answer"]["id"], found["answer"]["status"]) == (early["id"], "cancelled")
    assert (await site.converse.get_message(early["id"])).stop_reason == "no"
    assert (found["message"]["content"], site.model.asked) == ("Hello", [])
    # It can be answered all the same: by another answer.
    path = f"/conversations/{conversation.id}/messages/{early['id']}/retry"
    retried = (await site.http.post(path, json={})).json()["answer"]
    site.model.say("Now", None)
    assert (await wait_for_end(site, retried["id"])).content == "Now"


@BOTH
async def test_stop__of_a_question_that_never_comes_stops_nothing_else(site: Site) -> None:
    conversation = await site.conversation()
    await stop(site, conversation, request_id="never")
    first = await say(site, conversation, request_id="r")
    await stop(site, conversation, request_id="never")
    site.model.say("whole", None)
    message = await wait_for_end(site, first["answer"]["id"])
    assert (message.status, message.content) == (MessageStatus.COMPLETED, "whole")
    assert await stop(site, conversation, request_id="r") == []


@WAYS
async def test_stop__names_the_answer_in_many_ways(make_site: MakeSite, by: str) -> None:
    site = await make_site(by=by, limits=Limits(answers_per_conversation=None))
    conversation = await site.conversation()
    for number in range(3):
        other = await say(site, conversation, "Other", request_id=f"other {number}")
        found = await say(site, conversation, request_id=f"r {number}")
        name = (f"r {number}", found["message"]["id"], found["answer"]["id"])[number]
        path = f"/chat/{conversation.id}/stop"
        response = await site.http.post(path, json={"messageId": name})
        assert [each["id"] for each in response.json()["stopped"]] == [found["answer"]["id"]]
        message = await wait_for_end(site, found["answer"]["id"])
        assert message.status is MessageStatus.CANCELLED
        running = await site.converse.get_message(other["answer"]["id"])
        assert running.is_streaming


async def retried(site: Site, conversation: Conversation) -> tuple[str, str]:
    """Asks the question ``r``, and again once it was answered; returns the ids of the answers."""
    first = (await say(site, conversation, request_id="r"))["answer"]["id"]
    site.model.say("bad", None)
    await wait_for_end(site, first)
    path = f"/conversations/{conversation.id}/messages/{first}/retry"
    second = (await site.http.post(path, json={})).json()["answer"]["id"]
    return first, second


@BOTH
async def test_stop__of_a_question_stops_the_answer_that_it_has_now(site: Site) -> None:
    conversation = await site.conversation()
    _, second = await retried(site, conversation)
    assert [each["id"] for each in await stop(site, conversation, request_id="r")] == [second]
    assert (await wait_for_end(site, second)).status is MessageStatus.CANCELLED


@WAYS
async def test_stop__at_any_moment_of_its_question_wins(facade: Facade, by: str) -> None:
    """In another process, too: between any two steps of the one that answers."""
    first: Converse = await facade()
    second: Converse = await facade(database=first.database_name)
    model = Model()
    async with a_process(model, by=by) as here, a_process(by=by) as there:
        for delay in range(12):
            conversation = await first.start_conversation()
            elsewhere = await second.get_conversation(conversation.id)
            asking = asyncio.create_task(here.ask(conversation, "Hello?", "r"))
            for _ in range(delay * 3):
                await asyncio.sleep(0)
            await asyncio.sleep(delay / 2000)
            await there.stop(elsewhere, request_id="r")
            _, answer = await asking
            assert answer is not None
            async with asyncio.timeout(SOON):
                async for _ in first.watch_message(answer.id):
                    pass
            assert (await answer.refresh()).status is MessageStatus.CANCELLED


@WAYS
async def test_stop__that_found_no_answer_looks_again(
    converse: Converse, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """The answer is begun after the first look, by somebody who does not see the stop yet."""
    conversation = await converse.start_conversation()
    note = answers.Answers.stop_early
    async with a_process(by=by) as turns:

        async def note_late(*arguments: Any) -> None:
            await turns.ask(conversation, "Hello?", "r")
            await note(*arguments)

        monkeypatch.setattr(answers.Answers, "stop_early", note_late)
        ((answer_id, _),) = await turns.stop(conversation, request_id="r")
        async with asyncio.timeout(SOON):
            async for _ in converse.watch_message(answer_id):
                pass
    assert (await converse.get_message(answer_id)).stop_reason is None


@WAYS
async def test_early_stops__are_bounded(converse: Converse, by: str) -> None:
    conversation = await converse.start_conversation()
    async with a_process(by=by) as turns:
        for number in range(40):
            await turns.stop(conversation, request_id=f"r{number}")
        stored = await conversation.store().conversations.find_one({"_id": conversation.id})
        assert len(stored["early_stops"]) == 32
        _, answer = await turns.ask(conversation, "Hello?", "r39")
    assert answer is not None
    assert answer.is_cancelled
    with pytest.raises(Exception, match="No conversation"):
        await conversation.delete()
        await Turns(None, Limits()).stop(conversation, request_id="x")


@asynccontextmanager
async def logged(caplog: pytest.LogCaptureFixture) -> AsyncIterator[list[logging.LogRecord]]:
    """What is logged above INFO in the block; the list is filled at its end."""
    caplog.set_level(logging.INFO)
    caplog.clear()
    found: list[logging.LogRecord] = []
    yield found
    found += [each for each in caplog.records if each.levelno > logging.INFO]


async def test_stop__before_the_writer_ends_the_function_quietly(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def respond(conversation: Conversation, message: Message) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()  # a retrieval that never ends
        finally:
            ended.set()

    site.generations._respond = respond
    conversation = await site.conversation()
    async with logged(caplog) as found:
        answer = (await say(site, conversation))["answer"]["id"]
        await begun.wait()
        await stop(site, conversation)
        async with asyncio.timeout(SOON):
            await ended.wait()
        await until(lambda: site.generations.running == 0)
    assert (await site.converse.get_message(answer)).is_cancelled
    assert found == []


@pytest.mark.parametrize("own", [True, False])
async def test_stop__lets_the_function_finish_what_it_does_behind_its_writer(
    site: Site, own: bool
) -> None:
    stopped, go_on, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def respond(conversation: Conversation, message: Message) -> None:
        written = message if own else await conversation.get_message(message.id)
        with suppress(StreamStoppedError):
            async with written.writer(interrupt=True) as writer:
                await writer.write("Well")
                await asyncio.Event().wait()
        stopped.set()
        await go_on.wait()
        done.set()

    site.generations._respond = respond
    conversation = await site.conversation()
    answer = (await say(site, conversation))["answer"]["id"]
    async for _ in site.converse.watch_message(answer):
        break
    await stop(site, conversation)
    async with asyncio.timeout(SOON):
        await stopped.wait()
        site.converse._open_parts.store.notices.tell(ObjectId(answer))
        await asyncio.sleep(0.2)  # time in which it could be cancelled
        go_on.set()
        await done.wait()


async def test_stop__right_before_the_writer_is_quiet(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    conversation = await site.conversation()

    async def respond(conversation: Conversation, message: Message) -> None:
        await message.request_stop()
        async with message.writer():
            pytest.fail("it was stopped")

    site.generations._respond = respond
    async with logged(caplog) as found:
        await say(site, conversation)
        await until(lambda: site.generations.running == 0)
    assert found == []


# Deletions


async def delete_message(conversation: Conversation, message: Message) -> None:
    await message.delete()


async def delete_conversation(conversation: Conversation, message: Message) -> None:
    await conversation.delete()


async def delete_both_by_hand(conversation: Conversation, message: Message) -> None:
    store = conversation.store()
    await store.messages.delete_many({"conversation_id": conversation.id})
    await store.conversations.delete_one({"_id": conversation.id})


async def delete_conversation_by_hand(conversation: Conversation, message: Message) -> None:
    await conversation.store().conversations.delete_one({"_id": conversation.id})


DELETIONS = [
    delete_message,
    delete_conversation,
    delete_both_by_hand,
    delete_conversation_by_hand,
]


@pytest.mark.parametrize("delete", DELETIONS)
@pytest.mark.parametrize("writes", ["a token a moment", "a silent model", "nothing yet"])
async def test_deletion__ends_the_answer_quietly(
    facade: Facade,
    caplog: pytest.LogCaptureFixture,
    delete: Callable[[Conversation, Message], Any],
    writes: str,
) -> None:
    """As soon as a stop would: long before the next comparison with the database."""
    converse: Converse = await facade(check_interval=60.0)
    other: Converse = await facade(database=converse.database_name)
    begun = asyncio.Event()

    async def respond(conversation: Conversation, message: Message) -> None:
        if writes == "nothing yet":
            begun.set()
            await asyncio.Event().wait()
        async with message.writer(interrupt=True) as writer:
            for number in range(100_000):
                await writer.write(f"{number} ")
                begun.set()
                await asyncio.sleep(0.01 if writes == "a token a moment" else 1000)

    conversation = await converse.start_conversation()
    async with Generations(respond, grace=0) as generations, logged(caplog) as found:
        turns = Turns(generations, Limits())
        _, answer = await turns.ask(conversation, "Hello?")
        assert answer is not None
        await begun.wait()
        await until(lambda: converse.statistics().streams_opened > 0)
        await delete(
            await other.get_conversation(conversation.id), await other.get_message(answer.id)
        )
        await until(lambda: generations.running == 0)
    assert found == []


# What a second reading found


@WAYS
async def test_begin__outlives_the_deadline_of_its_request(converse: Converse, by: str) -> None:
    """Its turn ends as well: the next question does not wait for a lease."""
    conversation = await converse.start_conversation()
    async with a_process(by=by) as turns:
        with pymongo.timeout(0.001):
            await asyncio.sleep(0.01)
            _, answer = await turns.ask(conversation, "Hello?")
        assert answer is not None
        assert answer.is_streaming
        stored = await collection_of(converse.conversation_model).find_one({"_id": conversation.id})
        assert "answer_turn" not in stored


@WAYS
async def test_ask__again_is_not_answered_behind_another_question(
    converse: Converse, by: str
) -> None:
    conversation = await converse.start_conversation()
    await conversation.create_user_message("First", generation_id="request:r")
    await conversation.create_user_message("Second")
    async with a_process(by=by) as turns:
        with pytest.raises(ConflictError, match="Another message has been sent since then"):
            await turns.ask(conversation, "First", "r")
    assert [each.content for each in await conversation.messages()] == ["First", "Second"]


@WAYS
async def test_stop__of_an_answer_that_was_asked_for_again_wins(
    converse: Converse, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    conversation = await converse.start_conversation()
    async with a_process(by=by) as turns:
        await turns.stop(conversation, request_id="r")
        store = conversation.store().answers
        forget, early = store.forget_stop, 0

        async def stopped_again(*keys: ObjectId) -> None:
            nonlocal early
            await forget(*keys)
            early += 1
            await turns.stop(conversation, request_id="r")

        monkeypatch.setattr(store, "forget_stop", stopped_again)
        _, answer = await turns.ask(conversation, "Hello?", "r", heed_stop=False)
        assert answer is not None
        assert early == 1
        async with asyncio.timeout(SOON):
            async for _ in converse.watch_message(answer.id):
                pass
        assert (await answer.refresh()).status is MessageStatus.CANCELLED


async def test_answer__that_grows_without_a_writer_is_not_begun_again(converse: Converse) -> None:
    conversation = await converse.start_conversation()
    async with a_process(model := Model()) as turns:
        _, answer = await turns.ask(conversation, "Hello?", "r")
        assert answer is not None
        await asyncio.wait_for(model.was_asked.wait(), SOON)
    other = Model()
    begun = await converse.start_conversation()
    question = await begun.create_user_message("Hello?", generation_id="request:r")
    streaming = await begun.start_streaming_assistant(generation_id=f"answer:{question.id}")
    await streaming.append_chunk("one ")
    async with a_process(other) as turns:
        _, found = await turns.ask(begun, "Hello?", "r")
        assert found is not None
        assert found.id == streaming.id
        await asyncio.sleep(0.05)
        assert other.asked == []


@BOTH
async def test_stop__of_a_question_finds_an_answer_whose_predecessor_was_deleted(
    site: Site,
) -> None:
    conversation = await site.conversation()
    first, second = await retried(site, conversation)
    await (await site.converse.get_message(first)).delete()
    assert [each["id"] for each in await stop(site, conversation, request_id="r")] == [second]
    assert (await wait_for_end(site, second)).status is MessageStatus.CANCELLED
