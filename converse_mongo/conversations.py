"""Conversations: ordered lists of messages."""

from collections.abc import AsyncIterator, Generator
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

from beanie import Document, PydanticObjectId
from beanie.odm.actions import EventTypes, wrap_with_actions
from beanie.odm.utils.parsing import parse_obj
from bson import ObjectId
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pymongo import ASCENDING, DESCENDING, IndexModel

from converse_mongo import _updates
from converse_mongo._document import JsonableDict, StoredDocument, UtcDatetime, make
from converse_mongo._validation import (
    check_content,
    check_count,
    check_metadata,
    check_sequence,
    now,
)
from converse_mongo.chunks import ChunkLog
from converse_mongo.errors import ConversationNotFoundError, InvalidInputError
from converse_mongo.events import ConversationCreated
from converse_mongo.messages import Message
from converse_mongo.types import MessageRole, MessageStatus, Metadata

__all__ = ["DOCUMENT_MODELS", "Conversation", "MessageList", "Owner"]

MESSAGES_PER_READ = 100
CONVERSATIONS_PER_READ = 100


class Owner(BaseModel):
    """Who a conversation belongs to: a kind of thing in the application, and its id there."""

    model_config = ConfigDict(frozen=True)

    type: str
    id: str

    @model_validator(mode="before")
    @classmethod
    def _from_pair(cls, value: Any) -> Any:
        if isinstance(value, tuple | list) and len(value) == 2:
            value = {"type": value[0], "id": value[1]}
        if isinstance(value, dict) and isinstance(value.get("id"), int | ObjectId):
            value = {**value, "id": str(value["id"])}
        if isinstance(value, dict):
            for part in value.values():
                check_content(part)
        return value

    @property
    def pair(self) -> tuple[str, str]:
        """The type and the id."""
        return self.type, self.id


class Conversation(StoredDocument, Document):
    """A chat session: an ordered list of messages, and what the application says of it.

    Attributes:
        title: Its name, for people.
        owner: Who it belongs to: a pair of a type and an id, such as ``("user", "42")``.
        metadata: What the application says of it.
        context: What the application wants to give to the model.
        next_position: The position of the message that comes next.
        created_at: When it was started; UTC, aware.
        updated_at: When a message was last added to it, or it was saved itself.
    """

    if TYPE_CHECKING:  # what the library gives out is stored, and so has an id
        id: PydanticObjectId = Field(default=None)  # type: ignore[assignment]

    title: str | None = None
    owner: Owner | None = None
    metadata: JsonableDict = Field(default_factory=dict)
    context: JsonableDict = Field(default_factory=dict)
    next_position: int = 0
    created_at: UtcDatetime = Field(default_factory=now)
    updated_at: UtcDatetime = Field(default_factory=now)

    message_model: ClassVar[type[Message]] = Message

    _protected: ClassVar[dict[str, str]] = {
        "id": "MongoDB ids never change",
        "next_position": "add messages with its methods",
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
        ]

    _library_settings = Settings

    @classmethod
    def _models(cls) -> tuple[type[Document], type[Document]]:
        return cls.message_model, cls

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
            StoreUnavailableError: MongoDB gave no answer.
        """
        own = {
            "title": title,
            "owner": owner,
            "metadata": check_metadata(metadata),
            "context": check_metadata(context, "context"),
        }
        return await make(cls, Conversation, own, fields).insert()

    @classmethod
    async def of_owner(
        cls, owner: tuple[str, Any] | Owner, limit: int | None = None
    ) -> AsyncIterator[Self]:
        """Yields the conversations of an owner; ``Converse.conversations`` says which first.

        Raises:
            InvalidInputError: The owner is no pair of a type and an id.
            StoreUnavailableError: MongoDB gave no answer.
        """
        try:
            whose = Owner.model_validate(owner)
        except ValidationError as error:
            raise InvalidInputError(
                f"{owner!r} is no owner: pass a type and an id, such as ('user', '42')."
            ) from error
        store = cls.store()

        async def read(match: dict[str, Any], size: int) -> list[dict[str, Any]]:
            order = [("updated_at", DESCENDING), ("_id", DESCENDING)]
            found: list[dict[str, Any]] = (
                await store.conversations.find(match).sort(order).limit(size).to_list(size)
            )
            return found

        match: dict[str, Any] = {"owner.type": whose.type, "owner.id": whose.id}
        left = limit
        while left is None or left > 0:
            size = CONVERSATIONS_PER_READ if left is None else min(left, CONVERSATIONS_PER_READ)
            page = await store.call(read, match, size, what=f"list the conversations of {whose}")
            for stored in page:
                yield cast(Self, parse_obj(cls, stored))
            if len(page) < size:
                return
            left = None if left is None else left - size
            last = page[-1]
            match["$or"] = [
                {"updated_at": {"$lt": last["updated_at"]}},
                {"updated_at": last["updated_at"], "_id": {"$lt": last["_id"]}},
            ]

    async def create_message(
        self,
        role: MessageRole | str,
        content: str,
        metadata: Metadata | None = None,
        **fields: Any,
    ) -> Message:
        """Adds a whole message and returns it.

        Args:
            role: Who speaks.
            content: The text, at most ``MAX_CONTENT_BYTES`` in UTF-8.
            metadata: What BSON can hold.
            fields: Fields that a subclass of :class:`Message` adds.

        Raises:
            InvalidInputError: One of these cannot be stored; nothing was written.
            ConversationNotFoundError: The conversation is gone.
            StoreUnavailableError: MongoDB gave no answer.
        """
        check_content(content)
        return await self._create(role, metadata, fields, content=content)

    async def start_streaming_message(
        self, role: MessageRole | str, metadata: Metadata | None = None, **fields: Any
    ) -> Message:
        """Adds a message that grows: append to it, then complete or fail it.

        Takes and raises what :meth:`create_message` does.
        """
        return await self._create(role, metadata, fields, status=MessageStatus.STREAMING)

    async def _create(
        self,
        role: MessageRole | str,
        metadata: Metadata | None,
        fields: dict[str, Any],
        **own: Any,
    ) -> Message:
        model = self.message_model
        try:
            own["role"] = MessageRole(role)
        except ValueError as error:
            known = ", ".join(MessageRole)
            raise InvalidInputError(
                f"{role!r} is no role: use one of {known}. Nothing was written."
            ) from error
        own["metadata"] = check_metadata(metadata)
        own["conversation_id"] = self._own_id()
        return await make(model, Message, own, fields).insert()

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
        self, metadata: Metadata | None = None, **fields: Any
    ) -> Message:
        """Starts an answer of the model; see :meth:`start_streaming_message`."""
        return await self.start_streaming_message(MessageRole.ASSISTANT, metadata, **fields)

    async def start_streaming_user(
        self, metadata: Metadata | None = None, **fields: Any
    ) -> Message:
        """Starts what a user says, as speech recognition hears it, say."""
        return await self.start_streaming_message(MessageRole.USER, metadata, **fields)

    def messages(self, after: int | None = None, limit: int | None = None) -> "MessageList":
        """The messages in order: ``await`` it for a list, or ``async for`` to take them by and by.

        Args:
            after: Start behind this position.
            limit: Give at most so many.
        """
        return MessageList(self, check_sequence(after, "position"), check_count(limit, "limit"))

    async def refresh(self) -> Self:
        """Loads the conversation again into this object; unsaved changes are lost.

        Raises:
            ConversationNotFoundError: There is no such conversation.
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

    @wrap_with_actions(EventTypes.SAVE)
    async def save(self, *_args: Any, **_kwargs: Any) -> Self:
        """Saves the fields that were changed on this copy, and no others.

        A conversation without an id is inserted. Beanie's arguments are taken and have no effect.

        Raises:
            ProtectedFieldError: A field that only the library writes was changed.
            InvalidInputError: A changed field cannot be stored.
            ConversationNotFoundError: There is no such conversation.
        """
        if self.id is None:
            return await self.insert()
        changed, removed = self._changes()
        if changed or removed:
            saved_at = now()
            await self.store().save_conversation(self.id, _updates.save(changed, removed, saved_at))
            self.updated_at = saved_at
            self._remember()
        return self

    async def insert(self, **_kwargs: Any) -> Self:
        """Stores a new conversation.

        Raises:
            InvalidInputError: The title, the metadata or the context cannot be stored.
            StoreUnavailableError: MongoDB gave no answer.
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
        await store.add_conversation(new_id, super().insert)
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

    def _own_id(self) -> ObjectId:
        if self.id is None:
            raise InvalidInputError("This conversation is not stored yet: await insert() first.")
        return self.id


Message.conversation_model = Conversation


DOCUMENT_MODELS: list[type[Document]] = [Conversation, Message]
"""What an application that runs its own ``init_beanie`` passes to it."""


class MessageList:
    """The messages of a conversation in order; awaited it is a list, iterated it reads by and by.

    The chunks of ended messages stay in the database; a message that streams comes with its chunks
    and its text so far.
    """

    def __init__(self, conversation: Conversation, start: int, limit: int | None) -> None:
        self._conversation = conversation
        self._start = start
        self._limit = limit

    def __await__(self) -> Generator[Any, None, list[Message]]:
        return self._all().__await__()

    async def _all(self) -> list[Message]:
        return [message async for message in self]

    async def __aiter__(self) -> AsyncIterator[Message]:
        start, left = self._start, self._limit
        while left is None or left > 0:
            size = MESSAGES_PER_READ if left is None else min(left, MESSAGES_PER_READ)
            page = await self._read(start, size)
            for message in page:
                yield message
            if len(page) < size:
                return
            left = None if left is None else left - size
            start = (page[-1].position or 0) + 1

    async def _read(self, start: int, size: int) -> list[Message]:
        model = self._conversation.message_model
        store = self._conversation.store()
        conversation_id = self._conversation.id
        match = {"conversation_id": conversation_id, "position": {"$gte": start}}

        async def read(match: dict[str, Any], projection: Any) -> list[dict[str, Any]]:
            cursor = store.messages.find(match, projection).sort([("position", ASCENDING)])
            found: list[dict[str, Any]] = await cursor.limit(size).to_list(size)
            return found

        what = f"list the messages of conversation {conversation_id}"
        page = await store.call(read, match, {"chunks": 0}, what=what)
        # Only the chunks hold the text of a message that streams, or ended a moment ago.
        textless = [
            stored["_id"]
            for stored in page
            if stored["status"] == MessageStatus.STREAMING.value
            or (stored.get("next_sequence") and not stored.get("content"))
        ]
        whole: dict[ObjectId, dict[str, Any]] = {}
        if textless:
            them = {"_id": {"$in": textless}, "conversation_id": conversation_id}
            found = await store.call(read, them, None, what=what)
            whole = {stored["_id"]: stored for stored in found}
        return [_load_listed(model, whole.get(stored["_id"], stored)) for stored in page]


def _load_listed(model: type[Message], stored: dict[str, Any]) -> Message:
    if "chunks" not in stored and stored.get("next_sequence"):
        stored["chunks"] = ChunkLog.not_loaded()
    return cast(Message, parse_obj(model, stored))
