"""Answers that wait in a queue: how requests queue them, what browsers see, and whom they ask."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import jsonschema
import pytest
from bson import ObjectId
from websockets.asyncio.client import connect

from converse_mongo import (
    ConfigurationError,
    Conversation,
    Converse,
    Message,
    MessageStatus,
    PartIdentity,
    Queue,
)
from converse_mongo.web import Generations, Limits, openapi_paths, routes
from converse_mongo.web.answering import queued_answers
from converse_mongo.web.errors import InternalError
from converse_mongo.web.turns import Turns
from tests.conftest import Facade
from tests.streams import SOON
from tests.web.conftest import OWNER, STRANGER, MakeSite, Model, Site, read_events, working
from tests.web.helpers import say, ui_question, wait_for_end

QUEUED = {"state": "queued", "attempt": 1}


@pytest.fixture
def waits() -> dict[str, Any]:
    """The options of a site whose answers wait, since there is no worker."""
    return {"generations": Queue("default")}


async def get(site: Site, path: str) -> Any:
    response = await site.http.get(path)
    assert response.status_code == 200, response.text
    return response.json()


async def post(site: Site, path: str, body: Any = None, **more: Any) -> httpx.Response:
    return await site.http.post(path, json={} if body is None else body, **more)


def path_of(answer: dict[str, Any]) -> str:
    return f"/conversations/{answer['conversation_id']}/messages/{answer['id']}"


# Queueing


async def test_question__without_a_worker_waits_and_can_be_stopped(
    make_site: MakeSite, waits: dict[str, Any]
) -> None:
    site = await make_site(**waits)
    conversation = await site.conversation()
    answer = (await say(site, conversation, request_id="r"))["answer"]
    assert (answer["status"], answer["work"]) == ("streaming", QUEUED)
    again = (await say(site, conversation, request_id="r"))["answer"]
    assert (again["id"], again["work"]) == (answer["id"], QUEUED)
    assert (await get(site, path_of(answer)))["work"] == QUEUED
    history = await get(site, f"/conversations/{conversation.id}/messages")
    assert [each.get("work") for each in history["messages"]] == [None, QUEUED]

    refused = await post(site, f"/conversations/{conversation.id}/messages", {"content": "And?"})
    assert refused.status_code == 409
    stopped = (await post(site, f"{path_of(answer)}/stop")).json()
    assert stopped == {"id": answer["id"], "status": "cancelled"}
    assert "work" not in await get(site, path_of(answer))

    retried = (await post(site, f"{path_of(answer)}/retry")).json()["answer"]
    assert (retried["replaces"], retried["work"]) == (answer["id"], QUEUED)
    model = Model()
    model.say("Now", None)
    async with working(site.converse, model.respond):
        read = await wait_for_end(site, retried["id"])
    assert (read.content, read.attempt) == ("Now", 1)
    assert "work" not in await get(site, path_of(retried))


async def test_chat__waits_in_the_queue_and_streams_the_answer(
    make_site: MakeSite, waits: dict[str, Any]
) -> None:
    """The stream has no part for what an answer waits for, and goes on with its heartbeats."""
    site = await make_site(heartbeat=0.02, **waits)
    conversation = await site.conversation()
    body = {"id": str(conversation.id), "messages": [ui_question("Hello?")]}
    model, lines = Model(), list[str]()
    model.say("Hi", None)
    async with site.http.stream("POST", "/chat", json=body) as stream, asyncio.timeout(SOON):
        assert stream.status_code == 200
        coming = stream.aiter_lines()
        while lines.count(": ping") < 3:
            lines.append(await anext(coming))
        assert [each["type"] for each in data_of(lines)] == ["start"]
        async with working(site.converse, model.respond):
            lines += [line async for line in coming]
    kinds = [each["type"] for each in data_of(lines)]
    assert kinds == ["start", "text-start", "text-delta", "text-end", "finish"]


def data_of(lines: list[str]) -> list[dict[str, Any]]:
    sent = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    return [json.loads(each) for each in sent if each != "[DONE]"]


@pytest.mark.parametrize(
    ("key", "stored"),
    [
        (None, '["user","ada"]'),
        (lambda request, conversation: "acme", '"acme"'),
        (lambda request, conversation: ("tenant", 7), '["tenant","7"]'),
        (lambda request, conversation: 7, '["7"]'),
        (lambda request, conversation: None, None),
    ],
)
async def test_key__is_that_of_the_limits(make_site: MakeSite, key: Any, stored: Any) -> None:
    site = await make_site(generations=Queue("default", per_key=1), limits=Limits(key=key))
    answers = [(await say(site, await site.conversation()))["answer"] for _ in range(2)]
    messages = [await site.converse.get_message(each["id"]) for each in answers]
    works = [each.work for each in messages if each.work is not None]
    assert [each.key for each in works] == [stored, stored]
    second = "queued" if stored is None else "blocked"
    assert [each.state for each in works] == ["queued", second]
    assert [each["work"] for each in answers] == [QUEUED, QUEUED]  # for browsers, both wait


async def test_key__without_a_limit_is_not_stored(make_site: MakeSite) -> None:
    site = await make_site(generations="answers")
    answer = (await say(site, await site.conversation()))["answer"]
    work = (await site.converse.get_message(answer["id"])).work
    assert work is not None
    assert (work.queue, work.key) == ("answers", None)


@pytest.mark.parametrize("key", ["", ("a", ""), "x" * 600])
async def test_key__that_cannot_be_stored_stores_nothing(
    make_site: MakeSite, key: Any, caplog: pytest.LogCaptureFixture
) -> None:
    limits = Limits(key=lambda request, conversation: key)
    site = await make_site(generations=Queue("default", per_key=1), limits=limits)
    conversation = await site.conversation()
    refused = await post(site, f"/conversations/{conversation.id}/messages", {"content": "Hello"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (500, "internal")
    assert await conversation.messages() == []
    assert "Limits.key" in caplog.text


@pytest.mark.parametrize("given", [7, True, "", b"default", ["default"], Queue("q", per_key=10**6)])
async def test_routes__refuse_what_is_no_queue(converse: Converse, given: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"generations=.*pass Generations\(respond\)"):
        routes(converse, authorize=lambda request, conversation: True, generations=given)


async def test_request__that_is_cancelled_is_finished(
    converse: Converse, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversation = await converse.start_conversation()
    turns = Turns(queued_answers("default"), Limits())
    added, go_on = asyncio.Event(), asyncio.Event()
    start = Conversation.start_streaming_assistant

    async def start_late(*arguments: Any, **more: Any) -> Message:
        added.set()
        await go_on.wait()
        return await start(*arguments, **more)

    monkeypatch.setattr(Conversation, "start_streaming_assistant", start_late)
    asking = asyncio.create_task(turns.ask(conversation, "Hello?", "r"))
    await asyncio.wait_for(added.wait(), SOON)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    again = asyncio.create_task(turns.ask(conversation, "Hello?", "r"))
    await asyncio.sleep(0)
    go_on.set()
    question, answer = await asyncio.wait_for(again, SOON)
    assert answer is not None
    assert [each.id for each in await conversation.messages()] == [question.id, answer.id]


async def test_stop__that_came_before_is_heeded_by_no_worker(
    make_site: MakeSite, waits: dict[str, Any]
) -> None:
    """It is not even queued: a worker could be faster than the stop."""
    site = await make_site(**waits)
    conversation = await site.conversation()
    await post(site, f"/conversations/{conversation.id}/stop", {"request_id": "r"})
    answer = (await say(site, conversation, request_id="r"))["answer"]
    assert (answer["status"], answer.get("work")) == ("cancelled", None)
    assert (await site.converse.get_message(answer["id"])).work is None


async def test_stop__whose_answer_was_queued_by_a_process_that_died_wins(
    converse: Converse, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversation = await converse.start_conversation()
    turns = Turns(queued_answers("default"), Limits())
    with monkeypatch.context() as patched:
        patched.setattr(Turns, "_heed_early_stop", lambda *_: asyncio.sleep(0))
        _, answer = await turns.ask(conversation, "Hello?", "r")
    assert answer is not None
    assert answer.is_streaming
    await conversation.store().answers.stop_early(conversation.id, answer.id, "no")
    _, again = await turns.ask(conversation, "Hello?", "r")
    assert again is not None
    assert (again.id, again.status) == (answer.id, MessageStatus.CANCELLED)


async def test_generations__leave_queued_answers_alone(converse: Converse) -> None:
    """As in a deploy from the one to the other."""
    conversation = await converse.start_conversation()
    queued = Turns(queued_answers("default"), Limits())
    question, answer = await queued.ask(conversation, "Hello?", "r")
    assert answer is not None
    model = Model()
    async with Generations(model.respond, grace=0) as generations:
        here = Turns(generations, Limits())
        assert (await here.ask(conversation, "Hello?", "r"))[1] is not None
        assert (await here.answer(conversation, question.id)).id == answer.id
        generations.start(conversation, await converse.get_message(answer.id))
        assert generations.running == 0
    await answer.refresh()
    assert (answer.is_streaming, model.asked) == (True, [])


async def test_begin__is_bounded(converse: Converse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converse_mongo.web.answering.BEGUN_AT_ONCE", 1)
    conversation = await converse.start_conversation()
    turns = Turns(queued_answers("default"), Limits())
    first = asyncio.create_task(turns.ask(conversation, "Hello?"))
    await asyncio.sleep(0)
    with pytest.raises(Exception, match="busy"):
        await turns.ask(await converse.start_conversation(), "Hello?")
    await first


async def test_key__is_checked_before_anything_is_stopped(converse: Converse) -> None:
    conversation = await converse.start_conversation()
    turns = Turns(queued_answers(Queue("default", per_key=1)), Limits())
    _, answer = await turns.ask(conversation, "Hello?", key="ada")
    assert answer is not None
    with pytest.raises(InternalError):
        await turns.retry(conversation, answer.id, key="", meanwhile="stop")
    assert (await answer.refresh()).is_streaming


# What browsers see


async def test_events__of_a_queued_answer_have_no_id(
    make_site: MakeSite, waits: dict[str, Any]
) -> None:
    site = await make_site(**waits)
    conversation = await site.conversation()
    answer = (await say(site, conversation))["answer"]
    model = Model()
    schemas = {path: each["get"] for path, each in openapi_paths().items() if "get" in each}
    one = "/conversations/{conversation}"
    places = f"{one}/events", f"{one}/messages/{{message}}/events"
    values = {"conversation": answer["conversation_id"], "message": answer["id"]}

    async def follow(place: str) -> list[str]:
        """The blocks of a stream, to the end of the answer."""
        blocks = [""]
        async with site.http.stream("GET", place.format(**values)) as stream:
            async for line in stream.aiter_lines():
                if line:
                    blocks[-1] += f"{line}\n"
                elif "message.queued" in blocks[-1]:
                    queued[place].set()
                    blocks.append("")
                elif "event: message.completed" in blocks[-1]:
                    return blocks
                else:
                    blocks.append("")
        raise AssertionError(blocks)

    queued = {place: asyncio.Event() for place in places}
    async with asyncio.timeout(SOON), asyncio.TaskGroup() as tasks:
        following = [tasks.create_task(follow(place)) for place in places]
        for each in queued.values():
            await each.wait()
        async with working(site.converse, model.respond):
            await model.was_asked.wait()
            model.say("Hi", None)
            await asyncio.wait(following)
    for place, task in zip(places, following, strict=True):
        blocks = [each for each in task.result() if "event: " in each]
        news = [each for each in blocks if "queued" in each or "message.started" in each]
        assert ["id: " in each for each in blocks if each not in news] == [True] * (
            len(blocks) - len(news)
        )
        assert not any("id: " in each for each in news)
        schema = schemas[place]["responses"]["200"]["content"]["text/event-stream"]["schema"]
        for block in blocks:
            data = json.loads(block.partition("data: ")[2])
            jsonschema.validate(data, schema["contentSchema"])
        assert '"attempt":1' in news[0]


async def test_socket__has_the_news_without_an_id(
    make_site: MakeSite, waits: dict[str, Any]
) -> None:
    site = await make_site(**waits)
    conversation = await site.conversation()
    await say(site, conversation)
    uri = f"ws://127.0.0.1:{site.port}/api/conversations/{conversation.id}/socket"
    async with connect(uri, additional_headers=OWNER, proxy=None) as socket:
        async with asyncio.timeout(SOON):
            received = [json.loads(await socket.recv()) for _ in range(3)]
    assert [each["type"] for each in received][2] == "message.queued"
    assert [each["id"] is None for each in received] == [False, False, True]


# Tool calls that wait for people


async def ask_people(_: Conversation, message: Message) -> None:
    """Asks for an approval and for an output, and then says what it was given."""
    async with message.writer() as writer:
        if message.attempt == 1 and not message.parts:
            erase = await writer.start_tool_call("erase", call_id="erase_1")
            await erase.set_input({"all": True})
            await erase.request_approval()
            locate = await writer.start_tool_call("locate", call_id="locate_1", executor="client")
            await locate.set_input({})
            await writer.suspend()
            return
        erase_part, locate_part = message.parts[:2]
        assert erase_part.approval is not None  # type: ignore[attr-defined]
        approval = erase_part.approval  # type: ignore[attr-defined]
        said = locate_part.output, locate_part.error  # type: ignore[attr-defined]
        await writer.write(json.dumps([approval.approved, approval.reason, *said]))


@asynccontextmanager
async def asked(site: Site) -> AsyncIterator[dict[str, Any]]:
    """An answer that waits for people, with a worker."""
    conversation = await site.conversation()
    async with working(site.converse, ask_people):
        answer = (await say(site, conversation))["answer"]
        found: Any = {}

        async def waits() -> bool:
            nonlocal found
            found = await get(site, path_of(answer))
            return bool(found["work"]["state"] == "waiting")

        async with asyncio.timeout(SOON):
            while not await waits():  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        yield found


PENDING = [
    {"call_id": "erase_1", "wanted": "approval"},
    {"call_id": "locate_1", "wanted": "output"},
]


async def test_answers__let_the_message_go_on(make_site: MakeSite, waits: dict[str, Any]) -> None:
    site = await make_site(**waits)
    async with asked(site) as answer:
        assert answer["work"] == {"state": "waiting", "attempt": 1, "pending": PENDING}
        path = f"{path_of(answer)}/answers"
        approval = {"call_id": "erase_1", "approved": False, "reason": "No, thanks"}
        given = await post(site, path, {"answers": [approval]})
        assert (given.status_code, given.json()) == (
            200,
            {"work": {"state": "waiting", "attempt": 1, "pending": PENDING[1:]}},
        )
        again = await post(site, path, {"answers": [approval]})
        assert (again.status_code, again.json()["error"]["code"]) == (409, "not_pending")
        assert again.json()["error"]["message"].startswith("This was answered before")
        output = {"call_id": "locate_1", "output": {"city": "Bern"}}
        given = await post(site, path, {"answers": [output]})
        assert given.status_code == 200
        assert (given.json()["work"] or {"state": "queued"})["state"] in ("queued", "running")
        read = await wait_for_end(site, answer["id"])
    assert json.loads(read.content) == [False, "No, thanks", {"city": "Bern"}, None]
    late = await post(site, path, {"answers": [output]})
    assert (late.status_code, late.json()["error"]["code"]) == (409, "conflict")


async def test_answers__of_one_request_are_stored_once(
    make_site: MakeSite, waits: dict[str, Any]
) -> None:
    site = await make_site(**waits)
    async with asked(site) as answer:
        path = f"{path_of(answer)}/answers"
        body = {"answers": [{"call_id": "erase_1", "approved": True}], "request_id": "r"}
        first, again = await post(site, path, body), await post(site, path, body)
        assert (first.status_code, again.status_code) == (200, 200)
        assert again.json()["work"]["pending"] == PENDING[1:]
        other = {"answers": [{"call_id": "erase_1", "approved": False}], "request_id": "r"}
        assert (await post(site, path, other)).status_code == 409
        await post(site, path, {"answers": [{"call_id": "locate_1", "error": "off"}]})
        read = await wait_for_end(site, answer["id"])
    assert json.loads(read.content) == [True, None, None, "off"]


@pytest.mark.parametrize(
    "answers",
    [
        [],
        [{}],
        [{"call_id": "erase_1"}],
        [{"call_id": "", "approved": True}],
        [{"call_id": "erase_1", "approved": "yes"}],
        [{"call_id": "erase_1", "approved": 1}],
        [{"call_id": "erase_1", "approved": True, "output": 1}],
        [{"call_id": "locate_1", "output": 1, "error": "x"}],
        [{"call_id": "locate_1", "output": 2**70}],
        [{"call_id": "erase_1", "approved": True}] * 2,
        [{"call_id": f"c{number}", "approved": True} for number in range(101)],
        "erase_1",
        None,
    ],
)
async def test_answers__that_are_none_are_refused(
    make_site: MakeSite, waits: dict[str, Any], answers: Any
) -> None:
    site = await make_site(**waits)
    async with asked(site) as answer:
        refused = await post(site, f"{path_of(answer)}/answers", {"answers": answers})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_request")
        assert (await get(site, path_of(answer)))["work"]["pending"] == PENDING


@pytest.mark.parametrize(
    "body",
    [
        {"call_id": "x" * 1001, "approved": True},
        {"call_id": "erase_1", "approved": True, "reason": "é" * 501},
        {"call_id": "locate_1", "error": "x" * 16_385},
    ],
)
async def test_answers__are_bounded(
    make_site: MakeSite, waits: dict[str, Any], body: dict[str, Any]
) -> None:
    site = await make_site(**waits)
    async with asked(site) as answer:
        refused = await post(site, f"{path_of(answer)}/answers", {"answers": [body]})
        assert (refused.status_code, refused.json()["error"]["code"]) == (413, "too_large")
        assert (await get(site, path_of(answer)))["work"]["pending"] == PENDING


async def test_answers__of_a_message_that_waits_for_nobody(
    make_site: MakeSite, waits: dict[str, Any]
) -> None:
    site = await make_site(**waits)
    conversation = await site.conversation()
    said = await say(site, conversation)
    question, answer = said["message"], said["answer"]
    body = {"answers": [{"call_id": "c", "approved": True}]}
    queued = await post(site, f"{path_of(answer)}/answers", body)
    assert (queued.status_code, queued.json()["error"]["code"]) == (409, "not_pending")
    ended = await post(site, f"{path_of(question)}/answers", body)
    assert (ended.status_code, ended.json()["error"]["code"]) == (409, "conflict")


async def test_answers__of_a_stranger_change_nothing(
    make_site: MakeSite, waits: dict[str, Any]
) -> None:
    site = await make_site(**waits)
    async with asked(site) as answer:
        body = {"answers": [{"call_id": "erase_1", "approved": True}]}
        refused = await post(site, f"{path_of(answer)}/answers", body, headers=STRANGER)
        assert refused.status_code == 404
        other = {**answer, "conversation_id": str((await site.conversation()).id)}
        assert (await post(site, f"{path_of(other)}/answers", body)).status_code == 404
        absent = {**answer, "id": str(ObjectId())}
        assert (await post(site, f"{path_of(absent)}/answers", body)).status_code == 404
        assert (await get(site, path_of(answer)))["work"]["pending"] == PENDING


async def test_calls__that_browsers_do_not_see_are_not_theirs(
    make_site: MakeSite, waits: dict[str, Any]
) -> None:
    """Somebody else is to answer them."""

    def show_parts(part: PartIdentity) -> bool:
        return part.name != "erase"

    site = await make_site(show_parts=show_parts, **waits)
    async with asked(site) as answer:
        assert answer["work"]["pending"] == PENDING[1:]
        body = {"answers": [{"call_id": "erase_1", "approved": True}]}
        refused = await post(site, f"{path_of(answer)}/answers", body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "not_pending")
        async with asyncio.timeout(SOON):
            async with site.http.stream("GET", f"{path_of(answer)}/events") as stream:
                async for sent in read_events(stream):
                    if sent.event == "message.suspended":
                        break
        assert sent.data["pending"] == PENDING[1:]
        stored = await site.converse.get_message(answer["id"])
        assert stored.work is not None
        assert [each.call_id for each in stored.work.pending] == ["erase_1", "locate_1"]


async def test_suspended__names_the_calls_on_a_stream(
    make_site: MakeSite, waits: dict[str, Any]
) -> None:
    site = await make_site(**waits)
    async with asked(site) as answer, asyncio.timeout(SOON):
        path = f"/conversations/{answer['conversation_id']}/events"
        async with site.http.stream("GET", path) as stream:
            async for sent in read_events(stream):
                if sent.event == "message.suspended":
                    break
        assert (sent.data["attempt"], sent.data["pending"]) == (1, PENDING)


async def test_expiry__is_shown(facade: Facade) -> None:
    converse: Converse = await facade()
    conversation = await converse.start_conversation()

    async def suspend(_: Conversation, message: Message) -> None:
        async with message.writer() as writer:
            call = await writer.start_tool_call("erase", call_id="c")
            await call.set_input({})
            await call.request_approval()
            await writer.suspend(expires=600)

    message = await conversation.start_streaming_assistant(queue="default")
    async with working(converse, suspend):

        async def shown() -> Any:
            return json.loads((await converse.get_message(message.id)).model_dump_json())["work"]

        async with asyncio.timeout(SOON):
            while (work := await shown())["state"] != "waiting":  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    stored = (await converse.get_message(message.id)).work
    assert stored is not None
    (call,) = work["pending"]
    assert stored.pending[0].expires_at is not None
    assert call["expires_at"] == stored.pending[0].expires_at.isoformat()
