"""Answers: a language model's tokens, written into a message while they come."""

import logging
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, Protocol

import openai
from openai.types.chat import ChatCompletionMessageParam

from converse_mongo import (
    Conversation,
    ConverseClosedError,
    Message,
    MessageNotStreamingError,
    MessageWriter,
    StreamStoppedError,
    WriterError,
)

from .canned import CannedModel
from .errors import AnswerError, sentence_for
from .prompts import Said, name_conversation, said_before
from .settings import Settings

__all__ = ["Model", "OpenAIModel", "Responder", "open_model"]

logger = logging.getLogger("examples.chat")

SYSTEM_PROMPT = (
    "You are a helpful assistant in a chat. Answer in the language of the user, to the point. "
    "You may use paragraphs, lists, bold text, inline code and fenced code blocks."
)

NOT_OURS = StreamStoppedError, WriterError, MessageNotStreamingError, ConverseClosedError
"""Errors of the writer: the library deals with them, and nothing is wrong with the model."""


class Model(Protocol):
    """Something that answers."""

    @property
    def name(self) -> str:
        """What users are told that it is."""

    def stream(self, said: Sequence[Said], metadata: dict[str, Any]) -> AsyncGenerator[str, None]:
        """Yields the tokens of the answer, and puts what else it knows into ``metadata``."""

    async def aclose(self) -> None:
        """Lets go of what it holds."""


def open_model(settings: Settings) -> Model:
    """The model that the settings ask for; the built-in one where there is no key."""
    return OpenAIModel(settings) if settings.api_key else CannedModel(settings.canned_delay)


class OpenAIModel:
    """A model behind the API of OpenAI, or one that speaks like it."""

    def __init__(self, settings: Settings) -> None:
        self.name = settings.model
        self._client = openai.AsyncOpenAI(
            api_key=settings.api_key,
            base_url=settings.base_url,
            timeout=settings.timeout,
            max_retries=settings.max_retries,
        )

    async def stream(
        self, said: Sequence[Said], metadata: dict[str, Any]
    ) -> AsyncGenerator[str, None]:
        """Yields the tokens of an answer.

        Raises:
            AnswerError: The model declined, or its stream ended before the answer did.
            openai.OpenAIError: The model could not be asked, or broke off.
        """
        prompt: list[ChatCompletionMessageParam] = [{"role": "system", "content": SYSTEM_PROMPT}]
        for each in said:
            if each.role == "user":
                prompt.append({"role": "user", "content": each.content})
            else:
                prompt.append({"role": "assistant", "content": each.content})
        finished: str | None = None
        # Left early, for a stop, this closes the connection: no token is paid for that is not read.
        async with await self._client.chat.completions.create(
            model=self.name,
            messages=prompt,
            stream=True,
            stream_options={"include_usage": True},
        ) as chunks:
            async for chunk in chunks:
                if chunk.usage is not None:  # on the last one, which has no text
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


class Responder:
    """Has a model answer, and stores what it says.

    What fails is logged with its trace. Users, and the database, get a sentence that says what to
    do, and the name of the error in the metadata.
    """

    def __init__(self, model: Model) -> None:
        self._model = model

    async def respond(self, conversation: Conversation, message: Message) -> None:
        """Writes an answer; what ``Generations`` takes."""
        try:
            # First of all: of two processes that were asked for one answer, one goes on from here.
            async with message.writer(interrupt=True) as writer:
                await self._write(conversation, message, writer)
        except AnswerError:
            pass  # the message has failed with it, and its cause is logged

    async def _write(
        self, conversation: Conversation, message: Message, writer: MessageWriter
    ) -> None:
        # Filled as it goes along: what is known at a stop or a failure is stored, too.
        metadata = writer.metadata
        metadata["model"] = self._model.name
        began = time.monotonic()
        try:
            said = await said_before(conversation, message)
            await name_conversation(conversation, said)
            async with aclosing(self._model.stream(said, metadata)) as tokens:
                async for token in tokens:
                    await writer.write(token)
                    metadata["duration"] = round(time.monotonic() - began, 3)
        except NOT_OURS:
            raise
        except Exception as error:
            logger.exception("Message %s could not be answered", message.id)
            metadata["error_type"] = type(error).__name__
            raise AnswerError(sentence_for(error)) from None
        finally:
            metadata["duration"] = round(time.monotonic() - began, 3)
