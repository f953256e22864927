"""What errors of MongoDB mean to the library."""

import traceback
from typing import Any

import pytest
from pymongo.errors import (
    AutoReconnect,
    BulkWriteError,
    CursorNotFound,
    DuplicateKeyError,
    ExecutionTimeout,
    InvalidOperation,
    InvalidURI,
    NetworkTimeout,
    NotPrimaryError,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
    WriteConcernError,
    WriteError,
    WTimeoutError,
)

from converse_mongo import Converse
from converse_mongo.domain.errors import ConfigurationError, StoreUnavailableError
from converse_mongo.driver import retry
from converse_mongo.driver.clients import safe_reason
from converse_mongo.driver.failures import (
    is_aborted,
    is_transient,
    refuses_change_streams,
)
from converse_mongo.driver.sessions import SessionCollection
from converse_mongo.watching.changes import pipeline

TRANSIENT_CODES = {
    "NoConfigPrimary": 149,
    "FailedToSatisfyReadPreference": 133,
    "NetworkInterfaceExceededTimeLimit": 202,
    "TemporarilyUnavailable": 365,
    "WriteConflict": 112,
    "StaleEpoch": 150,
    "StaleDbVersion": 249,
    "SnapshotUnavailable": 246,
    "SnapshotTooOld": 239,
    "StaleChunkHistory": 250,
    "MigrationConflict": 272,
    "LockTimeout": 24,
    "MaxTimeMSExpired": 50,
    "WriteConcernTimeout": 64,
    "ConflictingOperationInProgress": 117,
    "KeyNotFound": 211,
    "ElectionInProgress": 216,
    "CursorKilled": 237,
    "ClientDisconnect": 279,
    "ObjectIsBusy": 314,
    "MovePrimaryInProgress": 319,
    "ShardCannotRefreshDueToLocksHeld": 343,
    "InterruptedDueToStorageChange": 355,
    "RetryableTransactionInProgress": 363,
    "UserWritesBlocked": 371,
    "ResourceExhausted": 402,
    "PooledConnectionAcquisitionExceededTimeLimit": 407,
    "UpdatesStillPending": 412,
    "AdmissionQueueOverflow": 433,
    "RateLimitExceeded": 449,
    "PooledConnectionAcquisitionRejected": 450,
    "InterruptedDueToReshardingCriticalSection": 453,
    "IngressRequestRateLimitExceeded": 462,
    "Interrupted": 11601,
    "ConfigServerUnreachable": 56846,
    "RetriableRemoteCommandFailure": 91331,
    "InterruptedDueToFCVChange": 10045600,
}
REFUSING_CODES = {
    "BadValue": 2,
    "Unauthorized": 13,
    "AuthenticationFailed": 18,
    "IllegalOperation": 20,
    "NamespaceNotFound": 26,
    "PathNotViable": 28,
    "ImmutableField": 66,
    "DocumentValidationFailure": 121,
    "ExceededMemoryLimit": 146,
    "ReadConcernMajorityNotEnabled": 148,
    "QueryExceededMemoryLimitNoDiskUseAllowed": 292,
    "APIStrictError": 323,
    "AtlasError": 8000,
    "BSONObjectTooLarge": 10334,
    "a document over 16 MiB": 17419,
    "DuplicateKey": 11000,
}


def labeled(label: str, code: int = 1) -> OperationFailure:
    return OperationFailure("x", code, {"errorLabels": [label]})


@pytest.mark.parametrize("name", TRANSIENT_CODES)
@pytest.mark.parametrize("kind", [OperationFailure, WriteError])
def test_transient__by_code(name: str, kind: type[OperationFailure]) -> None:
    error = kind("x", TRANSIENT_CODES[name], {})
    assert is_transient(error)
    assert not refuses_change_streams(error)


@pytest.mark.parametrize("name", REFUSING_CODES)
def test_refusal__by_code(name: str) -> None:
    assert not is_transient(OperationFailure("x", REFUSING_CODES[name]))


@pytest.mark.parametrize(
    "error",
    [
        labeled("RetryableWriteError"),
        labeled("RetryableError"),
        labeled("SystemOverloadedError"),
        labeled("ResumableChangeStreamError"),
        AutoReconnect("x"),
        NetworkTimeout("x"),
        NotPrimaryError("x"),
        ServerSelectionTimeoutError("x"),
        ExecutionTimeout("x", 50),
        CursorNotFound("x", 43),
        WTimeoutError("x", 64, {}),
        WriteConcernError("x", 91, {}),
    ],
    ids=lambda error: f"{type(error).__name__} {getattr(error, 'details', '')}",
)
def test_transient__by_kind(error: PyMongoError) -> None:
    assert is_transient(error)
    assert not refuses_change_streams(error)


@pytest.mark.parametrize(
    "error",
    [
        DuplicateKeyError("x", 11000),
        BulkWriteError({}),
        InvalidOperation("x"),
        WriteConcernError("no such mode", 79, {}),
        WriteConcernError("not enough members", 100, {}),
        ValueError("x"),
        TimeoutError("x"),
    ],
    ids=repr,
)
def test_refusal__by_kind(error: Exception) -> None:
    assert not is_transient(error)


@pytest.mark.parametrize("code", [112, 246, 251, 24])
def test_aborted__is_not_repeated_as_a_call(code: int) -> None:
    """Within a transaction the same code means that the whole block has to be run again."""
    error = labeled("TransientTransactionError", code)
    assert is_aborted(error)
    assert not is_transient(error)


def test_commit__whose_result_is_unknown_is_repeated() -> None:
    error = OperationFailure("x", 91, {"errorLabels": ["UnknownTransactionCommitResult"]})
    assert is_transient(error)
    assert not is_aborted(error)


@pytest.mark.parametrize(
    "error",
    [
        OperationFailure("x", 286),
        OperationFailure("x", 280),
        OperationFailure("x", 10334),
        labeled("NonResumableChangeStreamError", 1),
    ],
    ids=str,
)
def test_stream__that_is_lost_for_good_is_no_refusal_of_a_new_one(error: OperationFailure) -> None:
    assert not is_transient(error)
    assert not refuses_change_streams(error)


def test_pipeline__matches_namespaces_by_equality() -> None:
    """Shared tiers of Atlas take only text, or an expression, for a namespace."""
    namespaces: list[Any] = []

    def look(value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                if key.split(".")[0] in ("ns", "to"):
                    namespaces.append(inner)
                look(inner)
        elif isinstance(value, list):
            for inner in value:
                look(inner)

    look([stage["$match"] for stage in pipeline("messages", "talks") if "$match" in stage])
    assert set(namespaces) == {"messages", "talks"}


class FakeCollection:
    """Says what it was called with."""

    name = "messages"

    def find_one(self, *arguments: Any, **options: Any) -> Any:
        return arguments, options

    aggregate = count_documents = with_options = replace_one = find_one


def test_transaction__passes_its_session_to_the_calls_that_it_knows() -> None:
    collection = SessionCollection(FakeCollection(), "session")
    assert collection.find_one({"a": 1}) == (({"a": 1},), {"session": "session"})
    assert collection.name == "messages"


@pytest.mark.parametrize("name", ["aggregate", "count_documents", "with_options", "replace_one"])
def test_transaction__refuses_calls_that_would_happen_outside(name: str) -> None:
    collection = SessionCollection(FakeCollection(), "session")
    with pytest.raises(AttributeError, match=rf"'{name}'.*outside"):
        getattr(collection, name)


@pytest.mark.parametrize(("repeat", "tries"), [(True, 3), (False, 1)])
async def test_retry__makes_a_call_again_only_where_that_is_safe(repeat: bool, tries: int) -> None:
    made = 0

    async def call() -> int:
        nonlocal made
        made += 1
        if made < 3:
            raise AutoReconnect
        return made

    if repeat:
        assert await retry.call(call, what="count", timeout=10, repeat=repeat) == 3
    else:
        with pytest.raises(StoreUnavailableError, match=r"Could not count.*not retried"):
            await retry.call(call, what="count", timeout=10, repeat=repeat)
    assert made == tries


# Secrets


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("mongodb://ada:hun/ter2@db/chat", "Bad database name: 'ter2@db/chat'"),
        ("mongodb://ada:hunter2:x@db/chat", "Port must be an integer: 'hunter2'"),
        ("mongodb://ada:hunter2", "Port must be an integer: 'hunter2'"),
        ("mongodb://ada:hun#ter2@db", "Invalid URI: hun#ter2"),
        ("ada:hunter2@db", "Invalid URI scheme: ada:hunter2@db"),
        (
            "mongodb://db/?authMechanismProperties=AWS_SESSION_TOKEN:hunter2",
            "auth mechanism properties must be key:value pairs, not hunter2",
        ),
        ("mongodb://ada@db/?tlsCertificateKeyFilePassword=hunter2", "wrong: hunter2"),
    ],
)
def test_password__is_not_repeated_in_what_a_driver_says_of_a_uri(uri: str, told: str) -> None:
    reason = safe_reason(InvalidURI(told), uri)
    assert "ter2" not in reason
    assert reason.startswith("InvalidURI; a user name and a password must be percent-encoded")


def test_error__of_a_uri_is_told_where_no_password_is_in_it() -> None:
    uri = "mongodb://ada:hunter2@db/?readPreference=far"
    assert safe_reason(InvalidURI("far is no preference"), uri) == "far is no preference"


@pytest.mark.parametrize(
    "uri",
    [
        "mongodb://ada:hun/ter2@db/chat",
        "mongodb://ada:hunter2:x@db/chat",
        "mongodb://ada:hunter2%zz@db/chat",
        "mongodb://ada:hunter2@db:99999/chat",
        "mongodb://[ada:hunter2@db",
        "http://ada:hunter2@db",
    ],
)
async def test_uri__that_is_invalid_is_in_no_traceback(uri: str) -> None:
    converse = Converse(uri)
    with pytest.raises(ConfigurationError) as raised:
        await converse.open()
    for text in (*traceback.format_exception(raised.value), repr(converse), repr(raised.value)):
        assert "ter2" not in text
