"""Turns: asking, retrying and stopping, each carried out once however often it is requested."""

import logging
import time
from collections.abc import Awaitable, Callable, Hashable, Sequence
from contextlib import suppress
from itertools import count
from typing import Literal, TypeAlias

from bson import ObjectId

from converse_mongo.documents.conversations import Conversation
from converse_mongo.documents.listings import load_outline
from converse_mongo.documents.messages import Message
from converse_mongo.documents.repeats import has_parts, has_text
from converse_mongo.domain.composing import whole
from converse_mongo.domain.errors import (
    GenerationConflictError,
    InvalidInputError,
    MessageNotFoundError,
    MessageNotStreamingError,
)
from converse_mongo.domain.generated_ids import generated_id
from converse_mongo.domain.headers import MessageHeader
from converse_mongo.domain.part_log import Record
from converse_mongo.domain.parts import Part
from converse_mongo.domain.types import MessageRole, MessageStatus
from converse_mongo.store.collections import back_off
from converse_mongo.web.answering import Answering
from converse_mongo.web.errors import TOO_LONG, ConflictError, NotAnsweredError, TooLargeError
from converse_mongo.web.limits import Limits, Slots

logger = logging.getLogger("converse_mongo")

STOP_SECONDS = 5.0
"""The time for which a new answer waits for those that were stopped."""

Meanwhile: TypeAlias = Literal["refuse", "stop"]
"""What to do if as many answers are being written as a conversation may have: refuse the new one,
or stop the oldest."""

BEING_WRITTEN = "An answer is being written. Wait for it, or stop it."
ANOTHER_SINCE = "Another message has been sent since then. Send this one again as a new message."
OTHER_TEXT = (
    "This message was already sent with another text or other files. Send it as a new message."
)


class Turns:
    """Adds messages, and has their answers started, if that is for this process to do.

    A question that is named by a ``request_id`` has an id that is derived from it, and an answer
    one that is derived from the question, so that both can be found, and stopped, by the name.

    Args:
        answering: Starts the answers; ``None`` if another process does.
        limits: How many answers are written at once.
    """

    def __init__(self, answering: Answering | None, limits: Limits) -> None:
        self._answering = answering
        self._at_once = limits.answers_per_conversation
        self._slots = Slots(limits.answers_per_key)

    # Asking

    async def ask(
        self,
        conversation: Conversation,
        content: str,
        request_id: str | None = None,
        *,
        key: Hashable = None,
        meanwhile: Meanwhile = "refuse",
        heed_stop: bool = True,
        files: Sequence[Part] = (),
    ) -> tuple[Message, Message | None]:
        """Adds a user message and starts the answer.

        Args:
            conversation: The conversation.
            content: The text of the message.
            request_id: Names the request. The same one again adds nothing and starts nothing, and
                is not refused.
            key: Who asks, for the limit of answers by key.
            meanwhile: What to do if an answer is being written.
            heed_stop: ``False`` to answer it in spite of a stop that came before the question.
            files: The files of the message.

        Returns:
            The user message; and the answer, which may have existed before, or ``None`` if another
            process answers. An answer that existed has its text only if it has ended.

        Raises:
            ConflictError: An answer is being written, or the ``request_id`` belongs to another
                text or other files. Nothing was written.
            TooLargeError: The files are too large together; nothing was written.
            LimitError: The key has as many answers as it may; nothing was written.
            BusyError: No more answers can be started now; nothing was written.
        """
        named = None if request_id is None else f"request:{request_id}"
        records = records_of(content, files)
        found: Message | None = None
        if request_id is not None:
            found = await self._asked(conversation, request_id, content, records)
        if found is not None:
            answer = await self._find(conversation, _answer_to(found.id))
            if answer is not None:
                return found, await self._adopt(conversation, answer)
        answering = self._answering
        if answering is None:
            return await _add(conversation, content, named, files), None
        added: list[Message] = []

        async def add() -> Message:
            added.append(await _add(conversation, content, named, files))
            name = _answer_to(added[0].id)
            if named is None:
                return await answering.add(conversation, name, key)
            if not heed_stop:  # what came before; one that comes from here on counts
                await conversation.store().answers.forget_stop(
                    conversation.id, generated_id(conversation.id, name)
                )
            return await self._start(conversation, name, key)

        question = None if request_id is None else question_id(conversation, request_id)
        name = None if question is None else _answer_to(question)
        answer = await self._begin(conversation, add, name, key, meanwhile, question=question)
        if not added and request_id is not None:  # the same request was being carried out
            found = found or await self._asked(conversation, request_id, content, records)
            if found is None:
                raise ConflictError
            added.append(found)
        return added[0], answer

    async def answer(
        self,
        conversation: Conversation,
        question: ObjectId,
        *,
        key: Hashable = None,
        meanwhile: Meanwhile = "refuse",
    ) -> Message:
        """Starts the answer to a question that has none, or finds the newest that it has.

        Takes and raises what :meth:`ask` does.

        Raises:
            NotAnsweredError: Nothing starts answers here; nothing was written.
        """
        self.check_answers()
        name = _answer_to(question)
        answer = await self._find(conversation, name)
        if answer is not None:
            while instead := await self._find(conversation, _instead_of(answer.id)):
                answer = instead
            return await self._adopt(conversation, answer)
        return await self._begin(
            conversation,
            lambda: self._start(conversation, name, key),
            *(name, key, meanwhile),
            question=question,
        )

    async def retry(
        self,
        conversation: Conversation,
        answer: ObjectId,
        *,
        key: Hashable = None,
        meanwhile: Meanwhile = "refuse",
    ) -> Message:
        """Starts another answer in place of the last one of a conversation.

        The same again starts nothing, and is not refused.

        Args:
            conversation: The conversation.
            answer: The answer to replace.
            key: As for :meth:`ask`.
            meanwhile: What to do if that or another answer is being written. ``"stop"`` stops that
                one, and as many of the others as it must.

        Raises:
            ConflictError: It is not an answer, is being written, or is not the last.
            MessageNotFoundError: It does not exist.
            NotAnsweredError: Nothing starts answers here; nothing was changed.
            LimitError: The key has as many answers as it may; nothing was changed.
            BusyError: No more answers can be started now; nothing was changed.
        """
        self.check_answers()
        name = _instead_of(answer)
        known = await self._find(conversation, name)
        if known is not None:
            return await self._adopt(conversation, known)

        return await self._begin(
            conversation,
            lambda: self._start(conversation, name, key, {"replaces": str(answer)}),
            *(name, key, meanwhile),
            replaced=answer,
        )

    def check_answers(self) -> Answering:
        """Returns what starts answers.

        Raises:
            NotAnsweredError: Nothing does. The log says what is missing.
        """
        if self._answering is None:
            logger.error(
                "A request for an answer was refused: nothing answers here. Pass "
                "generations=Generations(respond), or generations=Queue(...), to routes()"
            )
            raise NotAnsweredError
        return self._answering

    # Finding

    async def question(self, conversation: Conversation, request_id: str) -> MessageHeader | None:
        """Returns the user message that a request added; ``None`` if it has not arrived."""
        key = question_id(conversation, request_id)
        return await conversation.store().answers.state(conversation.id, key)

    async def answers_to(
        self, conversation: Conversation, question: ObjectId
    ) -> list[MessageHeader]:
        """Returns the answers to a question, each of which replaces the one before it."""
        found: list[MessageHeader] = []
        key = answer_id(conversation, question)
        while state := await conversation.store().answers.state(conversation.id, key):
            found.append(state)
            key = generated_id(conversation.id, _instead_of(key))
        return found

    async def streaming(self, conversation: Conversation) -> list[MessageHeader]:
        """Returns the answers that are being written, in order."""
        return await conversation.store().answers.running(conversation.id)

    async def last(self, conversation: Conversation) -> MessageHeader | None:
        """Returns the last message of a user or of the model, if there is one."""
        return await conversation.store().answers.last(conversation.id)

    # Stopping

    async def stop(
        self,
        conversation: Conversation,
        reason: str | None = None,
        request_id: str | None = None,
    ) -> list[tuple[ObjectId, MessageStatus]]:
        """Asks answers to stop that are being written.

        Args:
            conversation: The conversation.
            reason: Stored with the answer.
            request_id: Stops only the answer to the question that this request adds. If it has not
                arrived yet, its answer will begin cancelled. The id of a stored message is
                accepted as well: of an answer, or of its question.

        Returns:
            The answers, with their status.
        """
        answers = conversation.store().answers
        if request_id is None:
            await answers.stop_turn(conversation.id, None, reason)
            running = await self.streaming(conversation)
            return await self._request_stops(conversation, running, reason)
        question = question_id(conversation, request_id)
        if ObjectId.is_valid(request_id):
            key = ObjectId(request_id)
            state = await answers.state(conversation.id, key)
            if state is not None and state.role is MessageRole.ASSISTANT:
                await answers.stop_turn(conversation.id, [key], reason)
                return await self._request_stops(conversation, [state], reason)
            if state is not None:
                question = key
        known = [each.message_id for each in await self.answers_to(conversation, question)]
        early = answer_id(conversation, question)
        await answers.stop_turn(conversation.id, [question, early, *known], reason)
        found = await self.answers_to(conversation, question)
        if all(each.status.is_final for each in found):
            found += await self._running_after(conversation, question)
        if not found:
            await answers.stop_early(conversation.id, early, reason)
            found = await self.answers_to(conversation, question)
            if not found:
                return [(early, MessageStatus.CANCELLED)]
        return await self._request_stops(conversation, found, reason)

    async def _running_after(
        self, conversation: Conversation, question: ObjectId
    ) -> list[MessageHeader]:
        """The answers that are being written to the last question, whatever they replace."""
        answers = conversation.store().answers
        state = await answers.state(conversation.id, question)
        if state is None or await answers.is_asked_behind(conversation.id, state.position):
            return []
        running = await self.streaming(conversation)
        return [each for each in running if each.position > state.position]

    async def _request_stops(
        self, conversation: Conversation, answers: list[MessageHeader], reason: str | None
    ) -> list[tuple[ObjectId, MessageStatus]]:
        leases = conversation.store().leases
        return [
            (each.message_id, (await leases.request_stop(each.key, reason)).status)
            for each in answers
            if not each.status.is_final
        ]

    # One at a time

    async def _begin(
        self,
        conversation: Conversation,
        add: Callable[[], Awaitable[Message]],
        name: str | None,
        key: Hashable,
        meanwhile: Meanwhile,
        *,
        question: ObjectId | None = None,
        replaced: ObjectId | None = None,
    ) -> Message:
        """Starts an answer in its turn, and has it written."""

        async def create() -> Message:
            async with conversation.store().answers.turn(conversation.id) as turn:
                found = None if name is None else await self._find(conversation, name)
                if found is not None:
                    return found
                if question is not None:
                    await self._check_newest(conversation, question)
                if replaced is not None:
                    await self._check_last(conversation, replaced, meanwhile)
                await self._make_way(conversation, meanwhile, replaced)
                message = await add()
            stop = turn.stop_of({message.id, question, replaced})
            if message.is_streaming and (turn.is_over or stop is not None):
                # Others may have begun since, or somebody who did not find it wanted it stopped.
                await self._stop_begun(message, None if stop is None else stop.reason)
            return message

        joined = None if name is None else (conversation.id, name)
        return await self.check_answers().begin(
            conversation, create, name=joined, slots=self._slots, key=key
        )

    async def _make_way(
        self, conversation: Conversation, meanwhile: Meanwhile, replaced: ObjectId | None
    ) -> None:
        """Has no more answers being written than there may be beside a new one.

        It waits a while for those that were stopped, so that the new one knows their text.

        Raises:
            ConflictError: There are as many as there may be.
        """
        streaming = await self.streaming(conversation)
        excess = [each for each in streaming if each.message_id == replaced]
        if self._at_once is not None:
            others = [each for each in streaming if each not in excess and not each.stop_requested]
            surplus = others[: max(len(others) - self._at_once + 1, 0)]
            if surplus and meanwhile == "refuse":
                raise ConflictError(BEING_WRITTEN)
            excess += surplus
        await self._request_stops(conversation, excess, None)
        ending = {each.message_id for each in streaming if each in excess or each.stop_requested}
        until = time.monotonic() + STOP_SECONDS
        for attempt in count():
            if not ending or time.monotonic() >= until:
                return
            await back_off(attempt)
            ending &= {each.message_id for each in await self.streaming(conversation)}

    async def _check_newest(self, conversation: Conversation, question: ObjectId) -> None:
        """Checks that an answer to a question, if that is stored, would follow it.

        Raises:
            ConflictError: Another question was asked since.
        """
        answers = conversation.store().answers
        state = await answers.state(conversation.id, question)
        if state is not None and await answers.is_asked_behind(conversation.id, state.position):
            raise ConflictError(ANOTHER_SINCE)

    async def _check_last(
        self, conversation: Conversation, answer: ObjectId, meanwhile: Meanwhile
    ) -> None:
        answers = conversation.store().answers
        state = await answers.state(conversation.id, answer)
        if state is None:
            raise MessageNotFoundError(answer)
        if state.role is not MessageRole.ASSISTANT:
            raise ConflictError("Only an answer can be retried.")
        if not state.status.is_final and not state.stop_requested and meanwhile == "refuse":
            raise ConflictError("This answer is being written: stop it first.")
        if await answers.is_asked_behind(conversation.id, state.position):
            raise ConflictError("Only the last answer can be retried.")

    async def _start(
        self,
        conversation: Conversation,
        name: str,
        key: Hashable,
        metadata: dict[str, str] | None = None,
    ) -> Message:
        message = await self.check_answers().add(conversation, name, key, metadata)
        await self._heed_early_stop(conversation, message)
        return message

    async def _heed_early_stop(self, conversation: Conversation, message: Message) -> None:
        stop = await conversation.store().answers.early_stop(conversation.id, message.id)
        if stop is not None:
            await self._stop_begun(message, stop.reason)

    async def _stop_begun(self, message: Message, reason: str | None) -> None:
        """Stops an answer that may be claimed by this process, which has not begun to write it."""
        if self._answering is not None and self._answering.holds(message):
            with suppress(MessageNotStreamingError):
                await message.cancel_streaming(reason)
        else:
            await message.request_stop(reason)
        await message.refresh()

    # Once

    async def _asked(
        self,
        conversation: Conversation,
        request_id: str,
        content: str,
        records: Sequence[Record] | None,
    ) -> Message | None:
        """Finds the user message of a request.

        Raises:
            ConflictError: It has another text, or other files.
        """
        key = question_id(conversation, request_id)
        found = await load_outline(conversation.message_model, conversation.id, key)
        if found is None:
            return None
        if (
            found.role is not MessageRole.USER
            or not has_parts(found, records)
            or not await has_text(found, content)
        ):
            raise ConflictError(OTHER_TEXT)
        return found

    async def _find(self, conversation: Conversation, name: str) -> Message | None:
        key = generated_id(conversation.id, name)
        return await load_outline(conversation.message_model, conversation.id, key)

    async def _adopt(self, conversation: Conversation, answer: Message) -> Message:
        """Starts an answer that no process has begun to write, if there is room.

        The process that added it may be about to write it: one of the two is refused the writer.
        """
        answering, lease = self._answering, answer.lease
        if answering is None or not answer.is_streaming or (lease is not None and lease.epoch):
            return answer
        answer = await conversation.get_message(answer.id)
        if answer.next_sequence:
            return answer  # somebody appends to it without a writer
        await self._heed_early_stop(conversation, answer)
        await answering.adopt(conversation, answer)
        return answer


async def _add(
    conversation: Conversation, content: str, name: str | None, files: Sequence[Part]
) -> Message:
    try:
        return await conversation.create_user_message(content, generation_id=name, parts=files)
    except GenerationConflictError as error:
        raise ConflictError(OTHER_TEXT) from error


def records_of(content: str, files: Sequence[Part]) -> Sequence[Record] | None:
    """Returns the parts of a question as they are stored; ``None`` for text alone.

    Raises:
        TooLargeError: They are too large together.
    """
    try:
        return whole(content, files).records if files else None
    except InvalidInputError as error:
        raise TooLargeError(TOO_LONG, detail=str(error)) from error


def question_id(conversation: Conversation, request_id: str) -> ObjectId:
    """Returns the id of the question that a request adds."""
    return generated_id(conversation.id, f"request:{request_id}")


def answer_id(conversation: Conversation, question: ObjectId) -> ObjectId:
    """Returns the id of the first answer to a question, also before there is one."""
    return generated_id(conversation.id, _answer_to(question))


def _answer_to(question: ObjectId) -> str:
    """The ``generation_id`` of the answer: one question has one, however often it is requested."""
    return f"answer:{question}"


def _instead_of(answer: ObjectId) -> str:
    return f"instead:{answer}"
