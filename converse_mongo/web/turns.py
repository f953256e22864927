"""Turns: asking, retrying and stopping, each carried out once however often it is requested."""

from collections.abc import Iterable

from converse_mongo.documents.conversations import Conversation
from converse_mongo.documents.messages import Message
from converse_mongo.domain.types import MessageRole, MessageStatus
from converse_mongo.web.errors import ConflictError
from converse_mongo.web.generations import Generations
from converse_mongo.web.models import replaced_id


class Turns:
    """Adds messages, and starts their answers if this process generates them.

    Args:
        generations: Writes the answers; ``None`` if another process does.
    """

    def __init__(self, generations: Generations | None) -> None:
        self._generations = generations

    async def ask(
        self, conversation: Conversation, content: str, request_id: str | None = None
    ) -> tuple[Message, Message | None]:
        """Adds a user message and starts the answer.

        Args:
            request_id: Names the request: the same one again adds nothing and starts nothing.

        Returns:
            The user message, and the answer, which may have existed before.

        Raises:
            BusyError: No more answers can be started now; nothing was written.
        """
        named = None if request_id is None else f"request:{request_id}"
        if self._generations is None:
            return await conversation.create_user_message(content, generation_id=named), None
        added: list[Message] = []

        async def add_both() -> Message:
            added.append(await conversation.create_user_message(content, generation_id=named))
            return await conversation.start_streaming_assistant(generation_id=_answer_to(added[0]))

        answer = await self._generations.begin(conversation, add_both)
        return added[0], answer

    async def continue_(self, conversation: Conversation, question: Message) -> Message | None:
        """The answer to a message that has none yet."""
        return await self._answer(conversation, _answer_to(question))

    async def retry(
        self, conversation: Conversation, answer: Message, *, stop: bool = False
    ) -> Message | None:
        """Starts another answer in place of the last one of a conversation.

        Args:
            stop: Whether to stop that one first if it is being written.

        Raises:
            ConflictError: It is not an answer, is being written, or is not the last.
            BusyError: No more answers can be started now; nothing was written.
        """
        if answer.role is not MessageRole.ASSISTANT:
            raise ConflictError("Only an answer can be retried.")
        if answer.is_streaming and not stop:
            raise ConflictError("This answer is being written: stop it first.")
        later = await conversation.messages(after=answer.position)
        if any(message.role is MessageRole.USER for message in later):
            raise ConflictError("Only the last answer can be retried.")
        if answer.is_streaming:
            if self._generations is not None:
                self._generations.check_room()
            await answer.request_stop()
        return await self._answer(
            conversation, f"instead:{answer.id}", {"replaces": str(answer.id)}
        )

    async def _answer(
        self, conversation: Conversation, name: str, metadata: dict[str, str] | None = None
    ) -> Message | None:
        async def start() -> Message:
            return await conversation.start_streaming_assistant(metadata, generation_id=name)

        if self._generations is None:
            return None
        return await self._generations.begin(conversation, start)

    async def stop(
        self, conversation: Conversation, reason: str | None = None
    ) -> list[tuple[Message, MessageStatus]]:
        """Asks all answers of a conversation that are being written to stop."""
        return [
            (message, await message.request_stop(reason))
            for message in await self.streaming(conversation)
        ]

    async def streaming(self, conversation: Conversation) -> list[Message]:
        """The answers that are being written."""
        listed = await conversation.messages(status=MessageStatus.STREAMING)
        return [
            message
            for message in listed
            if message.is_streaming and message.role is MessageRole.ASSISTANT
        ]


def _answer_to(question: Message) -> str:
    """The ``generation_id`` of the answer: one question has one, however often it is requested."""
    return f"answer:{question.id}"


def without_replaced(messages: Iterable[Message]) -> list[Message]:
    """The messages that no other among them replaces: the prompt of a model, for example."""
    listed = list(messages)
    replaced = {replaced_id(message.metadata) for message in listed}
    return [message for message in listed if str(message.id) not in replaced]
