"""Writing of parts: what a writer of a message and that of a sub-agent have in common."""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any, Self
from weakref import WeakSet

from bson import ObjectId

from converse_mongo.domain.composing import Composer
from converse_mongo.domain.errors import InvalidInputError, is_own
from converse_mongo.domain.part_events import PartEvent
from converse_mongo.domain.part_pieces import AnyPiece, PartRef
from converse_mongo.domain.parts import (
    Executor,
    Part,
    ReasoningPart,
    StepPart,
    TextPart,
    ToolCallPart,
)
from converse_mongo.domain.surrogates import mend_all
from converse_mongo.driver.failures import words_for


def check_contents(contents: object) -> None:
    """Checks what is to be piped.

    Raises:
        InvalidInputError: It is no asynchronous iterable.
    """
    if not isinstance(contents, AsyncIterable):
        raise InvalidInputError(
            f"pipe requires an asynchronous iterable of str, not {type(contents).__name__}: "
            "use append_chunks for a list of texts. Nothing was written."
        )


@asynccontextmanager
async def closed_in_the_end(contents: object) -> AsyncIterator[None]:
    """Closes what is piped, if it has an ``aclose``."""
    try:
        yield
    finally:
        close = getattr(contents, "aclose", None)
        if close is not None:
            await close()


class PartWriter(ABC):
    """Writes the parts of an answer, or those of a sub-agent.

    A call returns at once, as ``write`` does, unless it says that something is stored when it
    returns. All raise the errors of ``MessageWriter.write``, and
    :class:`InvalidInputError` for what makes no sense or cannot be stored; nothing is written then.
    """

    def __init__(
        self, parent: PartRef | None = None, begun: "WeakSet[PartRef] | None" = None
    ) -> None:
        self._composer = Composer(parent, begun)
        self._growing: PartRef | None = None

    @abstractmethod
    async def put(self, pieces: Sequence[AnyPiece]) -> None:
        """Accepts pieces."""

    @abstractmethod
    async def flush(self) -> None:
        """Waits until all that was written is stored."""

    @abstractmethod
    async def write(self, written: str | Part | PartEvent, /) -> None:
        """Accepts text, a part, or an event of a part."""

    async def pipe(self, contents: AsyncIterable[str | Part | PartEvent]) -> None:
        """Writes all of ``contents``, and closes them; it is stored when this returns.

        Args:
            contents: Any asynchronous iterable of text, parts and events of parts, such as that of
                a translator.

        Raises:
            InvalidInputError: It is none. Nothing was written.

        It also raises the errors of ``contents``.
        """
        check_contents(contents)
        async with closed_in_the_end(contents):
            async for content in contents:
                await self.write(content)
        await self.flush()

    async def write_part(self, part: Part | PartEvent) -> None:
        """Accepts a whole part, or an event of a part. ``write`` does so, too."""
        await self._put(self._composer.pieces(part))

    async def write_reasoning(self, text: str) -> None:
        """Accepts thoughts of the model, which continue a part until something else is written.

        Args:
            text: Text, at most ``MAX_CHUNK_BYTES`` in UTF-8; an empty one is ignored.
        """
        await self._grow(ReasoningPart(mend_all(text)))

    async def start_tool_call(
        self,
        name: str,
        *,
        call_id: str | None = None,
        title: str | None = None,
        executor: Executor = "server",
        dynamic: bool = False,
        provider: Mapping[str, Any] | None = None,
    ) -> "ToolCall":
        """Begins a call of a tool.

        Args:
            name: The name of the tool.
            call_id: The id of the call; ``None`` for a new one.
            title: A name of the tool for people.
            executor: Who runs the tool.
            dynamic: True if the application did not know the tool when it was built.
            provider: Data of the provider that belong to the call.
        """
        call_id = call_id or f"call_{ObjectId()}"
        more: Any = {"executor": executor, "dynamic": dynamic, "provider": provider}
        part = ToolCallPart(name, call_id, title=title, **more)
        ref, pieces = self._composer.start(part)
        await self._put(pieces)
        return ToolCall(self, self._composer, ref, call_id)

    def continue_tool_call(self, call: ToolCallPart) -> "ToolCall":
        """Returns a call that is stored, of a writer before this one, to go on with it.

        Raises:
            InvalidInputError: The call is not one of a message.
        """
        if call.number is None:
            raise InvalidInputError(
                "This tool call is not stored: take one of message.unfinished_calls. "
                "Nothing was written."
            )
        ref = self._composer.continued(call.number)
        ref.has_input = "input" in call.fields
        ref.is_clients = call.executor == "client"
        return ToolCall(self, self._composer, ref, call.call_id)

    @asynccontextmanager
    async def step(self) -> AsyncIterator["Step"]:
        """Marks a call of a model in ``async with``; a clean exit stores what the step then has."""
        ref, pieces = self._composer.start(StepPart())
        await self._put(pieces)
        step = Step()
        yield step
        if not ref.void:  # a reset inside may have voided it
            given = {name: value for name, value in asdict(step).items() if value is not None}
            await self._put([self._composer.change(ref, "end", given)])

    async def _grow(self, part: Part) -> None:
        """Adds text to the part of this kind that was written last, or begins one."""
        if not part.text:
            return
        growing = self._growing
        if growing is not None and growing.kind == part.kind and not growing.void:
            await self.put(self._composer.delta(growing, part.text))
            return
        growing, pieces = self._composer.start(part)
        await self._put(pieces)
        self._growing = growing

    async def _end_growing(self) -> None:
        """Ends the part that grows: something else is to be written."""
        ref, self._growing = self._growing, None
        if ref is not None and not ref.void:
            await self.put([self._composer.change(ref, "end", {})])

    async def _put(self, pieces: Sequence[AnyPiece]) -> None:
        await self._end_growing()
        await self.put(pieces)


@dataclass(slots=True)
class Step:
    """A call of a model; fill it inside the block of ``step()``.

    Attributes:
        model: The name of the model.
        response_id: The provider's id of the response.
        usage: The numbers of tokens, in any form.
        finish_reason: Why the model stopped.
        provider: Data of the provider.
    """

    model: str | None = None
    response_id: str | None = None
    usage: Mapping[str, Any] | None = None
    finish_reason: str | None = None
    provider: Mapping[str, Any] | None = None


class ToolCall:
    """A call of a tool that is being written. Made by ``start_tool_call``.

    The calls of one writer may go on at the same time, in tasks of their own.

    Attributes:
        call_id: The id of the call.
    """

    def __init__(self, writer: PartWriter, composer: Composer, ref: PartRef, call_id: str) -> None:
        self._writer = writer
        self._composer = composer
        self._ref = ref
        self._has_outcome = False
        self.call_id = call_id

    @property
    def number(self) -> int | None:
        """The number of the part; ``None`` until it is stored."""
        return self._ref.number

    async def input_delta(self, text: str) -> None:
        """Accepts a piece of the input, as the model writes it."""
        await self._writer.put(self._composer.delta(self._ref, mend_all(text)))

    async def set_input(self, value: Any) -> None:
        """Sets the complete input; it is stored when this returns.

        Args:
            value: A value that BSON can hold.
        """
        await self._set({"input": value})

    async def request_approval(self, approval_id: str | None = None) -> None:
        """Asks people whether the tool may run; it is stored when this returns.

        Ask once the input is complete. Then suspend the writer: see ``MessageWriter.suspend``.

        Args:
            approval_id: The id of the request; ``None`` for a new one.
        """
        await self._set({"approval": {"id": approval_id or f"approval_{ObjectId()}"}})

    async def set_output(
        self,
        value: Any,
        *,
        preliminary: bool = False,
        provider: Mapping[str, Any] | None = None,
    ) -> None:
        """Sets the output; it is stored when this returns.

        Args:
            value: A value that BSON can hold.
            preliminary: True for what is known so far: it replaces what was known before, and
                returns at once.
            provider: Data of the provider that belong to the result.
        """
        fields = {"output": value}
        if provider is not None:
            fields["result_provider"] = provider
        if preliminary:
            fields["preliminary"] = True
            await self._writer.put([self._composer.change(self._ref, "set", fields)])
        else:
            await self._set(fields)
            self._has_outcome = True

    async def set_error(self, error: str) -> None:
        """Sets an error in place of an output; it is stored when this returns."""
        await self._set({"error": error})
        self._has_outcome = True

    @asynccontextmanager
    async def execution(self) -> AsyncIterator[Self]:
        """Marks in ``async with`` that the tool runs.

        On entry it is stored that the call was started: whoever takes over the message then knows
        that the tool may have had its effect. A writer that was replaced raises there. An exception
        inside becomes the error of the call, unless it has an outcome, and is raised again.
        """
        await self._set({"started": True})
        try:
            yield self
        except Exception as error:
            if not self._has_outcome and not is_own(error):
                await self.set_error(words_for(error) or str(error) or type(error).__name__)
            raise

    def nested(self) -> "NestedWriter":
        """Returns a writer for a sub-agent that runs as this call.

        Its parts belong to the call, and are not the answer's.
        """
        return NestedWriter(self._writer, self._ref, self._composer.begun)

    async def _set(self, fields: Mapping[str, Any]) -> None:
        await self._writer.put([self._composer.change(self._ref, "set", fields)])
        await self._writer.flush()


class NestedWriter(PartWriter):
    """Writes the parts of a sub-agent. Made by ``ToolCall.nested``."""

    def __init__(self, outer: PartWriter, call: PartRef, begun: "WeakSet[PartRef]") -> None:
        super().__init__(call, begun)
        self._outer = outer

    async def put(self, pieces: Sequence[AnyPiece]) -> None:
        """Accepts pieces."""
        await self._outer.put(pieces)

    async def flush(self) -> None:
        """Waits until all that was written is stored, also by the other writers of the message."""
        await self._outer.flush()

    async def write(self, written: str | Part | PartEvent) -> None:
        """Accepts text of the sub-agent, a part of it, or an event of a part."""
        if isinstance(written, str):
            await self._grow(TextPart(mend_all(written)))
        else:
            await self.write_part(written)
