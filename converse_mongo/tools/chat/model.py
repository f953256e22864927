"""Streams the tokens of a language model into a message."""

import logging
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, Protocol

import openai
from openai.types.chat import ChatCompletionContentPartParam, ChatCompletionMessageParam
from openai.types.chat.chat_completion_content_part_param import File

from converse_mongo import (
    Conversation,
    ConverseClosedError,
    Message,
    MessageNotStreamingError,
    MessageWriter,
    StreamStoppedError,
    ToolCallPart,
    WriterError,
)
from converse_mongo.tools.chat.canned import CannedModel, Written
from converse_mongo.tools.chat.errors import AnswerError, sentence_for
from converse_mongo.tools.chat.prompts import Said, name_conversation, said_before
from converse_mongo.tools.chat.settings import Settings

logger = logging.getLogger(__name__)

SYSTEM_PROMPT = (
    "You are a helpful assistant in a chat. Answer in the language of the user, to the point. "
    "You may use Markdown, with tables, task lists and fenced code blocks that name their language."
)

WRITER_ERRORS = StreamStoppedError, WriterError, MessageNotStreamingError, ConverseClosedError
"""The library handles these; they do not mean that the model failed."""


class Model(Protocol):
    """A language model."""

    @property
    def name(self) -> str:
        """The name that users see."""

    def stream(
        self, said: Sequence[Said], metadata: dict[str, Any], asked: Sequence[ToolCallPart], /
    ) -> AsyncGenerator[Written, None]:
        """Yields the answer, and fills ``metadata``.

        Args:
            said: The messages before the answer.
            metadata: That of the answer.
            asked: The tool calls that the answer has asked the user about; it goes on behind them.
        """

    async def aclose(self) -> None:
        """Closes its connections."""


def open_model(settings: Settings) -> Model:
    """Returns the configured model, or the built-in text if there is no key."""
    return OpenAIModel(settings) if settings.api_key else CannedModel(settings.canned_delay)


class OpenAIModel:
    """A model with an API that is compatible with OpenAI's."""

    def __init__(self, settings: Settings) -> None:
        self.name = settings.model
        self._client = openai.AsyncOpenAI(
            api_key=settings.api_key,
            base_url=settings.base_url,
            timeout=settings.timeout,
            max_retries=settings.max_retries,
        )

    async def stream(
        self, said: Sequence[Said], metadata: dict[str, Any], _: Sequence[ToolCallPart], /
    ) -> AsyncGenerator[str, None]:
        """Yields the tokens of an answer; it has no tools to ask for.

        Raises:
            AnswerError: The model declined, or its stream ended too early.
            openai.OpenAIError: The request failed.
        """
        prompt: list[ChatCompletionMessageParam] = [{"role": "system", "content": SYSTEM_PROMPT}]
        for each in said:
            if each.role == "user":
                prompt.append({"role": "user", "content": _told(each)})
            else:
                prompt.append({"role": "assistant", "content": each.content})
        finished: str | None = None
        # Leaving early closes the connection: unread tokens are not generated, nor billed.
        async with await self._client.chat.completions.create(
            model=self.name,
            messages=prompt,
            stream=True,
            stream_options={"include_usage": True},
        ) as chunks:
            async for chunk in chunks:
                if chunk.usage is not None:  # on the last chunk, which has no text
                    metadata["usage"] = {
                        "prompt_tokens": chunk.usage.prompt_tokens,
                        "completion_tokens": chunk.usage.completion_tokens,
                    }
                for choice in chunk.choices[:1]:
                    if token := choice.delta.content or choice.delta.refusal:
                        yield token
                    finished = choice.finish_reason or finished
        if finished is not None:
            metadata["finish_reason"] = finished
        if finished == "content_filter":
            raise AnswerError("The model declined to answer this.")
        if finished is None:
            raise AnswerError("The model's answer was cut off. Try again.")

    async def aclose(self) -> None:
        """Closes its connections."""
        await self._client.close()


def _told(said: Said) -> str | list[ChatCompletionContentPartParam]:
    """Returns what a model is told of a question: its text, and the files that it can read."""
    if not said.files:
        return said.content
    told: list[ChatCompletionContentPartParam] = []
    if said.content.strip():
        told.append({"type": "text", "text": said.content})
    for file in said.files:
        if file.media_type.startswith("image/"):
            told.append({"type": "image_url", "image_url": {"url": file.url}})
        else:
            given: File = {"type": "file", "file": {"filename": file.name, "file_data": file.url}}
            told.append(given)
    return told


def _asked(answer: Message) -> list[ToolCallPart]:
    """Returns the tool calls of an answer that need an approval, or needed one."""
    calls = (part for part in answer.parts if isinstance(part, ToolCallPart))
    return [call for call in calls if call.approval is not None]


class Responder:
    """Stores the answers of a model.

    A failure is logged. The message stores a sentence for users, and the name of
    the error in its metadata.
    """

    def __init__(self, model: Model) -> None:
        self._model = model

    async def respond(self, conversation: Conversation, message: Message) -> None:
        """Writes an answer; the callback of ``Generations``."""
        try:
            # Before anything else: if two processes are asked for one answer, only one continues.
            async with message.writer(interrupt=True) as writer:
                await self._write(conversation, message, writer)
        except AnswerError:
            pass  # already stored in the message, and logged

    async def _write(
        self, conversation: Conversation, message: Message, writer: MessageWriter
    ) -> None:
        # Filled on the way, so that it is stored when the answer is stopped or fails, too.
        metadata = writer.metadata
        metadata["model"] = self._model.name
        began = time.monotonic()
        try:
            if message.parts:  # an earlier attempt was cut off, or the user has answered it
                await writer.reset(None if _asked(message) else 0)
            said, asked = await said_before(conversation, message), _asked(message)
            await name_conversation(conversation, said)
            async with aclosing(self._model.stream(said, metadata, asked)) as answer:
                async for written in answer:
                    await writer.write(written)
                    metadata["duration"] = round(time.monotonic() - began, 3)
            await writer.flush()
            if any(call.state == "approval-requested" for call in _asked(message)):
                await writer.suspend()
        except WRITER_ERRORS:
            raise
        except Exception as error:
            # A failure that the chat knows of needs no traceback.
            trace = not isinstance(error, AnswerError)
            logger.error("Message %s could not be answered: %s", message.id, error, exc_info=trace)
            metadata["error_type"] = type(error).__name__
            raise AnswerError(sentence_for(error)) from None
        finally:
            metadata["duration"] = round(time.monotonic() - began, 3)
