"""Agents in workers: their answers outlive crashes, approvals and deployments."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partialmethod
from typing import Any

import pytest
from pydantic_ai import (
    Agent,
    ApprovalRequired,
    CallDeferred,
    DeferredToolRequests,
    ModelRetry,
    RunContext,
    UsageLimits,
)
from pydantic_ai.messages import repair_messages

from converse_mongo import (
    Approval,
    ConfigurationError,
    Conversation,
    Converse,
    InvalidInputError,
    Message,
    MessageStatus,
    MessageSuspended,
    PartSet,
    RetryPolicy,
    StepPart,
    ToolCallPart,
    ToolOutput,
    WriterFencedError,
)
from converse_mongo.integrations.pydantic_ai import (
    messages_for_pydantic_ai,
    pydantic_ai_events,
    pydantic_ai_respond,
)
from tests.conftest import Facade
from tests.integration.helpers import raw, soon
from tests.integration.test_workers import working
from tests.integrations.playing import collect
from tests.integrations.pydantic_ai_agents import (
    ERASE,
    LEASE,
    QUEUE,
    Script,
    Scripted,
    call,
    normal,
    results,
    told,
)

SEARCH: Script = [
    ["Let me look. ", call("search", '{"q": "a"}'), call("search", '{"q": "b"}', "call_2", at=1)],
    ["There are ", "three."],
]


SECONDS = 60.0
"""For a process that starts, on a machine that is busy."""


async def asked(converse: Converse, text: str = "How many?") -> tuple[Conversation, Message]:
    conversation = await converse.start_conversation()
    await conversation.add_user_message(text)
    return conversation, await conversation.start_streaming_assistant(queue=QUEUE)


def calls_of(message: Message) -> list[ToolCallPart]:
    return [part for part in message.parts if isinstance(part, ToolCallPart)]


def searching(model: Scripted, **options: Any) -> Agent[Any, Any]:
    agent = model.agent(**options)

    @agent.tool_plain
    async def search(q: str) -> dict[str, int]:
        return {"hits": len(q)}

    return agent


async def ended(converse: Converse, message: Message) -> Message:
    async with asyncio.timeout(SECONDS), converse.watch_message(message.id) as events:
        async for _ in events:
            pass
    return await converse.get_message(message.id)


async def suspended(converse: Converse, message: Message) -> MessageSuspended:
    async with asyncio.timeout(SECONDS), converse.watch_message(message.id) as events:
        async for event in events:
            if isinstance(event, MessageSuspended):
                return event
    raise AssertionError("it ended")


# To the end


async def test_answer__has_its_steps_and_what_its_tools_gave(converse: Converse) -> None:
    model = Scripted(SEARCH)
    agent = searching(model, system_prompt="You count.", instructions="Be short.")
    conversation, message = await asked(converse)
    async with working(converse, pydantic_ai_respond(agent, metadata={"tier": "free"})):
        read = await ended(converse, message)
    assert (read.status, read.content) == (
        MessageStatus.COMPLETED,
        "Let me look. There are three.",
    )
    assert [part.kind for part in read.parts] == [
        *("step", "text", "tool_call", "tool_call", "step", "text")
    ]
    assert [(c.state, c.started, c.output) for c in calls_of(read)] == [
        ("output-available", True, {"hits": 1})
    ] * 2
    assert read.metadata["tier"] == "free"
    first = told(model.asked[0])
    assert first == [("system-prompt", "You count."), ("user-prompt", "How many?")]
    assert told(model.asked[1])[:2] == first
    back = messages_for_pydantic_ai(await conversation.history())
    assert told(back)[1:] == [*told(model.asked[1])[2:], ("text", "There are three.")]
    assert [p.usage is not None for p in read.parts if isinstance(p, StepPart)] == [True] * 2
    assert normal(back[:-1]) == normal(model.asked[1])


async def test_answer__is_told_the_conversation_and_the_agent_says_its_prompt_once(
    converse: Converse,
) -> None:
    model = Scripted(SEARCH)
    agent = searching(model, system_prompt="You count.")
    conversation, message = await asked(converse)
    async with working(converse, pydantic_ai_respond(agent)):
        await ended(converse, message)
        await conversation.add_user_message("And now?")
        message = await conversation.start_streaming_assistant(queue=QUEUE)
        read = await ended(converse, message)
    assert read.status is MessageStatus.COMPLETED
    said = told(model.asked[2])
    assert [each for each in said if each[0] == "system-prompt"] == [
        ("system-prompt", "You count.")
    ]
    assert [text for kind, text in said if kind == "user-prompt"] == ["How many?", "And now?"]


async def test_deps__are_those_of_the_message(converse: Converse) -> None:
    agent = Scripted(SEARCH).agent(deps_type=str)
    seen = []

    @agent.tool
    async def search(ctx: RunContext[str], q: str) -> str:
        seen.append(ctx.deps)
        return q

    async def deps_for(conversation: Conversation, message: Message) -> str:
        return f"{conversation.id} {message.id}"

    conversation, message = await asked(converse)
    async with working(converse, pydantic_ai_respond(agent, deps_for=deps_for)):
        await ended(converse, message)
    assert set(seen) == {f"{conversation.id} {message.id}"}


async def test_options__that_come_from_the_conversation_are_refused() -> None:
    agent = Scripted(SEARCH).agent()
    with pytest.raises(ConfigurationError, match="message_history comes from"):
        pydantic_ai_respond(agent, message_history=[])
    with pytest.raises(ConfigurationError, match="modle is no argument"):
        pydantic_ai_respond(agent, modle="openai:gpt-5-mini")
    with pytest.raises(InvalidInputError, match="limit"):
        pydantic_ai_respond(agent, limit=0)
    with pytest.raises(InvalidInputError, match="expires"):
        pydantic_ai_respond(agent, expires=-1)
    with pytest.raises(ConfigurationError, match="not both"):
        pydantic_ai_respond(agent, deps=1, deps_for=lambda *_: 1)


async def test_tool__runs_once_its_start_is_stored(facade: Facade) -> None:
    converse = await facade()
    other = await facade(converse.database_name)
    agent = Scripted(SEARCH).agent()
    _, message = await asked(converse)
    seen = []

    @agent.tool
    async def search(ctx: RunContext[None], q: str) -> str:
        stored = calls_of(await other.get_message(message.id))
        seen.extend([c.started for c in stored if c.call_id == ctx.tool_call_id])
        return q

    async with working(converse, pydantic_ai_respond(agent)):
        await ended(converse, message)
    assert seen == [True, True]


async def test_tool__of_a_writer_that_was_replaced_does_not_run(facade: Facade) -> None:
    converse = await facade(lease=0.5)
    model, ran = Scripted(SEARCH), []
    agent = model.agent()

    @agent.tool_plain
    async def search(q: str) -> str:
        ran.append(q)
        return q

    conversation = await converse.start_conversation()
    await conversation.add_user_message("How many?")
    message = await conversation.start_streaming_assistant()
    other = await converse.get_message(message.id)

    async def before(step: int, number: int) -> None:
        if (step, number) == (0, 1):
            async with other.resume_writer() as writer:
                await writer.detach()

    model.before = before
    with pytest.raises(WriterFencedError):
        await pydantic_ai_respond(agent)(conversation, message)
    assert ran == []


# People


@pytest.mark.parametrize("approved", [True, False])
async def test_approval__is_answered_from_elsewhere(facade: Facade, approved: bool) -> None:
    converse = await facade()
    other = await facade(converse.database_name)
    model, ran = Scripted(ERASE), []
    agent = model.agent(output_type=[str, DeferredToolRequests])

    @agent.tool_plain(requires_approval=True)
    async def erase(path: str) -> str:
        ran.append(path)
        return "erased"

    conversation, message = await asked(converse)
    async with working(converse, pydantic_ai_respond(agent)):
        event = await suspended(other, message)
        assert [(c.call_id, c.wanted) for c in event.pending] == [("call_1", "approval")]
    assert ran == []
    await other.answer_tool_calls(message.id, [Approval("call_1", approved, "so it is")])
    async with working(other, pydantic_ai_respond(agent)):
        read = await ended(other, message)
    assert read.content == "I look. Done."
    assert ran == (["/data"] if approved else [])
    expected = ("success", "erased") if approved else ("denied", "so it is")
    assert results(model.asked[1]) == {"call_1": expected}
    assert results(messages_for_pydantic_ai(await conversation.history())) == {"call_1": expected}
    assert calls_of(read)[0].state == ("output-available" if approved else "output-denied")


async def test_approval__that_a_tool_asks_for_itself_with_what_it_said(converse: Converse) -> None:
    model, seen = Scripted(ERASE), []
    agent = model.agent(output_type=[str, DeferredToolRequests])

    @agent.tool
    async def erase(ctx: RunContext[None], path: str) -> str:
        seen.append((ctx.tool_call_approved, ctx.tool_call_metadata))
        if not ctx.tool_call_approved:
            raise ApprovalRequired(metadata={"why": path})
        return "erased"

    _, message = await asked(converse)
    async with working(converse, pydantic_ai_respond(agent)):
        await suspended(converse, message)
        assert calls_of(await converse.get_message(message.id))[0].started is False
        await converse.answer_tool_calls(message.id, [Approval("call_1", True)])
        read = await ended(converse, message)
    assert read.content == "I look. Done."
    assert seen == [(False, None), (True, {"why": "/data"})]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (ToolOutput("call_1", {"erased": 3}), ("success", {"erased": 3})),
        (ToolOutput("call_1", error="no disk"), ("failed", "no disk")),
    ],
)
async def test_tool_that_runs_elsewhere__gets_its_output_from_there(
    converse: Converse, answer: ToolOutput, expected: Any
) -> None:
    model = Scripted(ERASE)
    agent = model.agent(output_type=[str, DeferredToolRequests])

    @agent.tool_plain
    async def erase(path: str) -> str:
        raise CallDeferred

    _, message = await asked(converse)
    async with working(converse, pydantic_ai_respond(agent)):
        event = await suspended(converse, message)
        assert [(c.call_id, c.wanted) for c in event.pending] == [("call_1", "output")]
        await converse.answer_tool_calls(message.id, [answer])
        read = await ended(converse, message)
    assert read.content == "I look. Done."
    assert results(model.asked[1]) == {"call_1": expected}


async def test_approval__waits_beside_tools_that_have_run_once(converse: Converse) -> None:
    script: Script = [
        [call("search", '{"q": "a"}'), call("erase", '{"path": "/b"}', "call_2", at=1)],
        ["Done."],
    ]
    model = Scripted(script)
    ran = []
    agent = model.agent(output_type=[str, DeferredToolRequests])

    @agent.tool_plain
    async def search(q: str) -> str:
        ran.append(q)
        return q

    @agent.tool_plain(requires_approval=True)
    async def erase(path: str) -> str:
        ran.append(path)
        return path

    _, message = await asked(converse)
    async with working(converse, pydantic_ai_respond(agent)):
        await suspended(converse, message)
        await converse.answer_tool_calls(message.id, [Approval("call_2", True)])
        read = await ended(converse, message)
    assert (read.content, ran) == ("Done.", ["a", "/b"])
    assert results(model.asked[1]) == {"call_1": ("success", "a"), "call_2": ("success", "/b")}


async def test_approval__that_nobody_answers_is_denied_in_time(converse: Converse) -> None:
    model = Scripted(ERASE)
    agent = model.agent(output_type=[str, DeferredToolRequests])

    @agent.tool_plain(requires_approval=True)
    async def erase(path: str) -> str:
        return path

    _, message = await asked(converse)
    async with working(converse, pydantic_ai_respond(agent, expires=0.1)):
        read = await ended(converse, message)
    assert read.content == "I look. Done."
    assert results(model.asked[1]) == {"call_1": ("denied", "expired")}


# Crashes


@asynccontextmanager
async def process(uri: str, database: str, where: str) -> AsyncIterator[Any]:
    """A worker in a process of its own, which is killed at the end of the block."""
    module = "tests.integrations.pydantic_ai_agents"
    started = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, uri, database, where), stdout=subprocess.PIPE
    )
    assert started.stdout is not None
    try:
        async with asyncio.timeout(SECONDS):
            assert await started.stdout.readline() == b"ready\n"
        yield started.stdout
    finally:
        started.kill()
        await started.wait()


@pytest.mark.parametrize(
    ("where", "expected", "times"),
    [
        ("model 0 1", ("success", "erased"), 2),
        ("tool", ("interrupted", "The tool call was interrupted before a result was produced."), 1),
        ("model 1 1", ("success", "erased /data"), 1),
    ],
)
async def test_worker__that_is_killed_is_followed_behind_what_is_stored(
    facade: Facade, server_uri: str, where: str, expected: Any, times: int
) -> None:
    converse = await facade(lease=LEASE)
    _, message = await asked(converse)
    async with process(server_uri, converse.database_name, where) as said, asyncio.timeout(SECONDS):
        assert await said.readline() == f"{where}\n".encode()
    model, ran = Scripted(ERASE), []
    agent = model.agent()

    @agent.tool_plain
    async def erase(path: str) -> str:
        ran.append(path)
        return "erased"

    async with working(converse, pydantic_ai_respond(agent)):
        read = await ended(converse, message)
    assert (read.status, read.content) == (MessageStatus.COMPLETED, "I look. Done.")
    assert len(model.asked) == times
    assert ran == (["/data"] if where == "model 0 1" else [])
    assert results(model.asked[-1]) == {"call_1": expected}


async def test_approvals__by_two_processes(facade: Facade, server_uri: str) -> None:
    converse = await facade(lease=LEASE)
    conversation, message = await asked(converse)
    waiting = asyncio.create_task(suspended(converse, message))
    async with process(server_uri, converse.database_name, "approval"):
        await waiting
    await converse.answer_tool_calls(message.id, [Approval("call_1", True)])
    async with process(server_uri, converse.database_name, "approval"):
        read = await ended(converse, message)
    assert read.content == "I look. Done."
    back = messages_for_pydantic_ai(await conversation.history())
    assert results(back) == {"call_1": ("success", "erased /data")}


async def test_cut__anywhere_is_gone_on_from(converse: Converse) -> None:
    async with searching(Scripted(SEARCH)).run_stream_events("How many?") as events:
        contents = await collect(pydantic_ai_events(events))
    for place in range(len(contents) + 1):
        model = Scripted(SEARCH)
        respond = pydantic_ai_respond(searching(model))

        async def cut(
            conversation: Conversation,
            message: Message,
            place: int = place,
            respond: Any = respond,
        ) -> None:
            if message.checkpoint is None:
                async with message.writer() as writer:
                    for content in contents[:place]:
                        await writer.write(content)
                    await writer.detach({"cut": True})
            else:
                await respond(conversation, message)

        conversation, message = await asked(converse)
        async with working(converse, cut):
            read = await ended(converse, message)
        assert (read.status, read.error) == (MessageStatus.COMPLETED, None), place
        assert read.content == "Let me look. There are three.", place
        assert len([p for p in read.parts if isinstance(p, StepPart) and p.usage]) == 2
        back = messages_for_pydantic_ai(await conversation.history())
        assert repair_messages(back) == back, place
        assert [kind for kind, _ in told(back)] == [
            *("user-prompt", "text", "tool-call", "tool-call", "tool-return", "tool-return"),
            "text",
        ], place
        assert all(outcome != "retried" for outcome, _ in results(back).values())


async def test_tool__that_was_not_started_beside_one_that_was_is_not_run(
    converse: Converse,
) -> None:
    async with searching(Scripted(SEARCH)).run_stream_events("How many?") as events:
        contents = await collect(pydantic_ai_events(events))
    first = next(
        place
        for place, content in enumerate(contents, 1)
        if isinstance(content, PartSet) and "output" in content.fields
    )
    model = Scripted(SEARCH)
    respond = pydantic_ai_respond(searching(model))

    async def dies(conversation: Conversation, message: Message) -> None:
        if message.checkpoint is None:
            async with message.writer() as writer:
                for content in contents[:first]:
                    await writer.write(content)
                await writer.detach({"cut": True})
        else:
            await respond(conversation, message)

    _, message = await asked(converse)
    async with working(converse, dies):
        read = await ended(converse, message)
    outcomes = sorted(results(model.asked[0]).values(), key=lambda each: each[0])
    assert outcomes == [("failed", "The tool was not run."), ("success", {"hits": 1})]
    assert [call.started for call in calls_of(read)] == [False, False]


async def test_approval__that_was_asked_for_before_a_crash_waits(converse: Converse) -> None:
    model, ran = Scripted(ERASE), []
    agent = model.agent(output_type=[str, DeferredToolRequests])

    @agent.tool_plain(requires_approval=True)
    async def erase(path: str) -> str:
        ran.append(path)
        return path

    async with agent.run_stream_events("How many?") as events:
        contents = await collect(pydantic_ai_events(events))
    respond = pydantic_ai_respond(agent)

    async def dies(conversation: Conversation, message: Message) -> None:
        if message.checkpoint is None:
            async with message.writer() as writer:
                for content in contents:
                    await writer.write(content)
                await writer.detach({"asked": True})
        else:
            await respond(conversation, message)

    _, message = await asked(converse)
    async with working(converse, dies):
        await suspended(converse, message)
        assert len(model.asked) == 1
        chunks = (await raw(converse, message))["chunks"]
        assert sum("approval" in chunk.get("fields", {}) for chunk in chunks) == 1
        await converse.answer_tool_calls(message.id, [Approval("call_1", True)])
        read = await ended(converse, message)
    assert (read.content, ran, len(model.asked)) == ("I look. Done.", ["/data"], 2)


async def test_results__are_stored_before_the_model_is_asked_again(
    facade: Facade, monkeypatch: pytest.MonkeyPatch
) -> None:
    converse = await facade()
    slow = partialmethod(Message.writer, flush_interval=60.0)
    monkeypatch.setattr(Message, "writer", slow)
    other = await facade(converse.database_name)
    model, states = Scripted(SEARCH), []
    _, message = await asked(converse)

    async def before(step: int, number: int) -> None:
        if step == 1 and not number:
            read = await other.get_message(message.id)
            states.extend([each.state for each in calls_of(read)])

    model.before = before
    async with working(converse, pydantic_ai_respond(searching(model))):
        await ended(converse, message)
    assert states == ["output-available"] * 2


async def test_hand_over__is_at_a_boundary_and_no_tool_runs_twice(facade: Facade) -> None:
    converse = await facade()
    other = await facade(converse.database_name)
    script: Script = [*(SEARCH[0:1]), [call("search", '{"q": "c"}', "call_3")], ["Three."]]
    model, ran = Scripted(script), []
    agent = model.agent()
    entered = asyncio.Event()
    let_go = asyncio.Event()

    @agent.tool_plain
    async def search(q: str) -> str:
        ran.append(q)
        entered.set()
        await let_go.wait()
        return q

    _, message = await asked(converse)
    respond = pydantic_ai_respond(agent)
    async with converse.worker(respond, queues=[QUEUE], grace=SECONDS) as worker:
        running = asyncio.create_task(worker.run())
        await soon(entered.wait())
        worker.close()
        await asyncio.sleep(0)
        let_go.set()
        await soon(running)
    assert len(model.asked) == 1
    read = await converse.get_message(message.id)
    assert (read.is_streaming, [c.state for c in calls_of(read)]) == (
        *(True, ["output-available"] * 2),
    )
    async with working(other, respond):
        read = await ended(other, message)
    assert (read.content, ran) == ("Let me look. Three.", ["a", "b", "c"])
    assert (len(model.asked), read.work and read.work.attempt) == (3, 1)


async def test_hand_over__between_a_call_and_its_tool(facade: Facade) -> None:
    converse = await facade()
    other = await facade(converse.database_name)
    model, ran = Scripted(ERASE), []
    agent = model.agent(output_type=[str, DeferredToolRequests])

    @agent.tool_plain
    async def erase(path: str) -> str:
        ran.append(path)
        return path

    _, message = await asked(converse)
    respond = pydantic_ai_respond(agent)
    async with converse.worker(respond, queues=[QUEUE], grace=SECONDS) as worker:

        async def before(step: int, number: int) -> None:
            worker.close()
            await asyncio.sleep(0.05)

        model.before = before
        await soon(worker.run())
    assert ran == []
    model.before = None
    async with working(other, respond):
        read = await ended(other, message)
    assert (read.content, ran, len(model.asked)) == ("I look. Done.", ["/data"], 2)


async def test_answer__that_is_whole_is_not_asked_for_again(converse: Converse) -> None:
    model = Scripted([["Three."]])
    agent = model.agent(instructions="Be short.")
    async with agent.run_stream_events("How many?") as events:
        contents = await collect(pydantic_ai_events(events))
    respond = pydantic_ai_respond(agent)

    async def dies(conversation: Conversation, message: Message) -> None:
        if message.checkpoint is None:
            async with message.writer() as writer:
                for content in contents:
                    await writer.write(content)
                await writer.detach({"whole": True})
        else:
            await respond(conversation, message)

    _, message = await asked(converse)
    async with working(converse, dies):
        read = await ended(converse, message)
    assert (read.content, len(model.asked)) == ("Three.", 1)


# Stops and errors


async def test_stop__ends_the_model(converse: Converse) -> None:
    model, reached = Scripted([["One ", "two"]]), asyncio.Event()

    async def before(step: int, number: int) -> None:
        if number:
            reached.set()
            await asyncio.Event().wait()

    model.before = before
    _, message = await asked(converse)
    async with working(converse, pydantic_ai_respond(model.agent())):
        await soon(reached.wait())
        await converse.request_stop(message.id, "enough")
        read = await ended(converse, message)
    assert (read.status, read.content, read.stop_reason) == (
        *(MessageStatus.CANCELLED, "One ", "enough"),
    )


async def test_stop__ends_a_tool_and_the_next_answer_knows(converse: Converse) -> None:
    model, entered = Scripted(ERASE), asyncio.Event()
    agent = model.agent()

    @agent.tool_plain
    async def erase(path: str) -> str:
        entered.set()
        await asyncio.Event().wait()
        return path

    conversation, message = await asked(converse)
    async with working(converse, pydantic_ai_respond(agent)):
        await soon(entered.wait())
        await converse.request_stop(message.id)
        read = await ended(converse, message)
    assert read.status is MessageStatus.CANCELLED
    back = messages_for_pydantic_ai(await conversation.history())
    assert results(back)["call_1"][0] == "interrupted"


class BusyError(Exception):
    """The provider is busy."""


@pytest.mark.parametrize("retries", [0, 1])
async def test_error__of_the_model_fails_or_makes_another_attempt(
    converse: Converse, retries: int
) -> None:
    model, failures = Scripted(SEARCH), list[int]()

    async def before(step: int, number: int) -> None:
        if step == 1 and number == 1 and not failures:
            failures.append(step)
            raise BusyError("busy")

    model.before = before
    _, message = await asked(converse)
    retry = RetryPolicy(max=retries, retry_on=(BusyError,), backoff=0)
    async with working(converse, pydantic_ai_respond(searching(model)), retry=retry):
        read = await ended(converse, message)
    if retries:
        assert read.content == "Let me look. There are three."
        assert len(model.asked) == 3
    else:
        assert read.status is MessageStatus.FAILED
        assert read.metadata["error_type"] == "BusyError"


async def test_usage_limits__hold_over_attempts(converse: Converse) -> None:
    model = Scripted(ERASE)
    agent = model.agent(output_type=[str, DeferredToolRequests])

    @agent.tool_plain(requires_approval=True)
    async def erase(path: str) -> str:
        return path

    _, message = await asked(converse)
    limits = UsageLimits(request_limit=1)
    async with working(converse, pydantic_ai_respond(agent, usage_limits=limits)):
        await suspended(converse, message)
        await converse.answer_tool_calls(message.id, [Approval("call_1", True)])
        read = await ended(converse, message)
    assert read.status is MessageStatus.FAILED
    assert read.error is not None
    assert "request_limit of 1" in read.error


async def test_output__that_is_no_text_is_data(converse: Converse) -> None:
    script: Script = [
        [call("final_result", '{"count": "many"}')],
        [call("final_result", '{"count": 3}', "call_2")],
    ]
    model = Scripted(script)

    def final_result(count: int) -> dict[str, int]:
        if count > 5:
            raise ModelRetry("too many")
        return {"count": count}

    agent = model.agent(output_type=final_result)
    conversation, message = await asked(converse)
    async with working(converse, pydantic_ai_respond(agent)):
        read = await ended(converse, message)
    [data] = [part for part in read.parts if part.kind == "data"]
    assert data.fields["data"] == {"count": 3}
    back = messages_for_pydantic_ai(await conversation.history())
    assert [outcome for outcome, _ in results(back).values()] == ["retried", "success"]
