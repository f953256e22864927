"""Responding with an agent: in a worker, through crashes, approvals and deployments."""

import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from pydantic import TypeAdapter
from pydantic_ai import Agent
from pydantic_ai.agent import AbstractAgent
from pydantic_ai.capabilities import (
    AbstractCapability,
    CapabilityOrdering,
    ReinjectSystemPrompt,
    ValidatedToolArgs,
)
from pydantic_ai.exceptions import ToolFailed
from pydantic_ai.messages import INTERRUPTED_TOOL_RETURN_CONTENT, ModelMessage, ToolCallPart
from pydantic_ai.run import AgentRun
from pydantic_ai.tools import (
    DeferredToolRequests,
    DeferredToolResults,
    RunContext,
    ToolApproved,
    ToolDefinition,
    ToolDenied,
)
from pydantic_ai.usage import RequestUsage, RunUsage

from converse_mongo.documents.conversations import Conversation
from converse_mongo.documents.messages import Message
from converse_mongo.domain.errors import ConfigurationError
from converse_mongo.domain.part_events import PartSet
from converse_mongo.domain.parts import Part, StepPart
from converse_mongo.domain.parts import ToolCallPart as Call
from converse_mongo.domain.validation import check_int, check_seconds
from converse_mongo.integrations.histories import FileUrl, Values, load_values, loaded, turns_of
from converse_mongo.integrations.pydantic_ai.events import (
    OUTPUT,
    PYDANTIC_AI,
    REQUEST,
    AgentTranslator,
    stored_of,
)
from converse_mongo.integrations.pydantic_ai.prompts import DENIED, NOT_RUN, Telling
from converse_mongo.integrations.streams import data_of
from converse_mongo.writing.writer import MessageWriter

AgentDeps = TypeVar("AgentDeps")
Deps: TypeAlias = Callable[[Conversation, Message], AgentDeps | Awaitable[AgentDeps]]

_OWN = frozenset(
    {
        *("user_prompt", "message_history", "deferred_tool_results", "conversation"),
        *("conversation_id", "deps", "usage"),
    }
)
_USAGE = TypeAdapter(RequestUsage)


def pydantic_ai_respond(
    agent: AbstractAgent[Any, Any],
    *,
    deps: Any = None,
    deps_for: "Deps[Any] | None" = None,
    expires: float | None = None,
    limit: int = 50,
    file_url: FileUrl | None = None,
    **options: Any,
) -> Callable[[Conversation, Message], Awaitable[None]]:
    """Makes a ``respond`` for workers and for ``Generations`` that answers with an agent.

    Each call of the model is a step. An attempt that follows another one goes on behind the last
    step that is complete, with the tools that ran in it: a tool that was started and has no result
    is not run again, and the model is told that it was interrupted.

    Args:
        agent: The agent. For approvals and tools that run elsewhere, ``DeferredToolRequests`` must
            be one of its output types, and the message one of a queue: it then waits for people.
        deps: The dependencies of each run.
        deps_for: Returns those of a message, or is a coroutine function that does.
        expires: Seconds after which calls that wait for people are denied; ``None`` for never.
        limit: How many messages of the conversation the model is told, at least 1.
        file_url: As for :func:`messages_for_pydantic_ai`.
        options: More arguments of ``agent.iter``, such as ``model``, ``model_settings``,
            ``usage_limits``, ``toolsets`` and ``capabilities``.

    Raises:
        ConfigurationError: An option is one that this sets, or none of ``agent.iter``, or there are
            two kinds of ``deps``.
        InvalidInputError: ``limit`` or ``expires`` is out of range.
    """
    if taken := sorted(_OWN & options.keys()):
        raise ConfigurationError(f"{taken[0]} comes from the conversation: leave it out.")
    if unknown := sorted(options.keys() - inspect.signature(AbstractAgent.iter).parameters.keys()):
        raise ConfigurationError(f"{unknown[0]} is no argument of agent.iter: leave it out.")
    if deps is not None and deps_for is not None:
        raise ConfigurationError("Pass deps, which are those of each run, or deps_for, not both.")
    check_int(limit, "limit", 1)
    if expires is not None:
        check_seconds(expires, "expires")

    async def respond(conversation: Conversation, message: Message) -> None:
        given = deps
        if deps_for is not None:
            given = deps_for(conversation, message)
            if inspect.isawaitable(given):
                given = await given
        async with message.writer(interrupt=True) as writer:
            answering = _Answering(conversation, message, writer, expires)
            await answering.take_over()
            if answering.is_answered:
                return
            if answering.waits:
                await writer.suspend(expires=expires)
                return
            messages, results = await answering.prompt(limit, file_url)
            capabilities = [*(options.get("capabilities") or ()), *answering.capabilities]
            async with agent.iter(
                message_history=messages,
                deferred_tool_results=results,
                conversation_id=str(conversation.id),
                deps=given,
                usage=answering.usage,
                **{**options, "capabilities": capabilities},
            ) as run:
                await answering.follow(run)

    return respond


class _Answering:
    """One attempt at an answer."""

    def __init__(
        self,
        conversation: Conversation,
        message: Message,
        writer: MessageWriter,
        expires: float | None,
    ) -> None:
        self._conversation = conversation
        self._message = message
        self._writer = writer
        self._expires = expires
        self._translator = AgentTranslator()

    # What is stored

    async def take_over(self) -> None:
        """Takes back half a call of the model, and settles the calls that nobody goes on with."""
        steps = [part for part in stored_of(self._message) if isinstance(part, StepPart)]
        if steps and not steps[-1].closed:
            await self._writer.reset()
        open_calls = [call for call in self._calls() if not call.is_finished]
        untouched = all(_is_untouched(call) for call in self._calls())
        for call in open_calls:
            if call.started:
                await self._settle(call, INTERRUPTED_TOOL_RETURN_CONTENT, "interrupted")
            elif not untouched and call.approval is None and call.executor != "client":
                await self._settle(call, NOT_RUN, "failed")
        self._translator = AgentTranslator(stored_of(self._message))

    async def _settle(self, call: Call, words: str, outcome: str) -> None:
        told = {"result": {"outcome": outcome, "content": words}}
        provider = {"name": PYDANTIC_AI, "data": told}
        assert call.number is not None  # noqa: S101 - it is stored
        fields = {"error": words, "result_provider": provider}
        await self._writer.write(PartSet(call.number, fields))
        await self._writer.flush()

    def _last_step(self) -> list[Part]:
        """Returns the parts from the last complete call of the model on."""
        found: list[Part] = []
        for part in stored_of(self._message):
            if isinstance(part, StepPart) and _is_done(part):
                found = [part]
            elif found:
                found.append(part)
        return found

    def _calls(self) -> list[Call]:
        """Returns the calls of the last step that the agent runs, or has run."""
        return [
            part
            for part in self._last_step()
            if isinstance(part, Call) and part.executor != "provider" and not part.redacted
        ]

    @property
    def is_answered(self) -> bool:
        """True if an attempt before had the result of the run, but did not end the message."""
        parts = self._last_step()
        if any(part.kind == "data" and part.id == OUTPUT for part in parts):
            return True
        said = any(part.kind in ("text", "file") for part in parts)
        return said and not self._calls() and not any(part.kind == REQUEST for part in parts)

    @property
    def waits(self) -> bool:
        """True if all that is left waits for people."""
        calls = [call for call in self._calls() if not call.is_finished]
        return bool(calls) and all(
            call.executor == "client"
            or (call.approval is not None and call.approval.approved is None)
            for call in calls
        )

    @property
    def usage(self) -> RunUsage:
        """What the calls of the model have used so far, for the limits of the run."""
        usage = RunUsage()
        for part in stored_of(self._message):
            if isinstance(part, StepPart) and _is_done(part):
                usage.incr(_USAGE.validate_python(dict(part.usage or {})))
                usage.requests += 1
        return usage

    # What the agent is told

    async def prompt(
        self, limit: int, file_url: FileUrl | None
    ) -> tuple[list[ModelMessage], DeferredToolResults | None]:
        """Returns the messages, and what became of calls that the agent is to go on with."""
        results, left_out = DeferredToolResults(), list[int | None]()
        history = await self._conversation.history(limit)
        values = await load_values(history) | await load_values([self._message])
        for call in self._calls():
            if self._answer(call, results, values) or not call.is_finished:
                left_out.append(call.number)
        telling = Telling(file_url, values, left_out)
        messages = telling.tell(turns_of(history, self._message)).messages()
        return messages, results if results.calls or results.approvals else None

    def _answer(self, call: Call, results: DeferredToolResults, values: Values) -> bool:
        """Adds the answer to a call; false if there is none that the agent does not have."""
        told = data_of(call.result_provider, PYDANTIC_AI).get("result")
        approval, name = call.approval, call.call_id
        if isinstance(told, Mapping):
            return False
        if approval is not None and approval.approved is not None:
            denied = ToolDenied(approval.reason or DENIED)
            results.approvals[name] = ToolApproved() if approval.approved else denied
        elif call.executor == "client" and call.state == "output-available":
            results.calls[name] = loaded(call.output, values)
        elif call.executor == "client" and call.state == "output-error":
            results.calls[name] = ToolFailed(call.error or "error")
        else:
            return False
        metadata = data_of(call.provider, PYDANTIC_AI).get("deferred")
        if isinstance(metadata, Mapping):
            results.metadata[name] = dict(metadata)
        return True

    # The run

    @property
    def capabilities(self) -> list[AbstractCapability[Any]]:
        """What the run needs."""
        return [ReinjectSystemPrompt(id=None), StoredStarts(self._start)]

    async def _start(self, call_id: str) -> None:
        if self._translator.start(call_id):
            await self._write()
            await self._writer.flush()

    async def _write(self) -> None:
        for content in self._translator.parts.take():
            await self._writer.write(content)

    async def follow(self, run: AgentRun[Any, Any]) -> None:
        """Runs the agent, and stores what it does."""
        translator, node = self._translator, run.next_node
        translator.messages = run.all_messages
        while not Agent.is_end_node(node):
            translator.begin_node(node)
            await self._write()
            if self._writer.handing_over and _is_boundary(node):
                await self._writer.detach()
                return
            if Agent.is_model_request_node(node):
                await self._writer.flush()  # what tools did is known, whatever the model does
            if Agent.is_model_request_node(node) or Agent.is_call_tools_node(node):
                async with node.stream(run.ctx) as stream:
                    async for event in stream:
                        translator.feed(event)
                        await self._write()
            node = await run.next(node)
        result = run.result
        translator.end_run(result)
        await self._write()
        if result is None:
            return
        if isinstance(result.output, DeferredToolRequests):
            await self._writer.suspend(expires=self._expires)
        elif result.metadata:
            self._writer.metadata.update(result.metadata)


def _is_boundary(node: Any) -> bool:
    """Returns whether another worker can go on from here: the tools of a call of the model wait, or
    their results do.
    """
    if Agent.is_call_tools_node(node):
        return bool(node.model_response.tool_calls)
    return bool(Agent.is_model_request_node(node))


def _is_untouched(call: Call) -> bool:
    return not (call.started or call.is_finished) and call.approval is None


def _is_done(step: StepPart) -> bool:
    return data_of(step.provider, PYDANTIC_AI).get("done") is True


@dataclass
class StoredStarts(AbstractCapability[Any]):
    """Stores that a tool was started before it runs.

    Args:
        start: Stores it of the call with an id.
    """

    start: Callable[[str], Awaitable[None]]

    def get_ordering(self) -> CapabilityOrdering:
        """Comes last, behind what may refuse or defer the call."""
        return CapabilityOrdering(position="innermost")

    async def before_tool_execute(
        self,
        ctx: RunContext[Any],  # noqa: ARG002 - a method of the framework
        *,
        call: ToolCallPart,
        tool_def: ToolDefinition,  # noqa: ARG002
        args: ValidatedToolArgs,
    ) -> ValidatedToolArgs:
        """Stores the start; what this raises, keeps the tool from running."""
        await self.start(call.tool_call_id)
        return args
