"""The facade: a table of methods, each of which hands over to the part that does it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from contextvars import Context
from functools import partial
from typing import Any, Literal, Self, TypeVar, overload

from bson import ObjectId

from converse_mongo.documents.conversations import Conversation, load_conversation
from converse_mongo.documents.loading import load_message
from converse_mongo.documents.messages import Message
from converse_mongo.documents.pages import MessageChunkPage
from converse_mongo.documents.responding import Respond, check_respond, load_attempt
from converse_mongo.documents.values import MessageValue
from converse_mongo.domain.cursors import NOW, ConversationCursor
from converse_mongo.domain.errors import (
    ConverseClosedError,
    InvalidInputError,
)
from converse_mongo.domain.events import (
    ConversationEvent,
    Event,
    FinalEvent,
    MessageEvent,
    MessageSnapshot,
)
from converse_mongo.domain.open_calls import ToolOutput, answer_of
from converse_mongo.domain.owners import Owner, check_owner
from converse_mongo.domain.parts import Approval
from converse_mongo.domain.queues import AnyQueue, names_of
from converse_mongo.domain.retries import RetryPolicy
from converse_mongo.domain.stored_values import StoredValue, check_stored
from converse_mongo.domain.telemetry import Telemetry
from converse_mongo.domain.types import (
    DEFAULT_RETENTION,
    IdLike,
    MessageStatus,
    Metadata,
    Retention,
    WatchMode,
)
from converse_mongo.domain.validation import (
    check_count,
    check_reason,
    check_seconds,
    check_sequence,
    object_id,
)
from converse_mongo.domain.work import PendingCall
from converse_mongo.driver import clients
from converse_mongo.opening import Parts, Setup
from converse_mongo.store import Transaction
from converse_mongo.store.handlers import Handler
from converse_mongo.store.queues import QueueStatistics
from converse_mongo.watching.hub import Hub, WatchStatistics
from converse_mongo.watching.kinds import KindFilter
from converse_mongo.watching.owner_watcher import OwnerWatcher
from converse_mongo.watching.watcher import Watcher
from converse_mongo.working.worker import Worker, WorkerOptions

E = TypeVar("E", bound=Event)

DEFAULT_RETRIES = RetryPolicy()


class Converse:
    """Conversations in one MongoDB database: stored while they stream, and watched live.

    An open one belongs to the event loop in which it was opened: use one per loop and process.

    Several live side by side, on one database or on many; each has its own client (unless you pass
    one), its own change stream and its own document classes.

    Args:
        client: A MongoDB URI, or your own client, which stays open: of Motor with Beanie 1, or
            PyMongo's ``AsyncMongoClient`` with Beanie 2.
        database: The name of the database; by default that of the URI.
        message_model: A subclass of :class:`Message` with your own fields.
        conversation_model: A subclass of :class:`Conversation` with your own fields.
        create_indexes: ``False`` if :meth:`open` shall not build the indexes; see
            :meth:`create_indexes`.
        change_streams: ``False`` to poll even if the server supports change streams.
        poll_interval: Seconds from one poll of the watched messages to the next, without a change
            stream, or while it is lost.
        check_interval: The same with a change stream, which may skip events silently. While it
            reports all news, the interval grows up to four times that, but not behind a ``mongos``.
        stream_from: The member of a replica set to read the change stream from: ``"primary"``, or
            ``"secondary"``, which relieves the primary and may be a little later.
        retry_timeout: Seconds for which a call is retried while MongoDB cannot be reached.
        lease: Seconds without a heartbeat after which the writer of a message is presumed dead, and
            the next process that reads the message ends it. Writers send three heartbeats in that
            time.
        idle_timeout: The same for a message that streams without a writer, from each append on, and
            at first from when it is read; ``None`` for never.
        retention: When the chunks of messages started here are merged to save space: a
            ``timedelta`` after the end, by default a day; ``"compact"``, at the end; or ``"keep"``,
            never. Text, sequences and metadata stay. What is due is merged in the background while
            such messages are started.
        sweep_interval: Seconds between two sweeps in the background, each of which ends orphans and
            merges chunks that are due; ``None`` for no sweeps. One process that sweeps is enough,
            more do no harm.
        client_options: More options for the client of a URI. It has a ``socketTimeoutMS`` of 30
            seconds by default; set one for your own client.
        telemetry: Where metrics and spans go: a :class:`converse_mongo.telemetry.OpenTelemetry`, of
            the extra ``otel``. ``None`` for nowhere.

    Raises:
        ConfigurationError: An option is invalid.
    """

    def __init__(
        self,
        client: "str | clients.Client",
        database: str | None = None,
        *,
        message_model: type[Message] = Message,
        conversation_model: type[Conversation] = Conversation,
        create_indexes: bool = True,
        change_streams: bool = True,
        poll_interval: float = 0.25,
        check_interval: float = 2.0,
        stream_from: Literal["primary", "secondary"] = "primary",
        retry_timeout: float = 30.0,
        lease: float = 30.0,
        idle_timeout: float | None = 600.0,
        retention: Retention = DEFAULT_RETENTION,
        sweep_interval: float | None = None,
        client_options: Mapping[str, Any] | None = None,
        telemetry: Telemetry | None = None,
    ) -> None:
        self._setup = Setup(
            client,
            database,
            (message_model, conversation_model),
            create_indexes=create_indexes,
            change_streams=change_streams,
            poll_interval=poll_interval,
            check_interval=check_interval,
            stream_from=stream_from,
            retry_timeout=retry_timeout,
            lease=lease,
            idle_timeout=idle_timeout,
            retention=retention,
            sweep_interval=sweep_interval,
            client_options=client_options,
            telemetry=telemetry,
        )
        self._parts: Parts | None = None
        self._opening: tuple[asyncio.AbstractEventLoop, asyncio.Lock] | None = None
        self._closing: asyncio.Task[None] | None = None

    # Lifetime

    async def open(self) -> Self:
        """Connects, binds the documents and builds the indexes; does nothing if it is open.

        Raises:
            ConfigurationError: The client does not match the installed Beanie, no database was
                named, or it is open in another event loop or process.
            StoreUnavailableError: MongoDB cannot be reached, or an index cannot be built now.
            PyMongoError: MongoDB refused an index, or the credentials.
        """
        loop = asyncio.get_running_loop()
        if self._parts is not None:
            self._parts.check_home()
        if self._opening is None or self._opening[0] is not loop:
            # A lock belongs to the loop of its first waiter.
            self._opening = loop, asyncio.Lock()
        async with self._opening[1]:
            if self._parts is None:
                self._parts = await self._setup.open()
        return self

    async def aclose(self, timeout: float = 10.0) -> None:  # noqa: ASYNC109 - writers then give up
        """Ends all watchers with :class:`ConverseClosedError`, and closes everything it opened.

        A client that was passed in stays open. A second call waits for the first. It can be opened
        again. If it was left open in an event loop that is closed, or before a fork, this only
        releases it.

        Args:
            timeout: Seconds for running writers to store their text. A writer that is not done by
                then, since MongoDB does not answer, gives up: its block ends with a
                :class:`WriterFailedError`, whose ``text`` may not be stored. The message ends once
                its lease has expired. The rest of the closing takes at most some seconds.

        Raises:
            InvalidInputError: The timeout is not a number of seconds.
            ConfigurationError: It is open in another event loop that runs: close it there.
        """
        check_seconds(timeout, "timeout")
        loop, parts = asyncio.get_running_loop(), self._parts
        if parts is not None and parts.is_lost:
            self._parts = self._closing = None
            await parts.abandon()
            return
        if parts is not None:
            parts.check_home()
            self._parts = None
            self._closing = asyncio.create_task(
                parts.aclose(timeout), name="converse_mongo-close", context=Context()
            )
        if self._closing is not None and self._closing.get_loop() is loop:
            # A cancellation leaves no client open, and a second call waits for the first.
            await asyncio.shield(self._closing)

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(self, *_error: object) -> None:
        await self.aclose()

    @property
    def closed(self) -> bool:
        """True before it is opened, and after it is closed."""
        return self._parts is None

    @property
    def watch_mode(self) -> WatchMode:
        """The current source of news for watchers: a ``"change_stream"``, or ``"polling"``.

        On a replica set or sharded cluster it is ``"polling"`` while the change stream is lost or
        refused.
        """
        return self._open_parts.hub.mode

    @property
    def database_name(self) -> str:
        """The name of the database."""
        return str(self._open_parts.store.messages.database.name)

    @property
    def message_model(self) -> type[Message]:
        """The class of messages that is bound to this database, for your own queries."""
        return self._open_parts.message

    @property
    def conversation_model(self) -> type[Conversation]:
        """The class of conversations that is bound to this database."""
        return self._open_parts.conversation

    @property
    def page_model(self) -> type[MessageChunkPage]:
        """The class of pages that is bound to this database; read-only."""
        return self._open_parts.page

    @property
    def value_model(self) -> type[MessageValue]:
        """The class of large values that is bound to this database; read-only."""
        return self._open_parts.value

    def statistics(self) -> WatchStatistics:
        """Returns the numbers of watchers, and of reads and hints for them."""
        return self._open_parts.hub.statistics()

    async def create_indexes(self) -> None:
        """Builds the indexes that are missing; :meth:`open` does so by default.

        It waits until they are built, without a time limit: that takes long with many messages. A
        build continues if this is cancelled, and the next call waits for it.

        The unique index on (conversation_id, position) orders the messages of several processes: do
        not go without it.

        Raises:
            PyMongoError: MongoDB refused.
        """
        await self._setup.build_indexes(self._open_parts.models)

    # Conversations and messages

    async def start_conversation(
        self,
        title: str | None = None,
        metadata: Metadata | None = None,
        owner: "tuple[str, Any] | Owner | None" = None,
        context: Metadata | None = None,
        **fields: Any,
    ) -> Conversation:
        """Starts a conversation.

        Args:
            title: Its name, for people.
            metadata: Values that BSON can hold.
            owner: Its owner: a type and an id, such as ``("user", "42")``.
            context: The context for the model: values that BSON can hold.
            fields: Fields that your ``conversation_model`` adds.

        Raises:
            InvalidInputError: An argument cannot be stored; nothing was written.
            StoreUnavailableError: MongoDB did not answer.
        """
        model = self._open_parts.conversation
        return await model.start(
            title=title, metadata=metadata, owner=owner, context=context, **fields
        )

    async def get_conversation(self, conversation_id: IdLike) -> Conversation:
        """Loads a conversation.

        Raises:
            InvalidIdError: The id is invalid.
            ConversationNotFoundError: No conversation has it.
            StoreUnavailableError: MongoDB did not answer.
        """
        parts, key = self._open_parts, object_id(conversation_id, "conversation")
        return await load_conversation(parts.conversation, key)

    async def get_message(self, message_id: IdLike) -> Message:
        """Loads a message with all its chunks; while it streams, with the text so far.

        Raises:
            InvalidIdError: The id is invalid.
            MessageNotFoundError: No message has it.
            StoreUnavailableError: MongoDB did not answer.
        """
        parts, key = self._open_parts, object_id(message_id, "message")
        return await load_message(parts.message, {"_id": key})

    async def load_value(self, message_id: IdLike, value: StoredValue) -> Any:
        """Loads a large value of a part of a message: ``Message.load_value``.

        Raises:
            InvalidInputError: The id is invalid, or it is not a :class:`StoredValue`.
            MessageNotFoundError: No message has the id.
            ValueNotFoundError: The value was replaced, redacted or deleted since.
            StoreUnavailableError: MongoDB did not answer.
        """
        values, key = self._open_parts.store.large_values, object_id(message_id, "message")
        return await values.load_of(key, check_stored(value))

    async def request_stop(self, message_id: IdLike, reason: str | None = None) -> MessageStatus:
        """Asks the writer of a message, in whatever process, to stop: ``Message.request_stop``.

        Raises:
            InvalidInputError: The id is invalid, or the reason cannot be stored.
            MessageNotFoundError: No message has it.
            StoreUnavailableError: MongoDB did not answer.
        """
        leases, key = self._open_parts.store.leases, object_id(message_id, "message")
        return (await leases.request_stop({"_id": key}, check_reason(reason))).status

    async def answer_tool_calls(
        self,
        message_id: IdLike,
        answers: Iterable[Approval | ToolOutput],
        *,
        append_id: ObjectId | None = None,
    ) -> list[PendingCall]:
        """Answers tool calls of a queued message that wait for people: all of them, or none.

        The first answer to a call wins, from whatever process it comes. With the last one, in the
        same write, the message goes back to its queue, and a worker goes on with it.

        Args:
            message_id: The message.
            answers: ``Approval(call_id, approved=True)``, or the outputs of tools that the browser
                runs. A call is named by its ``call_id``.
            append_id: The ``append_id`` of a :class:`StoreUnavailableError`, to answer again: the
                answers are stored once.

        Returns:
            The calls that still wait.

        Raises:
            CallNotPendingError: A call does not wait for this answer: it was answered before, or
                never asked.
            InvalidInputError: An answer cannot be stored, there are none, or two to one call.
            StreamStoppedError: A stop was requested.
            MessageNotStreamingError: The message has ended.
            MessageNotFoundError: The message does not exist.
            StoreUnavailableError: MongoDB did not answer; the error has the append id.
        """
        given = [answer_of(each) for each in answers]
        store, key = self._open_parts.store, object_id(message_id, "message")
        answered = await store.calls.answer_by_id(key, given, append_id)
        return list(answered.pending)

    # Queues

    def worker(
        self,
        respond: Respond,
        *,
        queues: Iterable[AnyQueue] = ("default",),
        concurrency: int = 100,
        retry: RetryPolicy = DEFAULT_RETRIES,
        timeout: float | None = None,
        silence: float | None = None,
        start_over: bool = False,
        grace: float = 10.0,
        poll_interval: float = 5.0,
    ) -> Worker:
        """Makes a worker, which generates the answers of queued messages.

        Use it in ``async with``, and await :meth:`Worker.run` inside. Any number of workers, in any
        processes, share the queues. Each message has one worker at a time. If a worker dies,
        another one goes on with its messages once their ``lease`` has run out; if it is closed, at
        once.

        A message has ``max_attempts`` attempts. An attempt ends with ``respond``. What is left
        streaming then fails, unless ``respond`` has suspended or detached its writer.

        Args:
            respond: Writes the answer; see :data:`Respond`. It is given the conversation and the
                message. ``message.attempt``, ``message.parts`` and ``message.checkpoint`` tell what
                earlier attempts did: it goes on behind them, or calls ``writer.reset()``.
            queues: The queues.
            concurrency: The most messages at a time.
            retry: What errors of ``respond`` lead to.
            timeout: Seconds for an attempt; a longer one is ended, and made again. ``None`` for no
                limit.
            silence: Seconds without a write, and without ``writer.heartbeat()``, after which an
                attempt is ended and made again. ``None`` for no limit.
            start_over: True to void, before each further attempt, what is stored, for a ``respond``
                that always begins anew.
            grace: Seconds that attempts have, when the worker is closed, to reach a point to go on
                from.
            poll_interval: Seconds between two looks for messages that no change stream told of.

        Raises:
            InvalidInputError: An option is out of range.
            ConfigurationError: ``respond`` is no function.
        """
        parts = self._open_parts
        options = WorkerOptions.of(
            queues=queues,
            concurrency=concurrency,
            retry=retry,
            timeout=timeout,
            silence=silence,
            start_over=start_over,
            grace=grace,
            poll_interval=poll_interval,
        )
        load = partial(load_attempt, parts.message, check_respond(respond))
        return Worker(parts.own_store, load, options)

    async def queue_statistics(
        self, queues: Iterable[AnyQueue] | None = None
    ) -> dict[str, QueueStatistics]:
        """Counts the messages of queues by what they wait for.

        Args:
            queues: The queues; ``None`` for all that have messages.

        Returns:
            The numbers by the name of the queue.

        Raises:
            InvalidInputError: One of these is no queue.
            StoreUnavailableError: MongoDB did not answer.
        """
        names = None if queues is None else names_of(queues)
        return await self._open_parts.store.jobs.statistics(names)

    async def recover_stale(self, *, complete_partial: bool = False) -> list[FinalEvent]:
        """Ends all messages of the database whose writer is presumed dead.

        Each of them fails with the error ``"interrupted"`` and keeps its text, or is cancelled if a
        stop was requested. It looks at them twice, a third of their lease apart, so that a writer
        that was cut off can send a heartbeat; if there are any, it takes that long. Watchers and
        readers do the same to the messages that they read, so this is for all others: call it when
        a worker starts, or pass ``sweep_interval``.

        Args:
            complete_partial: True to complete messages with chunks, with ``partial: True`` in
                their metadata, and to fail only empty ones.

        Returns:
            The final events of the messages that this call ended, or found ended meanwhile.

        Raises:
            StoreUnavailableError: MongoDB did not answer.
        """
        return await self._open_parts.store.recovery.recover_stale(
            complete_partial=complete_partial
        )

    async def compact_due(self) -> int:
        """Merges the chunks of all messages whose ``retention`` is over; returns their number.

        This also happens in the background, every ten minutes at most, while messages are started
        whose chunks are to be merged.

        Raises:
            StoreUnavailableError: MongoDB did not answer.
        """
        return await self._open_parts.store.recovery.compact_due()

    async def conversations(
        self, owner: "tuple[str, Any] | Owner", limit: int | None = None
    ) -> AsyncIterator[Conversation]:
        """Yields the conversations of an owner, those that were added to last first.

        Raises:
            InvalidInputError: The owner or the limit is invalid.
            StoreUnavailableError: MongoDB did not answer.
        """
        parts = self._open_parts
        async for conversation in parts.conversation.of_owner(owner, check_count(limit, "limit")):
            yield conversation

    def transaction(self) -> Transaction:
        """Groups the writes of an ``async with`` block: all of them or none.

        ``async with converse.transaction(): ...``; see :class:`Transaction`.
        """
        return self._open_parts.transaction()

    # Events

    def on(self, event_type: type[E], handler: Handler[E]) -> Callable[[], None]:
        """Calls ``handler`` in this process after each write that makes such an event.

        Only writes through this facade count; to see all, watch. The write waits for the handler,
        so a slow handler slows the writer. An error of a handler is only logged. The ``event_type``
        :class:`Event` means all events.

        Args:
            event_type: The class of the event.
            handler: A function or coroutine function that is called with the event.

        Returns:
            A function that removes the handler.

        Raises:
            InvalidInputError: An argument is not an event class, or not a function.
        """
        if not (isinstance(event_type, type) and issubclass(event_type, Event)):
            raise InvalidInputError(f"{event_type!r} is not an event class of converse_mongo.")
        if not callable(handler):
            raise InvalidInputError(f"{handler!r} is not a function that accepts an event.")
        return self._setup.handlers.on(event_type, handler)

    @overload
    def watch_message(
        self,
        message_id: IdLike,
        after: int | None = None,
        *,
        kinds: Collection[str] | None = None,
        snapshot: Literal[False] = False,
    ) -> Watcher[MessageEvent]: ...
    @overload
    def watch_message(
        self,
        message_id: IdLike,
        after: None = None,
        *,
        kinds: Collection[str] | None = None,
        snapshot: bool,
    ) -> Watcher[MessageSnapshot | MessageEvent]: ...
    def watch_message(
        self,
        message_id: IdLike,
        after: int | None = None,
        *,
        kinds: Collection[str] | None = None,
        snapshot: bool = False,
    ) -> Watcher[Any]:
        """Watches a message: its chunks behind ``after``, each once and in order, then its end.

        The message may be empty, stream, or have ended.

        Args:
            message_id: The message.
            after: The sequence of the last chunk you have; ``None`` for all.
            kinds: The kinds of parts to watch, such as ``{"text", "tool_call"}``; ``"tool"`` and
                ``"source"`` are short for a tool call and for both kinds of sources. Chunks of
                other kinds are left out, but for what decides about other parts: starts and ends,
                without their values, redactions, and resets, which void all parts from a number on.
                ``None`` for all.
            snapshot: True to get the parts so far as one :class:`MessageSnapshot`, the first event,
                in place of their chunks.

        Returns:
            An asynchronous iterator, see :class:`Watcher`, of :class:`ChunkReceived`, and finally
            one :class:`MessageCompleted`, :class:`MessageFailed` or :class:`MessageCancelled`.

        Raises:
            InvalidIdError: The id is invalid.
            InvalidCursorError: ``after`` is not a sequence.
            InvalidInputError: ``kinds`` is not a collection of names; or both ``after`` and
                ``snapshot`` were given.
        """
        hub, key = self._open_parts.hub, object_id(message_id, "message")
        check_sequence(after)
        if snapshot and after is not None:
            raise InvalidInputError(
                "Pass after=, or snapshot=True, which begins behind all chunks."
            )
        chosen = None if kinds is None else KindFilter(kinds)
        return Watcher(hub, Hub.join_message, key, after, chosen, snapshot=snapshot)

    def watch_conversation(
        self, conversation_id: IdLike, after: str | None = None
    ) -> Watcher[ConversationEvent]:
        """Watches all messages of a conversation, without an end.

        Each event has a ``cursor``: pass the last one as ``after``, in this or another process, to
        continue without a gap or a repeat.

        Args:
            conversation_id: The conversation.
            after: The cursor of the last event you have; ``None`` for all from the first message
                on, ``"now"`` for new events only.

        Returns:
            An asynchronous iterator, see :class:`Watcher`, of :class:`MessageCreated`,
            :class:`ChunkReceived`, :class:`MessageCompleted`, :class:`MessageFailed`,
            :class:`MessageCancelled`, and :class:`MessageUpdated` for saves that happen while it
            watches.

        Raises:
            InvalidIdError: The id is invalid.
            InvalidCursorError: ``after`` is not a cursor of this conversation.
        """
        hub, key = self._open_parts.hub, object_id(conversation_id, "conversation")
        if after is not None and after != NOW:
            ConversationCursor.parse(after, key)
        return Watcher(hub, Hub.join_conversation, key, after)

    def watch_owner(
        self, owner: "tuple[str, Any] | Owner", *, chunks: bool = False
    ) -> OwnerWatcher:
        """Watches all conversations of an owner from now on, without an end.

        It reports the changes of a list: conversations that are started, saved and deleted,
        messages that are added and end, and queued messages that begin to wait for people and go
        on. It has no cursor: attach, then list :meth:`conversations`, and together they have
        everything.

        Args:
            owner: The owner: a type and an id, such as ``("user", "42")``.
            chunks: Only ``False``: watch a conversation for its chunks.

        Returns:
            An asynchronous iterator, see :class:`OwnerWatcher`, of :class:`ConversationCreated`,
            :class:`ConversationUpdated`, :class:`ConversationDeleted`, :class:`MessageCreated`,
            :class:`MessageQueued`, :class:`MessageStarted`, :class:`MessageSuspended`,
            :class:`MessageCompleted`, :class:`MessageFailed` and :class:`MessageCancelled`.

        Raises:
            InvalidInputError: The owner is not a pair of a type and an id, or ``chunks`` is true.
        """
        if chunks:
            raise InvalidInputError(
                f"chunks={chunks!r}: watch_owner reports no chunks. Watch each conversation whose "
                "text is shown with watch_conversation."
            )
        return OwnerWatcher(self._open_parts.hub, check_owner(owner).pair)

    @property
    def _open_parts(self) -> Parts:
        if self._parts is None:
            error = ConverseClosedError()
            error.was_opened = self._opening is not None
            raise error
        self._parts.check_home()
        return self._parts
