"""Conversations: ordered lists of messages."""

from collections.abc import AsyncIterator
from functools import partial
from typing import Any, ClassVar, Self, cast

from beanie import Document, PydanticObjectId
from beanie.odm.actions import EventTypes, wrap_with_actions
from beanie.odm.utils.parsing import parse_obj
from pydantic import Field
from pymongo import ASCENDING, DESCENDING, IndexModel

from converse_mongo.documents.base import JsonableDict, StoredDocument, make
from converse_mongo.documents.listings import (
    History,
    MessageList,
    Range,
    list_conversations,
    read_history,
)
from converse_mongo.documents.messages import Message, generated_id, load_message
from converse_mongo.documents.pages import MessageChunkPage
from converse_mongo.domain.chunks import UtcDatetime
from converse_mongo.domain.errors import ConversationNotFoundError, InvalidInputError
from converse_mongo.domain.events import ConversationCreated
from converse_mongo.domain.metadata import check_metadata
from converse_mongo.domain.owners import Owner, check_owner
from converse_mongo.domain.types import IdLike, MessageRole, MessageStatus, Metadata, Retention
from converse_mongo.domain.validation import (
    check_choice,
    check_content,
    check_count,
    check_retention,
    check_sequence,
    now,
    object_id,
)

__all__ = ["DOCUMENT_MODELS", "Conversation"]


class Conversation(StoredDocument, Document):
    """A chat session: an ordered list of messages, and what the application says of it.

    Attributes:
        title: Its name, for people.
        owner: Who it belongs to: a pair of a type and an id, such as ``("user", "42")``.
        metadata: What the application says of it.
        context: What the application wants to give to the model.
        next_position: The position of the message that comes next.
        revision: How often it was saved.
        created_at: When it was started; UTC, aware.
        updated_at: When a message was last added to it, or it was saved itself.
    """

    title: str | None = None
    owner: Owner | None = None
    metadata: JsonableDict = Field(default_factory=dict)
    context: JsonableDict = Field(default_factory=dict)
    next_position: int = 0
    revision: int = 0
    created_at: UtcDatetime = Field(default_factory=now)
    updated_at: UtcDatetime = Field(default_factory=now)

    message_model: ClassVar[type[Message]] = Message

    _kind = "conversation"
    _missing_error = ConversationNotFoundError
    _protected: ClassVar[dict[str, str]] = {
        "id": "MongoDB ids never change",
        "next_position": "add messages with its methods",
        "revision": "save() counts it",
        "created_at": "it was given once",
    }
    _untracked = frozenset({"revision_id", "updated_at"})
    _mappings = frozenset({"metadata", "context"})

    class Settings:
        """What Beanie is to know."""

        name = "conversations"
        indexes: ClassVar[list[IndexModel]] = [
            IndexModel(
                [
                    ("owner.type", ASCENDING),
                    ("owner.id", ASCENDING),
                    ("updated_at", DESCENDING),
                    ("_id", DESCENDING),
                ],
                name="owner_updated",
            ),
            # Whether watched conversations are there and have new messages: one covered query.
            IndexModel([("_id", ASCENDING), ("next_position", ASCENDING)], name="next_position"),
        ]

    _library_settings = Settings

    @classmethod
    async def start(
        cls,
        title: str | None = None,
        metadata: Metadata | None = None,
        owner: tuple[str, Any] | Owner | None = None,
        context: Metadata | None = None,
        **fields: Any,
    ) -> Self:
        """Starts a conversation; ``Converse.start_conversation`` says with what.

        Raises:
            InvalidInputError: One of the arguments cannot be stored; nothing was written.
            StoreUnavailableError: MongoDB did not answer.
        """
        own = {
            "title": title,
            "owner": None if owner is None else check_owner(owner),
            "metadata": check_metadata(metadata),
            "context": check_metadata(context, "context"),
        }
        return await make(cls, Conversation, own, fields).insert()

    @classmethod
    def of_owner(
        cls, owner: tuple[str, Any] | Owner, limit: int | None = None
    ) -> AsyncIterator[Self]:
        """Yields the conversations of an owner; ``Converse.conversations`` says which first.

        Raises:
            InvalidInputError: The owner is not a pair of a type and an id.
            StoreUnavailableError: MongoDB did not answer.
        """
        return list_conversations(cls, cls.store(), owner, limit)

    async def create_message(
        self,
        role: MessageRole | str,
        content: str,
        metadata: Metadata | None = None,
        *,
        generation_id: str | None = None,
        **fields: Any,
    ) -> Message:
        """Adds a whole message and returns it.

        Args:
            role: Who speaks.
            content: The text, at most ``MAX_CONTENT_BYTES`` in UTF-8.
            metadata: What BSON can hold.
            generation_id: Your name for it, such as the id of a request. A second call with the
                same one in this conversation returns the message of the first.
            fields: Fields that a subclass of :class:`Message` adds.

        Raises:
            InvalidInputError: One of these cannot be stored; nothing was written.
            ConversationNotFoundError: The conversation is gone.
            StoreUnavailableError: MongoDB did not answer.
        """
        check_content(content)
        return await self._add(
            self._make(role, metadata, fields, content=content, generation_id=generation_id)
        )

    async def start_streaming_message(
        self,
        role: MessageRole | str,
        metadata: Metadata | None = None,
        *,
        generation_id: str | None = None,
        retention: Retention | None = None,
        **fields: Any,
    ) -> Message:
        """Adds a message that grows: write to it, or append by hand and complete or fail it.

        Args:
            role: Who speaks.
            metadata: What BSON can hold.
            generation_id: Your name for what is generated, such as the id of a job or a request. A
                second call with the same one in this conversation, also in another process at the
                same moment, returns the message of the first.
            retention: What becomes of the chunks after the end; the facade's by default.
            fields: Fields that a subclass of :class:`Message` adds.

        Raises what :meth:`create_message` does.
        """
        kept = self.store().options.retention if retention is None else check_retention(retention)
        message = self._make(
            role,
            metadata,
            fields,
            status=MessageStatus.STREAMING,
            retention=kept,
            generation_id=generation_id,
        )
        return await self._add(message)

    async def _add(self, message: Message) -> Message:
        """Stores a new message, or finds the one with the same ``generation_id``."""
        name = message.generation_id
        if name is None:
            return await message.insert()
        role = message.role
        added = await self._find_generated(name) or await message.insert()
        if added.role is not role:
            raise InvalidInputError(
                f"generation_id={name!r} belongs to a {added.role} message of this "
                f"conversation, not to one of the role {role}. Nothing was written."
            )
        return added

    async def _find_generated(self, generation_id: str) -> Message | None:
        check_content(generation_id)
        if not generation_id:
            raise InvalidInputError("generation_id is empty: pass a name, or None for none.")
        store, message_id = self.store(), generated_id(self._own_id(), generation_id)
        what = f"look for the generation {generation_id!r}"
        key = {"_id": message_id, "conversation_id": self._own_id()}
        stored = await store.call(store.reader.document, key, what=what)
        return cast(Message, parse_obj(self.message_model, stored)) if stored else None

    def _make(
        self,
        role: MessageRole | str,
        metadata: Metadata | None,
        fields: dict[str, Any],
        **own: Any,
    ) -> Message:
        own["role"] = check_choice(role, MessageRole, "role")
        own["metadata"] = check_metadata(metadata)
        own["conversation_id"] = self._own_id()
        return make(self.message_model, Message, own, fields)

    async def create_user_message(
        self, content: str, metadata: Metadata | None = None, **fields: Any
    ) -> Message:
        """Adds what a user said; see :meth:`create_message`."""
        return await self.create_message(MessageRole.USER, content, metadata, **fields)

    async def create_assistant_message(
        self, content: str, metadata: Metadata | None = None, **fields: Any
    ) -> Message:
        """Adds what the model answered; see :meth:`create_message`."""
        return await self.create_message(MessageRole.ASSISTANT, content, metadata, **fields)

    async def create_system_message(
        self, content: str, metadata: Metadata | None = None, **fields: Any
    ) -> Message:
        """Adds an instruction to the model; see :meth:`create_message`."""
        return await self.create_message(MessageRole.SYSTEM, content, metadata, **fields)

    async def create_tool_call_message(
        self, content: str, metadata: Metadata | None = None, **fields: Any
    ) -> Message:
        """Adds a call that the model asked for; see :meth:`create_message`."""
        return await self.create_message(MessageRole.TOOL_CALL, content, metadata, **fields)

    async def create_tool_result_message(
        self, content: str, metadata: Metadata | None = None, **fields: Any
    ) -> Message:
        """Adds what a tool answered; see :meth:`create_message`."""
        return await self.create_message(MessageRole.TOOL_RESULT, content, metadata, **fields)

    async def add_user_message(
        self, content: str, metadata: Metadata | None = None, **fields: Any
    ) -> Self:
        """Adds what a user said, and returns the conversation."""
        await self.create_user_message(content, metadata, **fields)
        return self

    async def add_assistant_message(
        self, content: str, metadata: Metadata | None = None, **fields: Any
    ) -> Self:
        """Adds what the model answered, and returns the conversation."""
        await self.create_assistant_message(content, metadata, **fields)
        return self

    async def add_system_message(
        self, content: str, metadata: Metadata | None = None, **fields: Any
    ) -> Self:
        """Adds an instruction to the model, and returns the conversation."""
        await self.create_system_message(content, metadata, **fields)
        return self

    async def add_tool_call_message(
        self, content: str, metadata: Metadata | None = None, **fields: Any
    ) -> Self:
        """Adds a call that the model asked for, and returns the conversation."""
        await self.create_tool_call_message(content, metadata, **fields)
        return self

    async def add_tool_result_message(
        self, content: str, metadata: Metadata | None = None, **fields: Any
    ) -> Self:
        """Adds what a tool answered, and returns the conversation."""
        await self.create_tool_result_message(content, metadata, **fields)
        return self

    async def start_streaming_assistant(
        self,
        metadata: Metadata | None = None,
        *,
        generation_id: str | None = None,
        retention: Retention | None = None,
        **fields: Any,
    ) -> Message:
        """Starts an answer of the model; see :meth:`start_streaming_message`."""
        return await self.start_streaming_message(
            MessageRole.ASSISTANT,
            metadata,
            generation_id=generation_id,
            retention=retention,
            **fields,
        )

    async def start_streaming_user(
        self,
        metadata: Metadata | None = None,
        *,
        generation_id: str | None = None,
        retention: Retention | None = None,
        **fields: Any,
    ) -> Message:
        """Starts what a user says, as speech recognition hears it, say."""
        return await self.start_streaming_message(
            MessageRole.USER,
            metadata,
            generation_id=generation_id,
            retention=retention,
            **fields,
        )

    def messages(
        self,
        after: int | None = None,
        limit: int | None = None,
        *,
        before: int | None = None,
        status: MessageStatus | str | None = None,
        newest_first: bool = False,
    ) -> MessageList:
        """The messages in order: ``await`` it for a list, or ``async for`` to take them by and by.

        Args:
            after: Start behind this position.
            limit: Give at most so many.
            before: End before this position.
            status: Only those in this state; those that stream are found without reading others.
            newest_first: In the opposite order.

        Raises:
            InvalidInputError: One of these makes no sense.
        """
        wanted = Range(
            start=check_sequence(after, "position"),
            stop=check_count(before, "before"),
            limit=check_count(limit, "limit"),
            status=None if status is None else check_choice(status, MessageStatus, "status"),
            newest_first=newest_first,
        )
        return MessageList(self.message_model, self.store().messages, self._own_id(), wanted)

    async def history(self, limit: int = 50, before: int | None = None) -> History:
        """A page of messages, the newest by default, and the cursor to watch on from there.

        What it shows and what ``watch_conversation(id, history.cursor)`` yields fit together
        without a gap or a repeat, in the middle of a streaming message too.

        Args:
            limit: At most so many messages, from 1 on.
            before: The ``before`` of the page that was shown last, for the page before it.

        Raises:
            InvalidInputError: One of these makes no sense.
            StoreUnavailableError: MongoDB did not answer.
        """
        check_count(limit, "limit", least=1)
        stop = check_count(before, "before")
        return await read_history(self.message_model, self._own_id(), limit, stop)

    async def get_message(self, message_id: IdLike) -> Message:
        """The message of this conversation with an id; like ``Converse.get_message``.

        Raises:
            InvalidIdError: The id is invalid.
            MessageNotFoundError: No message of this conversation has it.
            StoreUnavailableError: MongoDB did not answer.
        """
        key = {"_id": object_id(message_id, "message"), "conversation_id": self._own_id()}
        return await load_message(self.message_model, key)

    async def refresh(self) -> Self:
        """Loads the conversation again into this object; unsaved changes are lost.

        Raises:
            ConversationNotFoundError: The conversation does not exist.
        """
        store = self.store()
        stored = await store.call(
            store.conversations.find_one,
            {"_id": self._own_id()},
            what=f"read conversation {self.id}",
        )
        if stored is None:
            raise ConversationNotFoundError(self._own_id())
        self._load(stored)
        return self

    async def sync(self, *_args: Any, **_kwargs: Any) -> None:
        """The same as :meth:`refresh`."""
        await self.refresh()

    @wrap_with_actions(EventTypes.SAVE)
    async def save(self, *_args: Any, **_kwargs: Any) -> Self:
        """Saves the fields that were changed on this copy, and no others.

        A conversation without an id is inserted. Beanie's arguments are taken and have no effect.
        Keys of ``metadata`` and ``context`` with a dot or a leading ``$`` take a write of their
        own, before the rest.

        Raises:
            ProtectedFieldError: A field that only the library writes was changed.
            InvalidInputError: A changed field cannot be stored.
            ConversationNotFoundError: The conversation does not exist.
        """
        return await self._save(self.store().saves.save_conversation)

    async def insert(self, **_kwargs: Any) -> Self:
        """Stores a new conversation.

        Raises:
            InvalidInputError: The title, the metadata or the context cannot be stored.
            StoreUnavailableError: MongoDB did not answer.
        """
        if self.title is not None:
            check_content(self.title)
        self.metadata = check_metadata(self.metadata)
        self.context = check_metadata(self.context, "context")
        new_id = None
        if self.id is None:
            self.id = new_id = PydanticObjectId()
        store = self.store()
        self._check_encoding()
        insert = partial(super().insert, session=store.session)
        await store.positions.add_conversation(new_id, insert)
        self._remember()
        if store.handlers.wants(ConversationCreated):
            await store.handlers.publish(
                ConversationCreated(
                    conversation_id=self._own_id(),
                    title=self.title,
                    owner=self.owner.pair if self.owner else None,
                    metadata=self.metadata,
                    created_at=self.created_at,
                )
            )
        return self


Message.conversation_model = Conversation


DOCUMENT_MODELS: list[type[Document]] = [Conversation, Message, MessageChunkPage]
"""What an application that runs its own ``init_beanie`` passes to it."""
