"""Indexes: listed, and built if they are missing."""

import asyncio
import logging
import random
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import bson
import pymongo
from pymongo import IndexModel
from pymongo.errors import OperationFailure, PyMongoError

from converse_mongo.domain.errors import StoreUnavailableError
from converse_mongo.driver.collections import Collection
from converse_mongo.driver.deadlines import bounded
from converse_mongo.driver.failures import is_transient

logger = logging.getLogger("converse_mongo")

LIST_SECONDS = 30.0
BUILD_SECONDS = 7 * 86400.0
"""The time limit of a build, in effect none. MongoDB accepts some weeks at most."""
SLOW_SECONDS = 5.0
"""A build that failed after this time had begun on the server."""
PAUSE_SECONDS = 0.5
_NAMESPACE_NOT_FOUND = 26

SUPERSEDED_INDEXES = {
    "conversation_revision": [("conversation_id", 1), ("revision", 1)],
    "conversation_saves": [
        *[("conversation_id", 1), ("save_mark", 1)],
        *[("_id", 1), ("revision", 1), ("position", 1)],
    ],
    "streaming": [("status", 1)],
    "streaming_by_id": [("status", 1), ("_id", 1)],
    "compact_at": [("compact_at", 1)],
}
"""Name to key of the indexes of earlier versions. A changed index gets a new name and a new key:
MongoDB refuses an index with the name, or the key, of another with other options."""

Spec = Mapping[str, Any]


class Indexes(NamedTuple):
    """The indexes of a collection, as the server describes them.

    Attributes:
        ready: Those that can be used.
        building: Those that are being built; not every server tells them from the others.
        exists: ``False`` if the collection does not exist.
    """

    ready: list[Spec]
    building: list[Spec]
    exists: bool = True


async def list_indexes(collection: Collection) -> Indexes:
    """Lists the indexes of a collection.

    Raises:
        PyMongoError: The server refused or could not be reached.
    """
    try:
        # Without the option an index that is being built is listed like any other.
        reply = await collection.database.command(
            {"listIndexes": collection.name, "includeBuildUUIDs": True}
        )
    except NotImplementedError:  # a mock
        pass
    except OperationFailure as error:
        if error.code == _NAMESPACE_NOT_FOUND:
            return Indexes([], [], exists=False)
        if is_transient(error):
            raise
        # The server does not know the option, or the API version forbids it.
    else:
        found = reply["cursor"]["firstBatch"]  # a collection has at most 64 indexes
        return Indexes(
            [each for each in found if "spec" not in each],
            [each["spec"] for each in found if "spec" in each],
        )
    information = await collection.index_information()
    plain: list[Spec] = [
        {**each, "name": name, "key": dict(each["key"])} for name, each in information.items()
    ]
    return Indexes(plain, [], exists=bool(plain))


async def build_missing(
    collection: Collection, wanted: Sequence[IndexModel], *, retry_timeout: float
) -> None:
    """Builds the indexes that are missing, without a time limit.

    A server continues a build when its client is gone, and a second request waits for it. So losing
    the connection meanwhile does no harm.

    Args:
        collection: The collection.
        wanted: The indexes that it needs.
        retry_timeout: Seconds for which a build that fails without having begun is retried.

    Raises:
        StoreUnavailableError: MongoDB cannot be reached, or keeps failing.
        PyMongoError: MongoDB refused an index.
    """
    where = f"{collection.database.name}.{collection.name}"
    give_up = time.monotonic() + retry_timeout
    while True:
        present = await bounded(LIST_SECONDS, list_indexes, collection)
        missing = [each for each in wanted if not _has(present.ready, each.document)]
        if not missing:
            return
        names = ", ".join(each.document["name"] for each in missing)
        began = time.monotonic()
        try:
            if not present.exists:
                await bounded(LIST_SECONDS, collection.create_indexes, missing)
            else:
                logger.info("Building %s on %s; with many documents this takes long", names, where)
                # Overrides the socketTimeoutMS of the client, too.
                with pymongo.timeout(BUILD_SECONDS):
                    await collection.create_indexes(missing)
        except PyMongoError as error:
            if not is_transient(error):
                raise
            now = time.monotonic()
            if present.building or now - began >= SLOW_SECONDS:
                give_up = now + retry_timeout
            elif now >= give_up:
                raise StoreUnavailableError(
                    f"The indexes {names} of {where} could not be built ({error})."
                ) from error
            logger.warning("Building %s on %s was interrupted (%s)", names, where, error)
            await asyncio.sleep(random.uniform(PAUSE_SECONDS / 2, PAUSE_SECONDS))
        else:
            return


def _has(present: Sequence[Spec], wanted: Spec) -> bool:
    return any(_is_same(each, wanted) for each in present)


def _is_same(present: Spec, wanted: Spec) -> bool:
    """Returns whether MongoDB treats the two as equal, whatever their names are."""
    if "_fts" in present["key"]:  # a text index does not show its key
        return bool(present["name"] == wanted["name"])
    return _signature(present) == _signature(wanted) and _is_collated(
        present.get("collation") or {}, wanted.get("collation") or {}
    )


def _signature(spec: Spec) -> bytes:
    return bson.encode(
        {
            "key": [[field, _plain(kind)] for field, kind in spec["key"].items()],
            "unique": bool(spec.get("unique")),
            "sparse": bool(spec.get("sparse")),
            "partial": spec.get("partialFilterExpression") or {},
            "expires": _plain(spec.get("expireAfterSeconds")),
        }
    )


def _plain(value: Any) -> Any:
    """Returns a number as a float: servers return any type of number."""
    return float(value) if isinstance(value, int | float) else value


def _is_collated(present: Spec, wanted: Spec) -> bool:
    if wanted.get("locale", "simple") == "simple":
        return bool(present.get("locale", "simple") == "simple")
    return wanted.items() <= present.items()  # a server adds the defaults
