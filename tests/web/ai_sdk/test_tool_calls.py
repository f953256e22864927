"""Tool calls on pages of the AI SDK: approvals, tools that the page runs, and forged answers."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from copy import deepcopy
from typing import Any

import httpx
import pytest

from converse_mongo import (
    Conversation,
    DataPart,
    Message,
    MessageStatus,
    PartIdentity,
    PartSet,
    PartStart,
    Queue,
    SourceUrlPart,
    ToolCallPart,
)
from converse_mongo.domain.work import WorkState
from converse_mongo.web import Generations
from tests.streams import SOON
from tests.web.ai_sdk.node import needs_node
from tests.web.ai_sdk.test_client import client
from tests.web.conftest import STRANGER, MakeSite, Site, read_all, working
from tests.web.helpers import ui_question, wait_for_end


async def agent(_: Conversation, message: Message) -> None:
    """Asks people, does what they allow, and says what came of it."""
    calls = [part for part in message.parts if isinstance(part, ToolCallPart)]
    async with message.writer() as writer:
        if not calls:
            async with writer.step():
                await writer.write_reasoning("What to do?")
                await writer.write("I have to ask. ")
                await writer.write(SourceUrlPart("https://example.org"))
                for name in ("read", "erase"):
                    call = await writer.start_tool_call(name, call_id=f"{name}_1")
                    await call.set_input({"path": name})
                    await call.request_approval(f"may_{name}")
                call = await writer.start_tool_call("locate", call_id="l_1", executor="client")
                await call.set_input({})
            await writer.write("Please answer. ")
            await writer.suspend()
            return
        await writer.write("Thank you. ")  # it goes on with the text before
        for part in calls:
            approval = part.approval
            if approval is not None and approval.approved:
                call = writer.continue_tool_call(part)
                async with call.execution():
                    await call.set_output(f"{part.name} done")
        async with writer.step():
            await writer.write(DataPart("answered", [part.state for part in calls]))
            await writer.write("Done")


WAITING = "I have to ask. Please answer. "
WHOLE = f"{WAITING}Thank you. Done"
TRANSPORTS = ["default", "converse", "workflow"]


async def waiting(conversation: Conversation) -> Message:
    """The last message, once it waits for people."""
    async with asyncio.timeout(SOON):
        while True:
            message = (await conversation.messages())[-1]
            if message.work is not None and message.work.state is WorkState.WAITING:
                return message
            await asyncio.sleep(0.01)


@pytest.fixture
async def asked(make_site: MakeSite) -> AsyncIterator[tuple[Site, Conversation, dict[str, Any]]]:
    """A chat whose answer waits for people, as the page has it."""
    async with asking(make_site) as found:
        yield found


@asynccontextmanager
async def asking(
    make_site: MakeSite, respond: Any = agent, **options: Any
) -> AsyncIterator[tuple[Site, Conversation, dict[str, Any]]]:
    site = await make_site(generations=Queue("default"), **options)
    conversation = await site.conversation()
    async with working(site.converse, respond):
        await ask(site, conversation)
        await waiting(conversation)
        yield site, conversation, (await history(site, conversation))[-1]


async def ask(site: Site, conversation: Conversation, name: str = "q1") -> list[Any]:
    body = {"id": str(conversation.id), "messages": [ui_question("Do it", name)]}
    return await parts_of(await post(site, body))


async def post(site: Site, body: Any, **more: Any) -> httpx.Response:
    return await site.http.post("/chat", json=body, **more)


async def parts_of(response: httpx.Response) -> list[Any]:
    assert response.status_code == 200, response.text
    return [each.data for each in (await read_all(response))[:-1]]


async def history(site: Site, conversation: Conversation) -> list[Any]:
    response = await site.http.get(f"/chat/{conversation.id}")
    assert response.status_code == 200, response.text
    found: list[Any] = response.json()
    return found


def answered(message: dict[str, Any], **said: Any) -> dict[str, Any]:
    """The message as the page has it once the calls with these ids were answered."""
    message = deepcopy(message)
    for part in message["parts"]:
        answer = said.get(part.get("toolCallId", ""))
        if isinstance(answer, bool):
            part["state"] = "approval-responded"
            part["approval"] = {**part["approval"], "approved": answer}
        elif answer is not None:
            part |= {"state": "output-available", "output": answer}
    return message


def request(conversation: Conversation, message: dict[str, Any], **more: Any) -> dict[str, Any]:
    """What the SDK sends then."""
    common = {"id": str(conversation.id), "trigger": "submit-message"}
    return {**common, "messageId": message.get("id"), "messages": [message], **more}


ALL = {"read_1": True, "erase_1": False, "l_1": {"city": "Paris"}}


# With the client of the SDK


@needs_node
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_page__asks_answers_and_goes_on_under_one_id(
    make_site: MakeSite, transport: str
) -> None:
    site = await make_site(generations=Queue("default"))
    async with working(site.converse, agent):
        await expect_one_answer(site, transport)


@needs_node
async def test_page__asks_answers_and_goes_on_in_a_web_process(make_site: MakeSite) -> None:
    async with Generations(agent, start_over=False) as generations:
        await expect_one_answer(await make_site(generations=generations), TRANSPORTS[0])


async def expect_one_answer(site: Site, transport: str) -> None:
    conversation = await site.conversation()
    actions = (
        *("send:Do it", "approve:may_read", 'output:l_1:{"city":"Paris"}', "deny:may_erase"),
        f"until:{WHOLE}",
    )
    async with client(site, conversation, *actions, transport=transport) as page:
        found = await page.end()
    assert (found["status"], found["error"]) == ("ready", None)
    stored = await conversation.messages()
    assert [each["id"] for each in found["messages"]][1:] == [str(stored[1].id)]
    assert stored[1].status is MessageStatus.COMPLETED
    reloaded = (await history(site, conversation))[-1]
    assert found["messages"][-1]["parts"] == reloaded["parts"]
    states = [part["state"] for part in reloaded["parts"] if part["type"].startswith("tool-")]
    assert states == ["output-available", "output-denied", "output-available"]
    assert reloaded["parts"][-2] == {
        "type": "data-answered",
        "data": ["approval-responded", "output-denied", "output-available"],
    }


@needs_node
@pytest.mark.parametrize("transport", TRANSPORTS[:2])  # that of workflows knows no 204
async def test_page__reloaded_shows_what_waits_and_answers_it(
    asked: tuple[Site, Conversation, Any], transport: str
) -> None:
    site, conversation, _ = asked
    actions = (
        *("resume", "approve:may_read", "approve:may_erase", "output:l_1:1", f"until:{WHOLE}"),
        "resume",
    )
    async with client(site, conversation, *actions, transport=transport) as page:
        found = await page.end()
    assert (found["status"], found["error"]) == ("ready", None)
    reloaded = (await history(site, conversation))[-1]
    assert found["messages"][-1]["parts"] == reloaded["parts"]


@needs_node
@pytest.mark.parametrize("transport", TRANSPORTS[1:])
async def test_page__whose_connection_breaks_goes_on_with_the_rest(
    asked: tuple[Site, Conversation, Any], transport: str
) -> None:
    """The parts behind an answer are counted from there on."""
    site, conversation, _ = asked
    answers = "approve:may_read", "approve:may_erase", "output:l_1:1"
    actions = "cut:1,2,1", *answers, f"until:{WHOLE}"
    async with client(site, conversation, *actions, transport=transport) as page:
        found = await page.end()
    assert (found["status"], found["error"]) == ("ready", None)
    reloaded = (await history(site, conversation))[-1]
    assert found["messages"][-1]["parts"] == reloaded["parts"]


# Over the wire


async def test_stream__finishes_when_the_message_waits_and_a_reload_has_it(
    asked: tuple[Site, Conversation, Any],
) -> None:
    site, conversation, shown = asked
    resumed = await site.http.get(f"/chat/{conversation.id}/stream")
    sent = [each.data for each in (await read_all(resumed))[:-1]]
    assert sent[-1] == {"type": "finish", "finishReason": "tool-calls"}
    assert [part.get("state") for part in shown["parts"]] == [
        *(None, "done", "done", None, "approval-requested", "approval-requested"),
        *("input-available", "streaming"),
    ]
    headers = (await site.http.get(f"/chat/{conversation.id}")).headers
    path = f"/chat/{conversation.id}/stream?resume={headers['x-converse-resume']}"
    assert (await site.http.get(path)).status_code == 204


async def test_answers__are_one_write_and_the_stream_has_what_follows(
    asked: tuple[Site, Conversation, Any],
) -> None:
    site, conversation, shown = asked
    before = await waiting(conversation)
    response = await post(site, request(conversation, answered(shown, **ALL)))
    parts = await parts_of(response)
    assert parts[0] == {"type": "start", "messageId": shown["id"]}
    assert parts[-1]["type"] == "finish"
    message = await site.converse.get_message(shown["id"])
    behind = message.chunks.stored[before.next_sequence :]
    assert [each["part"] for each in behind[:3]] == [
        each.part
        for each in before.work.pending  # type: ignore[union-attr]
    ]
    assert ["append_id" in each for each in behind[:4]] == [True, False, False, True]
    run = response.headers["x-workflow-run-id"]
    assert run == f"run_{conversation.id}_{shown['id']}_{before.next_sequence}"
    await expect_run(site, run, parts)


async def expect_run(site: Site, run: str, parts: list[Any]) -> None:
    """Expects that a run has these parts, counted from its start and from its end."""
    for first in range(len(parts)):
        path = f"/chat/{run}/stream?startIndex={first}"
        assert same(await parts_of(await site.http.get(path)), parts[first:])
        path = f"/chat/{run}/stream?startIndex={-first - 1}"
        assert same(await parts_of(await site.http.get(path)), parts[-first - 1 :])


async def test_run__is_counted_from_its_end_if_a_part_was_changed_before_the_answers(
    make_site: MakeSite,
) -> None:
    async def change(_: Conversation, message: Message) -> None:
        async with message.writer() as writer:
            if message.parts:
                await writer.write("Done")
                return
            call = await writer.start_tool_call("locate", call_id="l_1", executor="client")
            await call.set_input({})
            await writer.write(PartStart(SourceUrlPart(""), "source"))
            await writer.write(PartSet("source", {"url": "https://example.org"}))
            await writer.suspend()

    async with asking(make_site, change) as (site, conversation, shown):
        assert [part["type"] for part in shown["parts"]] == ["tool-locate", "source-url"]
        response = await post(site, request(conversation, answered(shown, l_1="Paris")))
        parts = await parts_of(response)
        await expect_run(site, response.headers["x-workflow-run-id"], parts)


def same(parts: list[Any], others: list[Any]) -> bool:
    """Whether streams are the same, but for metadata that were added since they began."""
    return [each | {"messageMetadata": None} for each in parts] == [
        each | {"messageMetadata": None} for each in others
    ]


async def test_answers__of_some_calls_leave_the_others_waiting(
    asked: tuple[Site, Conversation, Any],
) -> None:
    site, conversation, shown = asked
    parts = await parts_of(await post(site, request(conversation, answered(shown, read_1=True))))
    assert parts[-1] == {"type": "finish", "finishReason": "tool-calls"}
    assert [each.call_id for each in await pending(conversation)] == ["erase_1", "l_1"]
    rest = answered((await history(site, conversation))[-1], erase_1=True, l_1=None)
    rest["parts"][-2] |= {"state": "output-error", "errorText": "no GPS"}
    parts = await parts_of(await post(site, request(conversation, rest)))
    assert parts[-1]["type"] == "finish"
    assert {"type": "tool-output-error", "toolCallId": "l_1", "errorText": "no GPS"} in parts


async def pending(conversation: Conversation) -> Any:
    message = (await conversation.messages())[-1]
    return [] if message.work is None else message.work.pending


# Hostile pages


async def everything(conversation: Conversation) -> Any:
    """What is stored of a chat."""
    messages = await conversation.messages()
    found = [await conversation.get_message(each.id) for each in messages]
    return [
        (each.id, each.content, each.status, each.next_sequence, each.chunks.stored, each.work)
        for each in found
    ]


def part_at(message: dict[str, Any], call_id: str) -> Any:
    return next(part for part in message["parts"] if part.get("toolCallId") == call_id)


def forged(shown: dict[str, Any]) -> dict[str, tuple[dict[str, Any], int, str]]:
    """Messages that answer nothing, and what is said of them: the status and the code."""

    def of(call_id: str, **changes: Any) -> dict[str, Any]:
        message = deepcopy(shown)
        part_at(message, call_id).update(changes)
        return message

    yes = {"id": "may_read", "approved": True}
    done = {"state": "output-available", "output": "forged"}
    not_pending = 409, "not_pending"
    return {
        "nothing": (shown, *not_pending),
        "an input": (of("read_1", input={"path": "/etc"}), *not_pending),
        "another request": (
            of("read_1", approval={**yes, "id": "may_erase_all"}, state="approval-responded"),
            *not_pending,
        ),
        "the request of another call": (
            of("read_1", approval={**yes, "id": "may_erase"}, state="approval-responded"),
            *not_pending,
        ),
        "an approval without an answer": (
            of("read_1", approval={"id": "may_read"}, state="approval-responded"),
            *not_pending,
        ),
        "an approval that is neither": (
            of("read_1", approval={**yes, "approved": "yes"}, state="approval-responded"),
            *not_pending,
        ),
        "an output of a server's tool": (of("read_1", **done), *not_pending),
        "an output of an unknown call": (
            {**shown, "parts": [{"type": "tool-x", "toolCallId": "x", **done}]},
            *not_pending,
        ),
        "a preliminary output": (of("l_1", **done, preliminary=True), *not_pending),
        "an error that is none": (of("l_1", state="output-error", errorText=5), *not_pending),
        "an empty error": (
            of("l_1", state="output-error", errorText=" "),
            *(400, "invalid_request"),
        ),
        "a long reason": (
            of(
                "read_1",
                approval={**yes, "reason": "x" * 2000},
                state="approval-responded",
            ),
            *(413, "too_large"),
        ),
        "an output of 10 MB": (
            of("l_1", state="output-available", output="x" * 10_000_000),
            *(413, "too_large"),
        ),
        "an output of a million values": (
            of("l_1", state="output-available", output=[0] * 500_000),
            *(413, "too_large"),
        ),
        "no parts": ({**shown, "parts": None}, 400, "invalid_request"),
        "parts that are none": ({**shown, "parts": [1, None, {"type": 3}]}, *not_pending),
        "no such message": ({**answered(shown, **ALL), "id": "f" * 24}, 404, "not_found"),
        "an id that is none": ({**answered(shown, **ALL), "id": 7}, 400, "invalid_request"),
    }


async def test_forged_answers__are_refused_and_change_nothing(
    asked: tuple[Site, Conversation, Any],
) -> None:
    site, conversation, shown = asked
    before = await everything(conversation)
    for name, (message, status, code) in forged(shown).items():
        response = await post(site, request(conversation, message))
        found = response.status_code, response.json()["error"]["code"]
        assert found == (status, code), (name, response.text)
        assert await everything(conversation) == before, name


async def test_answers__in_the_name_of_others_are_refused(
    asked: tuple[Site, Conversation, Any],
) -> None:
    site, conversation, shown = asked
    other = await site.conversation()
    theirs = await site.conversation("eve")
    good = answered(shown, **ALL)
    before = await everything(conversation)
    question = (await history(site, conversation))[0]
    for name, body, headers, status in (
        ("of another conversation", request(other, good), None, 404),
        ("of the conversation of others", request(theirs, good), None, 404),
        ("of somebody else", request(conversation, good), STRANGER, 404),
        ("about another message", request(conversation, good, messageId=question["id"]), None, 409),
        ("about a question", request(conversation, {**good, "id": question["id"]}), None, 409),
        ("as a user", request(conversation, {**good, "role": "user"}), None, 400),
        ("as the system", request(conversation, {**good, "role": "system"}), None, 400),
    ):
        response = await post(site, body, headers=headers or {})
        assert response.status_code == status, (name, response.text)
        assert await everything(conversation) == before, name


async def test_answers__again_change_nothing_and_other_ones_are_refused(
    asked: tuple[Site, Conversation, Any],
) -> None:
    site, conversation, shown = asked
    good = request(conversation, answered(shown, **ALL))
    both = [
        await parts_of(each) for each in await asyncio.gather(post(site, good), post(site, good))
    ]
    assert same(both[0], both[1])
    stored = await everything(conversation)
    assert same(await parts_of(await post(site, good)), both[0])
    for other in ({"read_1": False}, {"erase_1": True}, {"l_1": {"city": "Rome"}}):
        response = await post(site, request(conversation, answered(shown, **{**ALL, **other})))
        assert (response.status_code, response.json()["error"]["code"]) == (409, "not_pending")
    assert await everything(conversation) == stored
    reloaded = (await history(site, conversation))[-1]
    states = [part["state"] for part in reloaded["parts"] if part["type"].startswith("tool-")]
    assert states == ["output-available", "output-denied", "output-available"]


async def test_answers__that_another_request_stored_first_are_a_repeat(
    asked: tuple[Site, Conversation, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    site, conversation, shown = asked
    real, good = site.converse.answer_tool_calls, request(conversation, answered(shown, **ALL))

    async def be_slow(message_id: Any, answers: Any, *, append_id: Any) -> Any:
        await real(message_id, answers)
        await wait_for_end(site, message_id)
        return await real(message_id, answers, append_id=append_id)

    monkeypatch.setattr(site.converse, "answer_tool_calls", be_slow)
    streamed = await parts_of(await post(site, good))
    stored = await everything(conversation)
    assert same(await parts_of(await post(site, good)), streamed)
    assert await everything(conversation) == stored


async def test_answers__after_a_stop_are_refused(asked: tuple[Site, Conversation, Any]) -> None:
    site, conversation, shown = asked
    await site.http.post(f"/chat/{conversation.id}/stop", json={})
    stored = await everything(conversation)
    assert stored[-1][2] is MessageStatus.CANCELLED
    response = await post(site, request(conversation, answered(shown, **ALL)))
    assert (response.status_code, response.json()["error"]["code"]) == (409, "conflict")
    assert await everything(conversation) == stored


async def test_answers__to_a_call_are_none_to_another_one_with_its_id(
    make_site: MakeSite,
) -> None:
    async def twice(_: Conversation, message: Message) -> None:
        async with message.writer() as writer:
            if len(message.parts) < 2:
                call = await writer.start_tool_call("locate", call_id="c", executor="client")
                await call.set_input(len(message.parts))
                await writer.suspend()

    site = await make_site(generations=Queue("default"))
    conversation = await site.conversation()
    async with working(site.converse, twice):
        await ask(site, conversation)
        for given, name in enumerate(("c", "c#3")):
            await waiting(conversation)
            shown = (await history(site, conversation))[-1]
            assert part_at(shown, name)["state"] == "input-available"
            if given:
                again = await post(site, request(conversation, shown))
                assert again.status_code == 200  # it repeats the answer to the other one
                (left,) = await pending(conversation)
                assert left.part == 3
            answer = answered(shown, **{name: given})
            assert (await post(site, request(conversation, answer))).status_code == 200
    calls = (await conversation.messages())[-1].parts
    assert [each.output for each in calls if isinstance(each, ToolCallPart)] == [0, 1]


async def test_answers__to_calls_that_the_page_may_not_see_are_refused(
    make_site: MakeSite,
) -> None:
    def show_parts(part: PartIdentity) -> bool:
        return part.name != "erase"

    async with asking(make_site, show_parts=show_parts) as (site, conversation, shown):
        assert "erase" not in json.dumps(shown)
        before = await everything(conversation)
        hidden = {
            "type": "tool-erase",
            "toolCallId": "erase_1",
            "state": "approval-responded",
            "approval": {"id": "may_erase", "approved": True},
        }
        response = await post(site, request(conversation, {**shown, "parts": [hidden]}))
        assert (response.status_code, response.json()["error"]["code"]) == (409, "not_pending")
        assert await everything(conversation) == before
