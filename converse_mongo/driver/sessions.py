"""Sessions: transactions of either driver."""

import inspect
from functools import partial
from typing import Any

from pymongo import ReadPreference
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from converse_mongo.driver.clients import Database
from converse_mongo.driver.collections import Collection


class SessionCollection:
    """A collection whose every call belongs to one session."""

    def __init__(self, collection: Collection, session: Any) -> None:
        self._collection = collection
        self._session = session

    def __getattr__(self, name: str) -> Any:
        if name in _PROPERTIES:
            return getattr(self._collection, name)
        if name not in _SESSION_CALLS:
            raise AttributeError(
                f"{name!r} of a collection is not supported in a transaction, and would run "
                "outside of it: add it to the calls of SessionCollection."
            )
        return partial(getattr(self._collection, name), session=self._session)


_SESSION_CALLS = frozenset(
    {"delete_many", "find", "find_one", "insert_one", "update_many", "update_one"}
)
"""Methods that accept a session."""

_PROPERTIES = frozenset({"database", "name", "write_concern"})
"""Attributes without a call to the server."""


async def start_transaction(database: Database) -> Any:
    """Starts a session of the database's client, with a transaction.

    A transaction would inherit the options of the client. MongoDB accepts only the primary, and
    only some read concerns; and the library reads a snapshot.
    """
    session = database.client.start_session()
    if inspect.isawaitable(session):  # Motor's
        session = await session
    concern = database.write_concern
    started = session.start_transaction(
        read_concern=ReadConcern("snapshot"),
        write_concern=concern if concern.acknowledged else WriteConcern("majority"),
        read_preference=ReadPreference.PRIMARY,
    )
    if inspect.isawaitable(started):  # PyMongo's
        await started
    return session
