"""The turns of a chat of the AI SDK: what its page means by a request for an answer."""

from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from typing import Any

from bson import ObjectId

from converse_mongo.documents.conversations import Conversation
from converse_mongo.documents.listings import load_outline
from converse_mongo.documents.messages import Message
from converse_mongo.documents.repeats import has_parts, has_text
from converse_mongo.documents.views import MessageView
from converse_mongo.domain.headers import MessageHeader
from converse_mongo.domain.types import MessageRole, MessageStatus
from converse_mongo.web.call_answers import Said, answered_at, answers_to, said_of_calls
from converse_mongo.web.context import WebContext
from converse_mongo.web.conversations import store_answers
from converse_mongo.web.errors import (
    ENDED,
    OUTDATED,
    ConflictError,
    NotAnsweredError,
    NotPendingError,
    UnknownError,
)
from converse_mongo.web.models import AnswersBody, ChatBody, FilesBody, QuestionBody
from converse_mongo.web.turns import OTHER_TEXT, records_of
from converse_mongo.web.ui_messages import ui_message
from converse_mongo.web.ui_parts import call_names
from converse_mongo.web.ui_questions import question_of, ui_files

UNCHANGEABLE = "A message that was sent cannot be changed: send another one."
NOT_LAST = "Only the last answer can be regenerated."


class ChatTurns:
    """The turns of one chat.

    A page of the AI SDK disconnects from an answer to stop it, so that another one stops it here.

    Args:
        context: The context.
        conversation: The conversation of the chat.
        key: Who asks, for the limit of answers by key.
        files: Returns the path of the large files of a message.
    """

    def __init__(
        self,
        context: WebContext,
        conversation: Conversation,
        key: Hashable,
        files: Callable[[ObjectId], str],
    ) -> None:
        self._context = context
        self._turns = context.turns
        self._conversation = conversation
        self._key = key
        self._files = files
        self._answers = conversation.store().answers

    async def submit(self, body: ChatBody) -> Message:
        """Adds the last of the messages, and returns its answer.

        A message that is stored already, by whichever of its ids, is only answered.

        Raises:
            RequestError: It has no text, or more than that.
            ConflictError: It was sent before with another text or other files, or is to change
                another one, or another one was sent since.
        """
        name = question_of(body.messages).request_id
        stored = await self._find(name)
        if body.message_id not in (None, name) and await self._find(body.message_id) is not None:
            raise ConflictError(UNCHANGEABLE)
        if stored is None:
            return await self._ask(body.messages)
        if stored.role is not MessageRole.USER or not await self._is_last(stored, body.messages):
            raise ConflictError(OTHER_TEXT if body.message_id is None else UNCHANGEABLE)
        behind = self._answers.is_asked_behind
        if body.message_id is not None and await behind(self._conversation.id, stored.position):
            raise ConflictError(UNCHANGEABLE)  # the page has dropped what came behind it
        return await self._answer(stored)

    async def _ask(self, messages: list[Any], *, heed_stop: bool = True) -> Message:
        sent = question_of(messages)
        files = sent.files(self._context.limits.file_bytes)
        given = {"content": sent.content, "request_id": sent.request_id}
        question = self._context.checked(FilesBody if files else QuestionBody, given)
        _, answer = await self._turns.ask(
            self._conversation,
            question.content,
            question.request_id,
            key=self._key,
            meanwhile="stop",
            heed_stop=heed_stop,
            files=files,
        )
        if answer is None:
            raise NotAnsweredError
        return answer

    def answers_calls(self, body: ChatBody) -> bool:
        """Reports whether a request is about an answer, and not about a question."""
        last: Any = body.messages[-1] if body.messages else None
        is_of_model = isinstance(last, dict) and last.get("role") == MessageRole.ASSISTANT.value
        return is_of_model and isinstance(last.get("id"), str)

    async def answer_calls(self, body: ChatBody) -> tuple[Message, int]:
        """Answers the tool calls that wait, all in one write, as the last message says.

        All else that it says is the copy of the page, which changes nothing. The same again changes
        nothing, either.

        Returns:
            The answer, and the number of its chunks that the page has.

        Raises:
            UnknownError: There is no such message in this conversation.
            NotPendingError: It answers no call that waits.
            ConflictError: The message has ended, or the page means another one.
            RequestError: What it says cannot be stored.
        """
        last: Any = body.messages[-1]
        found = await self._find(last.get("id"))
        if found is None:
            raise UnknownError
        if found.role is not MessageRole.ASSISTANT or body.message_id not in (None, last["id"]):
            raise ConflictError(OUTDATED)
        message = await self._context.access.message(self._conversation, str(found.message_id))
        shown = MessageView.model_validate(message, context=self._context.presenter).parts
        said = said_of_calls(last, call_names(shown or ()))
        answers = list(answers_to(() if message.work is None else message.work.pending, said))
        if not answers:
            return message, self._repeated(message, said)
        given = self._context.checked(AnswersBody, {"answers": answers})
        try:
            await store_answers(self._context, message.id, given, once=True)
        except (NotPendingError, ConflictError):
            # Somebody was faster: perhaps the same request.
            message = await self._context.access.message(self._conversation, str(message.id))
            with suppress(NotPendingError):
                return message, self._repeated(message, said)
            raise
        return message, message.next_sequence

    def _repeated(self, message: Message, said: Mapping[int, Said]) -> int:
        """Where a page goes on that says what was answered before.

        Raises:
            NotPendingError: It says nothing of the kind, or something else.
            ConflictError: The message was stopped, or has ended, with calls that wait.
        """
        base = answered_at(message.chunks.stored, said) if message.chunks.is_loaded else None
        if base:
            return base
        if message.status is MessageStatus.CANCELLED:
            raise ConflictError(ENDED)
        raise NotPendingError

    async def regenerate(self, body: ChatBody) -> Message:
        """Starts another answer to the last of the messages, and returns it.

        The SDK sends the messages up to the answer that is to be replaced, and the id of that
        answer, or of its question, if the page named it. A page that sends no messages means the
        last answer. A question that is not stored never arrived: it is asked now.

        Raises:
            ConflictError: The question was changed or is not the last, or nothing was said.
            UnknownError: The id is not that of a message.
        """
        last = body.messages[-1] if body.messages else None
        name = last.get("id") if isinstance(last, dict) else None
        anchor = None
        if last is not None:
            anchor = await self._find(name)
            if anchor is None:
                return await self._ask_again(body, last, name)
            await self._check_text(anchor, body.messages)
        named = None
        if body.message_id not in (None, name):
            named = await self._find(body.message_id)
            if named is None and anchor is None:
                raise UnknownError
            if named is None:
                raise ConflictError(OUTDATED)
        if named is not None and named.role is MessageRole.USER:
            if anchor is not None and anchor.message_id != named.message_id:
                raise ConflictError(OUTDATED)
            anchor, named = named, None
        if anchor is not None:
            if named is not None and named.position < anchor.position:
                raise ConflictError(OUTDATED)
            if await self._answers.is_asked_behind(self._conversation.id, anchor.position):
                raise ConflictError(NOT_LAST)
        target = named or await self._turns.last(self._conversation)
        if target is None:
            raise ConflictError("Nothing was said yet.")
        if target.role is MessageRole.USER:
            return await self._answer(target)
        return await self._turns.retry(
            self._conversation, target.message_id, key=self._key, meanwhile="stop"
        )

    async def _ask_again(self, body: ChatBody, last: Any, name: Any) -> Message:
        """Asks a question that never arrived."""
        if not isinstance(last, dict) or last.get("role") != "user":
            raise ConflictError(OUTDATED)
        if body.message_id not in (None, name):
            raise UnknownError
        newest = await self._turns.last(self._conversation)
        if (
            newest is not None
            and newest.role is MessageRole.USER
            and await self._is_last(newest, body.messages)
        ):  # the page does not know its id
            return await self._answer(newest)
        return await self._ask(body.messages, heed_stop=False)

    async def _answer(self, question: MessageHeader) -> Message:
        return await self._turns.answer(
            self._conversation, question.message_id, key=self._key, meanwhile="stop"
        )

    async def _check_text(self, stored: MessageHeader, messages: list[Any]) -> None:
        """Checks that a question of the page is what was asked.

        Raises:
            ConflictError: It has another text, or other files.
        """
        if stored.role is MessageRole.USER and not await self._is_last(stored, messages):
            raise ConflictError(OTHER_TEXT)

    async def _is_last(self, message: MessageHeader, messages: list[Any]) -> bool:
        """Returns whether a stored message is the last one of the page."""
        found = await load_outline(
            self._conversation.message_model, self._conversation.id, message.message_id
        )
        sent = question_of(messages)
        if found is None or not await has_text(found, sent.content):
            return False
        shown = await ui_message(found, self._context.presenter, self._files(found.id))
        if ui_files(shown.parts) == ui_files(sent.sent):
            return True  # as the page has them after a reload
        files = sent.files(self._context.limits.file_bytes)
        return has_parts(found, records_of(sent.content, files))

    async def _find(self, name: Any) -> MessageHeader | None:
        """The message that the page knows by an id, its own or that of a question it has sent.

        Raises:
            UnknownError: Browsers do not see its role.
        """
        if not isinstance(name, str) or not name:
            return None
        found = None
        if ObjectId.is_valid(name):
            found = await self._answers.state(self._conversation.id, ObjectId(name))
        if found is None:
            found = await self._turns.question(self._conversation, name)
        if found is not None and not self._context.access.shows(found.role):
            raise UnknownError
        return found
