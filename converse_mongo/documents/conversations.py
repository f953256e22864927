"""Conversations: ordered lists of messages."""

from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping
from datetime import timedelta
from functools import partial
from typing import Annotated, Any, ClassVar, Self, TypeVar, cast

from beanie import Document, PydanticObjectId
from beanie.odm.actions import EventTypes, wrap_with_actions
from beanie.odm.utils.parsing import parse_obj
from bson import ObjectId
from pydantic import Field
from pymongo import DESCENDING, IndexModel

from converse_mongo.documents.base import (
    GIVEN_ONCE,
    JsonableDict,
    Protected,
    StoredDocument,
    make,
)
from converse_mongo.documents.listings import (
    History,
    MessageList,
    Range,
    list_conversations,
    read_history,
)
from converse_mongo.documents.loading import load_message
from converse_mongo.documents.messages import Message
from converse_mongo.documents.pages import MessageChunkPage
from converse_mongo.documents.repeats import has_parts, has_text
from converse_mongo.documents.values import MessageValue
from converse_mongo.documents.views import ConversationView
from converse_mongo.domain.chunks import UtcDatetime
from converse_mongo.domain.composing import whole
from converse_mongo.domain.errors import (
    ConversationNotFoundError,
    ConverseError,
    GenerationConflictError,
    InvalidInputError,
)
from converse_mongo.domain.events import ConversationCreated
from converse_mongo.domain.generated_ids import generated_id
from converse_mongo.domain.headers import PARTS_FORMAT
from converse_mongo.domain.leases import Lease
from converse_mongo.domain.metadata import check_metadata
from converse_mongo.domain.owners import Owner, check_owner
from converse_mongo.domain.parts import Part
from converse_mongo.domain.queues import AnyQueue, job
from converse_mongo.domain.stored_values import LargeValue
from converse_mongo.domain.types import IdLike, MessageRole, MessageStatus, Metadata, Retention
from converse_mongo.domain.validation import (
    check_choice,
    check_content,
    check_count,
    check_int,
    check_retention,
    check_sequence,
    now,
    object_id,
)
from converse_mongo.domain.work import Job, Key
from converse_mongo.store import Store
from converse_mongo.store.answers import CONVERSATION_DELETED

C = TypeVar("C", bound="Conversation")


class LeftOut(Mapping[str, Any]):
    """The place of a ``context`` that was left in the database. Reading it raises."""

    def __getitem__(self, key: object) -> Any:
        raise ConverseError(
            "The context of this conversation is not loaded, as in authorize and in Limits.key: "
            "await conversation.refresh() loads it."
        )

    def __iter__(self) -> Iterator[str]:
        return cast(Iterator[str], self[None])

    def __len__(self) -> int:
        return cast(int, self[None])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LeftOut) or cast(bool, self[None])

    def copy(self) -> dict[str, Any]:
        """Raises, as all that reads it."""
        return cast(dict[str, Any], self[None])

    __hash__ = object.__hash__

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __repr__(self) -> str:
        return "<not loaded>"


class Conversation(StoredDocument, Document):
    """A chat session: an ordered list of messages.

    Attributes:
        title: Its name, for people.
        owner: Its owner: a pair of a type and an id, such as ``("user", "42")``.
        metadata: The metadata of the application.
        context: The context that the application gives to the model.
        next_position: The position of the next message.
        revision: The number of saves so far.
        created_at: When it was started; UTC, aware.
        updated_at: When a message was last added, or the conversation was last saved.
    """

    title: str | None = None
    owner: Owner | None = None
    metadata: JsonableDict = Field(default_factory=dict)
    context: JsonableDict = Field(default_factory=dict)
    next_position: Annotated[int, Protected("add messages with its methods")] = 0
    revision: Annotated[int, Protected("save() counts it")] = 0
    created_at: Annotated[UtcDatetime, GIVEN_ONCE] = Field(default_factory=now)
    updated_at: UtcDatetime = Field(default_factory=now)

    message_model: ClassVar[type[Message]] = Message

    _kind = "conversation"
    _view = ConversationView
    _missing_error = ConversationNotFoundError
    _untracked = frozenset({"revision_id", "updated_at"})
    _mappings = frozenset({"metadata", "context"})

    class Settings:
        """Settings for Beanie."""

        name = "conversations"
        # Saves encode it, and do not write it.
        bson_encoders: ClassVar[dict[Any, Any]] = {LeftOut: lambda _: {}}
        indexes: ClassVar[list[IndexModel]] = [
            IndexModel(
                ["owner.type", "owner.id", ("updated_at", DESCENDING), ("_id", DESCENDING)],
                name="owner_updated",
            ),
            # The existence and the new messages of watched conversations: one covered query.
            IndexModel(["_id", "next_position"], name="next_position"),
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
        """Starts a conversation; see ``Converse.start_conversation``.

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
        """Yields the conversations of an owner; see ``Converse.conversations``.

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
        parts: Iterable[Part] = (),
        **fields: Any,
    ) -> Message:
        """Adds a whole message and returns it.

        Args:
            role: The speaker.
            content: The text, at most ``MAX_CONTENT_BYTES`` in UTF-8.
            metadata: Values that BSON can hold.
            generation_id: Your id for it, such as that of a request. A second call with the same id
                in this conversation returns the message of the first.
            parts: The parts behind the content, such as files; with the text they take at most
                ``MAX_CONTENT_BYTES``, not counting large values, which are stored apart.
            fields: Fields that a subclass of :class:`Message` adds.

        Raises:
            GenerationConflictError: A message with another role, another text or other parts has
                the ``generation_id``.
            InvalidInputError: One of these cannot be stored; nothing was written.
            ConversationNotFoundError: The conversation was deleted.
            StoreUnavailableError: MongoDB did not answer.
        """
        check_content(content)
        own: dict[str, Any] = {"content": content, "generation_id": generation_id}
        values: Mapping[str, LargeValue] | None = None
        if listed := list(parts):
            text, records, values = whole(content, listed)
            own |= {"content": text, "parts": records, "format": PARTS_FORMAT}
        message = self._make(role, metadata, fields, **own)
        message._large_values = values  # noqa: SLF001 - between the two documents
        return await self._add(message)

    async def start_streaming_message(
        self,
        role: MessageRole | str,
        metadata: Metadata | None = None,
        *,
        generation_id: str | None = None,
        retention: Retention | None = None,
        queue: AnyQueue | None = None,
        key: Key | None = None,
        priority: int | None = None,
        delay: float | timedelta | None = None,
        max_attempts: int | None = None,
        **fields: Any,
    ) -> Message:
        """Adds a message that grows: write to it, or append by hand and complete or fail it.

        With a ``queue``, a worker generates it: see ``Converse.worker``. Then nobody else may write
        to it, and it is seen through to its end, whatever process dies.

        Args:
            role: The speaker.
            metadata: Values that BSON can hold.
            generation_id: Your id for the generation, such as that of a job or a request. A second
                call with the same id in this conversation, also in another process at the same
                moment, returns the message of the first.
            retention: The retention of the chunks; that of the facade by default.
            queue: The queue in which it waits for a worker, or the name of one; ``None`` to write
                to it here.
            key: Who it is for, such as ``("user", "42")``: of a queue with ``per_key``, so many
                messages with the same key have a worker at a time.
            priority: Messages with the highest one come first, then those that wait longest. By
                default that of the queue.
            delay: Seconds, or a ``timedelta``, until a worker may take it.
            max_attempts: The attempts until it fails: an error that a worker retries costs one, and
                so does a worker that dies. By default those of the queue.
            fields: Fields that a subclass of :class:`Message` adds.

        Raises the errors of :meth:`create_message`.
        """
        work = job(queue, key=key, priority=priority, delay=delay, max_attempts=max_attempts)
        return await self._start(role, metadata, generation_id, retention, fields, work)

    async def _start(
        self,
        role: MessageRole | str,
        metadata: Metadata | None,
        generation_id: str | None,
        retention: Retention | None,
        fields: dict[str, Any],
        job: Job | None = None,
        holder: ObjectId | None = None,
    ) -> Message:
        """Adds a message that grows.

        With a ``job``, it is queued for workers; with a ``holder`` as well, it is claimed.
        """
        store = self.store()
        kept = store.options.retention if retention is None else check_retention(retention)
        own: dict[str, Any] = {}
        if job is not None:
            work = await store.jobs.work_of(job)
            own["work"] = work
            if holder is not None:
                own["work"] = work.claimed()
                now = await store.leases.clock.now()
                own["lease"] = Lease.born(holder, now, store.options.lease)
        message = self._make(
            role,
            metadata,
            fields,
            status=MessageStatus.STREAMING,
            retention=kept,
            generation_id=generation_id,
            **own,
        )
        message = await self._add(message)
        if kept is not None:
            store.recovery.tend()
        return message

    async def _add(self, message: Message) -> Message:
        """Stores a new message, or finds the one with the same ``generation_id``."""
        name = message.generation_id
        if name is None:
            return await message.insert()
        role, content, whole = message.role, message.content, not message.is_streaming
        records = message.part_records
        found = await self._find_generated(name)
        if found is None:
            found = await message.insert()
            if not found._was_stored:  # noqa: SLF001 - between the two documents
                return found
        else:
            await found._ask()  # noqa: SLF001 - who inserted it may have died before
        if found.role is not role:
            raise GenerationConflictError(name, found.id, f"the role {found.role}, not {role}")
        if whole and not await has_text(found, content):
            raise GenerationConflictError(name, found.id, "another text")
        if whole and not has_parts(found, records):
            raise GenerationConflictError(name, found.id, "other parts")
        return found

    async def _find_generated(self, generation_id: str) -> Message | None:
        check_content(generation_id)
        if not generation_id:
            raise InvalidInputError("generation_id is empty: pass an id, or None.")
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
        """Adds a message of a user; see :meth:`create_message`."""
        return await self.create_message(MessageRole.USER, content, metadata, **fields)

    async def create_assistant_message(
        self, content: str, metadata: Metadata | None = None, **fields: Any
    ) -> Message:
        """Adds an answer of the model; see :meth:`create_message`."""
        return await self.create_message(MessageRole.ASSISTANT, content, metadata, **fields)

    async def create_system_message(
        self, content: str, metadata: Metadata | None = None, **fields: Any
    ) -> Message:
        """Adds an instruction to the model; see :meth:`create_message`."""
        return await self.create_message(MessageRole.SYSTEM, content, metadata, **fields)

    async def create_tool_call_message(
        self, content: str, metadata: Metadata | None = None, **fields: Any
    ) -> Message:
        """Adds a tool call of the model; see :meth:`create_message`."""
        return await self.create_message(MessageRole.TOOL_CALL, content, metadata, **fields)

    async def create_tool_result_message(
        self, content: str, metadata: Metadata | None = None, **fields: Any
    ) -> Message:
        """Adds the result of a tool; see :meth:`create_message`."""
        return await self.create_message(MessageRole.TOOL_RESULT, content, metadata, **fields)

    async def add_user_message(
        self, content: str, metadata: Metadata | None = None, **fields: Any
    ) -> Self:
        """Adds a message of a user, and returns the conversation."""
        await self.create_user_message(content, metadata, **fields)
        return self

    async def add_assistant_message(
        self, content: str, metadata: Metadata | None = None, **fields: Any
    ) -> Self:
        """Adds an answer of the model, and returns the conversation."""
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
        """Adds a tool call of the model, and returns the conversation."""
        await self.create_tool_call_message(content, metadata, **fields)
        return self

    async def add_tool_result_message(
        self, content: str, metadata: Metadata | None = None, **fields: Any
    ) -> Self:
        """Adds the result of a tool, and returns the conversation."""
        await self.create_tool_result_message(content, metadata, **fields)
        return self

    async def start_streaming_assistant(
        self,
        metadata: Metadata | None = None,
        *,
        generation_id: str | None = None,
        retention: Retention | None = None,
        queue: AnyQueue | None = None,
        key: Key | None = None,
        priority: int | None = None,
        delay: float | timedelta | None = None,
        max_attempts: int | None = None,
        **fields: Any,
    ) -> Message:
        """Starts an answer of the model; see :meth:`start_streaming_message`."""
        return await self.start_streaming_message(
            MessageRole.ASSISTANT,
            metadata,
            generation_id=generation_id,
            retention=retention,
            queue=queue,
            key=key,
            priority=priority,
            delay=delay,
            max_attempts=max_attempts,
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
        """Starts a message of a user, for example from speech recognition."""
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
        """Lists the messages in order: ``await`` it, or use ``async for`` to read in batches.

        Args:
            after: Start behind this position.
            limit: The most messages.
            before: End before this position.
            status: Only those in this state; streaming ones are found without reading others.
            newest_first: True for the opposite order.

        Raises:
            InvalidInputError: An argument is invalid.
        """
        wanted = Range(
            start=check_sequence(after, "position"),
            stop=check_count(before, "before"),
            limit=check_count(limit, "limit"),
            status=None if status is None else check_choice(status, MessageStatus, "status"),
            newest_first=newest_first,
        )
        return MessageList(self.message_model, self.store().messages, self._own_id(), wanted)

    async def history(
        self,
        limit: int = 50,
        before: int | None = None,
        *,
        roles: Collection[MessageRole | str] | None = None,
        max_bytes: int | None = None,
    ) -> History:
        """Returns a page of messages, the newest by default, and the cursor to watch from there.

        ``watch_conversation(id, history.cursor)`` continues behind the page without a gap or a
        repeat, also in the middle of a streaming message.

        Args:
            limit: The most messages, at least 1.
            before: The ``before`` of a page, to get the page before it.
            roles: Only messages of these roles; the cursor is that of all messages all the same.
            max_bytes: The most bytes of text and metadata at which the page ends before it has
                ``limit`` messages. It has at least one message, of any size.

        Raises:
            InvalidInputError: An argument is invalid.
            StoreUnavailableError: MongoDB did not answer.
        """
        check_int(limit, "limit", 1)
        stop = check_count(before, "before")
        wanted = None
        if roles is not None:
            wanted = frozenset(check_choice(role, MessageRole, "role") for role in roles)
        if max_bytes is not None:
            check_int(max_bytes, "max_bytes", 1)
        page = Range(stop=stop, limit=limit, roles=wanted, newest_first=True, max_bytes=max_bytes)
        return await read_history(self.message_model, self._own_id(), page)

    async def get_message(self, message_id: IdLike) -> Message:
        """Returns a message of this conversation; like ``Converse.get_message``.

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
        self._load(await _read_stored(self.store(), self._own_id()))
        return self

    async def sync(self, *_args: Any, **_kwargs: Any) -> None:
        """The same as :meth:`refresh`."""
        await self.refresh()

    @wrap_with_actions(EventTypes.SAVE)
    async def save(self, *_args: Any, **_kwargs: Any) -> Self:
        """Saves the fields that were changed on this copy, and no others.

        A conversation without an id is inserted. Beanie's arguments are accepted and ignored. Keys
        of ``metadata`` and ``context`` with a dot or a leading ``$`` need a write of their own,
        before the rest.

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

    async def delete(self, *args: Any, **kwargs: Any) -> Any:
        """Deletes the conversation, as Beanie does, and stops what is being written in it.

        Its messages stay; delete them first to remove them as well.

        Raises:
            StoreUnavailableError: MongoDB did not answer; delete it again.
            ConverseClosedError: The facade was closed.
        """
        deleted = await super().delete(*args, **kwargs)
        await self.store().answers.stop_all(self._own_id(), CONVERSATION_DELETED)
        return deleted


Message.conversation_model = Conversation


async def load_conversation(model: type[C], conversation_id: ObjectId) -> C:
    """Loads a conversation.

    Raises:
        ConversationNotFoundError: The conversation does not exist.
        StoreUnavailableError: MongoDB did not answer.
    """
    return cast(C, parse_obj(model, await _read_stored(model.store(), conversation_id)))


async def load_without_context(model: type[C], conversation_id: ObjectId) -> C:
    """Loads a conversation; reading its ``context`` raises.

    Raises:
        ConversationNotFoundError: The conversation does not exist.
        StoreUnavailableError: MongoDB did not answer.
    """
    if model.model_fields["context"].is_required():  # of a subclass
        return await load_conversation(model, conversation_id)
    stored = await _read_stored(model.store(), conversation_id, {"context": 0})
    loaded = cast(C, parse_obj(model, stored))
    loaded.__dict__["context"] = LeftOut()
    loaded._remember()  # noqa: SLF001 - it is stored as it is
    return loaded


async def load_context(conversation: Conversation) -> None:
    """Loads a conversation again if its ``context`` was left out.

    Raises:
        ConversationNotFoundError: The conversation does not exist.
        StoreUnavailableError: MongoDB did not answer.
    """
    if isinstance(conversation.context, LeftOut):
        await conversation.refresh()


async def _read_stored(
    store: Store, conversation_id: ObjectId, projection: dict[str, int] | None = None
) -> dict[str, Any]:
    read, key = store.conversations.find_one, {"_id": conversation_id}
    stored: dict[str, Any] | None = await store.call(
        read, key, projection, what=f"read conversation {conversation_id}"
    )
    if stored is None:
        raise ConversationNotFoundError(conversation_id)
    return stored


DOCUMENT_MODELS: list[type[Document]] = [Conversation, Message, MessageChunkPage, MessageValue]
"""The document classes, for an application that runs its own ``init_beanie``."""
