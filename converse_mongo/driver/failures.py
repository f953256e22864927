"""Failures: the meaning of a driver's error for the call that raised it, and for people."""

import re
from collections.abc import Iterator

from bson.errors import BSONError
from pymongo.errors import (
    ConnectionFailure,
    DuplicateKeyError,
    OperationFailure,
    PyMongoError,
    WriteConcernError,
)

from converse_mongo.domain.errors import StoreUnavailableError, is_own

UNREACHABLE = "The database could not be reached."
REFUSED = "The database refused a request."
NOT_STORED = "The answer could not be stored."

# https://github.com/mongodb/mongo/blob/master/src/mongo/base/error_codes.yml
_TRANSIENT_CODES = frozenset(
    # The network, and members, config servers or signing keys that are not available yet.
    {6, 7, 89, 94, 133, 145, 149, 172, 173, 174, 199, 211, 303, 317, 384, 9001, 56846, 91331}
    # No primary, an election, a shutdown.
    | {91, 95, 189, 190, 216, 333, 372, 10058, 10107, 11600, 11602, 13435, 13436}
    # Time limits and interruptions, a slow majority, a lock that was not available.
    | {24, 46, 50, 64, 90, 107, 134, 202, 262, 279, 281, 282, 290, 310, 355, 407, 453}
    | {11601, 46841, 10045600}
    # Conflicts with other writes, with transactions and with operations on the collection.
    | {112, 117, 215, 267, 314, 319, 338, 342, 363, 365, 371, 406, 412, 12586, 12587, 50915}
    # A router or a shard with outdated metadata, and snapshots that are gone.
    | {63, 150, 239, 246, 249, 250, 272, 343, 9996, 13388}
    # A cursor that was lost in a restart.
    | {43, 136, 175, 237}
    # An overloaded server.
    | {208, 261, 402, 433, 449, 450, 462}
)

# By each of them the server or the driver recommends to retry.
_TRANSIENT_LABELS = (
    "RetryableWriteError",
    "RetryableError",
    "SystemOverloadedError",
    "ResumableChangeStreamError",
)

# WriteConflict, NoSuchTransaction
_ABORTED_CODES = frozenset({112, 251})

# UnknownReplWriteConcern, UnsatisfiableWriteConcern: the set has no such members, now or later.
_REFUSED_CONCERN_CODES = frozenset({79, 100})

_TOO_LARGE_CODES = frozenset({10334, 17419})

# These end one change stream, while a new one can be opened: an unusable resume token (260, 280,
# 286), an invalidation, a change of shards (222, 234, 346, 348, 351), a large event.
_LOST_STREAM_CODES = frozenset({222, 234, 260, 280, 286, 346, 348, 351, 401, 10334})

_TIMEOUTS = re.compile(r" ?\(configured timeouts: [^)]*\)")


def refuses_change_streams(error: BaseException) -> bool:
    """Returns whether a new change stream would be refused with the same error.

    Permissions, the topology, the tier of a hosted service or an API version forbid it. Any of them
    may change, but not within seconds.
    """
    return (
        isinstance(error, PyMongoError)
        and not is_transient(error)
        and not error.has_error_label("NonResumableChangeStreamError")
        and not (isinstance(error, OperationFailure) and error.code in _LOST_STREAM_CODES)
    )


def is_transient(error: BaseException) -> bool:
    """Returns whether the same call may succeed later: after a network error or a failover, say.

    A write that raised it may or may not have been applied. An error that ended a transaction is
    not transient: the transaction may be run again, but not the call; see :func:`is_aborted`.
    """
    if not isinstance(error, PyMongoError) or error.has_error_label("TransientTransactionError"):
        return False
    if any(error.has_error_label(label) for label in _TRANSIENT_LABELS):
        return True
    if isinstance(error, WriteConcernError):
        return error.code not in _REFUSED_CONCERN_CODES
    if isinstance(error, ConnectionFailure):
        return True
    return isinstance(error, OperationFailure) and error.code in _TRANSIENT_CODES


def is_too_large(error: BaseException) -> bool:
    """Returns whether a document would exceed MongoDB's limit of 16 MiB."""
    return isinstance(error, OperationFailure) and error.code in _TOO_LARGE_CODES


def is_aborted(error: BaseException) -> bool:
    """Returns whether the transaction has ended, and may succeed if it is run again."""
    return isinstance(error, PyMongoError) and (
        error.has_error_label("TransientTransactionError")
        or isinstance(error, DuplicateKeyError)
        or (isinstance(error, OperationFailure) and error.code in _ABORTED_CODES)
    )


def reason(error: BaseException) -> str:
    """Returns the driver's message as one line, without its dumps of the topology and the reply."""
    text = _TIMEOUTS.sub("", str(error))
    for rest in (", full error:", ", Timeout:"):
        text = text.partition(rest)[0]
    return " ".join(text.split()) or type(error).__name__


def words_for(error: BaseException) -> str | None:
    """Returns the sentence to store in place of the text of an exception.

    The texts of MongoDB, of its driver and of this library are for developers: they have addresses,
    documents and advice, and the errors of a message may be shown to users.

    Returns:
        ``None`` if the text is of none of them, nor repeats one that it was raised from.
    """
    text = str(error)
    for each in _raised_from(error):
        if each is not error and not any(words in text for words in _texts(each)):
            continue
        if isinstance(each, StoreUnavailableError) or is_transient(each):
            return UNREACHABLE
        return REFUSED if isinstance(each, PyMongoError) else NOT_STORED
    return None


def _raised_from(error: BaseException) -> Iterator[BaseException]:
    """Yields the errors of the driver and of this library among an error and its causes."""
    seen: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        each = left.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        left += [each.__context__, each.__cause__]
        if isinstance(each, BaseExceptionGroup):
            left += each.exceptions
        if is_own(each) or isinstance(each, PyMongoError | BSONError):
            yield each


def _texts(error: BaseException) -> Iterator[str]:
    """Yields what another error may repeat of an error."""
    yield str(error) or type(error).__name__
    if isinstance(error, OperationFailure):
        # Its text ends with the reply of the server.
        yield str(error).partition(", full error:")[0]
        yield str((error.details or {}).get("errmsg") or error)
