"""Transactions: several writes, all of them or none."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from contextvars import Context, ContextVar, copy_context
from types import TracebackType
from typing import Any, Self, TypeVar

from pymongo.errors import PyMongoError

from converse_mongo.domain.errors import (
    InvalidInputError,
    TransactionAbortedError,
    TransactionsUnavailableError,
)
from converse_mongo.domain.events import Event
from converse_mongo.driver import closing, deadlines, failures, retry, servers, sessions
from converse_mongo.store.collections import Collections
from converse_mongo.store.handlers import Handlers
from converse_mongo.store.store import Store

T = TypeVar("T")

_current: ContextVar["Transaction | None"] = ContextVar("converse_mongo_transaction", default=None)


_inside: ContextVar["Store | None"] = ContextVar("converse_mongo_inside", default=None)
"""The store whose call is in progress: Beanie's hooks run in tasks of their own."""


class Transaction:
    """Groups the writes of the task in its ``async with`` block: all of them or none.

    Made by ``Converse.transaction``. Everything that the block does through the same facade, and
    through its conversations and messages, belongs to it. Reads show the database as it was at the
    beginning, with the block's own writes. Handlers are called after the commit.

    A MongoDB transaction lasts for a minute at most, and blocks other writes to the same documents:
    write in it what is ready to be stored, and stream outside. After an abort, copies of documents
    that the block wrote to differ from what is stored: load them again.

    Entering raises:
        TransactionsUnavailableError: The server does not support them; nothing was written.
        InvalidInputError: This task has an open transaction.
        StoreUnavailableError: MongoDB did not answer.

    Leaving and every call inside raises:
        TransactionAbortedError: MongoDB ended the transaction: run the block again.
        StoreUnavailableError: MongoDB did not answer to the commit; the transaction may or may not
            have been stored.
    """

    def __init__(self, store: Store) -> None:
        self.parent = store
        self.store: Store | None = None
        self._session: Any = None
        self._left = asyncio.Event()
        self._stored = False

    async def __aenter__(self) -> Self:
        if _current.get() is not None and _current.get().is_open:  # type: ignore[union-attr]
            raise InvalidInputError(
                "This task already has an open transaction: transactions do not nest."
            )
        database, call = self.parent.messages.database, self.parent.call
        what = "begin a transaction"
        if not await call(servers.has_change_streams, database, what=what):
            raise TransactionsUnavailableError(
                "This server has no transactions: they need a replica set or a sharded cluster. "
                "Nothing was written."
            )
        self._session = await call(sessions.start_transaction, database, what=what)
        self.store = _SessionStore(self.parent, self._session)
        self._token = _current.set(self)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        store, self.store = self.store, None
        with contextlib.suppress(ValueError):  # left in another context than it was entered in
            _current.reset(self._token)
        try:
            if exc is None:
                self._stored = True  # unless the commit fails
                await self._commit()
            else:
                # If the abort fails, the server aborts the transaction once it is too old.
                await _quietly(self._session.abort_transaction)
        except (TransactionAbortedError, PyMongoError):
            self._stored = False
            raise
        finally:
            self._left.set()
            await _quietly(self._session.end_session)
        if exc is None and isinstance(store, _SessionStore):
            for action in store.actions:
                await action(self.parent)
            for event in store.events:
                await self.parent.handlers.publish(event)

    @property
    def session(self) -> Any:
        """The session of the driver, for your own writes that shall belong to it."""
        return self._session

    @property
    def is_open(self) -> bool:
        """True while writes belong to it."""
        return self.store is not None

    async def outcome(self) -> bool:
        """Waits until the block is left; returns whether it was stored, as far as that is known."""
        await self._left.wait()
        return self._stored

    async def _commit(self) -> None:
        try:
            # A commit may be repeated: the server knows which transaction it is.
            await retry.call(
                self._session.commit_transaction,
                what="commit a transaction",
                timeout=self.parent.options.retry_timeout,
            )
        except PyMongoError as error:
            if failures.is_aborted(error):
                raise TransactionAbortedError from error
            raise


class _SessionStore(Store):
    """A store whose calls belong to a session, one after the other, and are not retried."""

    def __init__(self, parent: Store, session: Any) -> None:
        messages, conversations, pages, values, places = (
            sessions.SessionCollection(each, session)
            for each in (
                *(parent.messages, parent.conversations),
                *(parent.pages, parent.values, parent.places),
            )
        )
        self.events: list[Event] = []
        self.actions: list[Callable[[Collections], Awaitable[None]]] = []
        super().__init__(
            messages,
            conversations,
            pages=pages,
            values=values,
            places=places,
            handlers=_LaterHandlers(parent.handlers, self.events),
            options=parent.options,
        )
        self.session = session
        self._turn = asyncio.Lock()

    async def after_commit(self, action: Callable[[Collections], Awaitable[None]]) -> None:
        self.actions.append(action)

    async def call(
        self,
        function: Callable[..., Awaitable[T]],
        *arguments: Any,
        what: str,
        **_options: Any,
    ) -> T:
        if _inside.get() is self:  # a hook of a document in the middle of a write
            return await function(*arguments)
        limit = self.options.retry_timeout
        async with self._turn:
            inside = _inside.set(self)
            try:
                return await deadlines.bounded(limit, function, *arguments)
            except PyMongoError as error:
                if failures.is_aborted(error) or failures.is_transient(error):
                    raise TransactionAbortedError(
                        f"Could not {what}: MongoDB ended the transaction ({error}). Nothing of it "
                        "was stored: run the block again."
                    ) from error
                raise
            finally:
                _inside.reset(inside)


class _LaterHandlers(Handlers):
    """Keeps events until the commit."""

    def __init__(self, handlers: Handlers, events: list[Event]) -> None:
        super().__init__()
        self._wanted = handlers
        self._events = events

    def wants(self, event_type: type[Event]) -> bool:
        return self._wanted.wants(event_type)

    async def publish(self, event: Event) -> None:
        self._events.append(event)


def store_now(store: Store) -> Store:
    """Returns ``store``, or that of the transaction on it that this task is in."""
    transaction = _current.get()
    if transaction is None or transaction.store is None or transaction.parent is not store:
        return store
    return transaction.store


def open_transaction(store: Store) -> Transaction | None:
    """Returns the transaction that ``store`` belongs to, if it is open in this task."""
    transaction = _current.get()
    return transaction if transaction is not None and transaction.store is store else None


def context_apart() -> Context:
    """Copies the current context for work that outlives its caller.

    It keeps the variables of the application, such as a trace, but neither a transaction nor a
    deadline of ``pymongo.timeout()``.
    """

    def forget_caller() -> None:
        _current.set(None)
        _inside.set(None)
        deadlines.forget()

    context = copy_context()
    context.run(forget_caller)
    return context


async def _quietly(call: Callable[[], Awaitable[Any]]) -> None:
    with contextlib.suppress(PyMongoError):
        await deadlines.bounded(closing.CLOSE_SECONDS, call, own=True)
