"""The doctor: checks a server and this installation, and suggests fixes. It only reads."""

import asyncio
import platform
import shlex
import sys
import warnings
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from importlib.metadata import version
from typing import Any, TextIO

from pymongo import IndexModel, ReadPreference
from pymongo.errors import OperationFailure, PyMongoError
from pymongo.read_concern import ReadConcern

from converse_mongo.documents.conversations import Conversation
from converse_mongo.documents.messages import Message
from converse_mongo.documents.pages import MessageChunkPage
from converse_mongo.documents.values import MessageValue
from converse_mongo.domain.errors import ConfigurationError, ConverseError
from converse_mongo.driver import (
    change_streams,
    clients,
    collections,
    failures,
    installed,
    servers,
)
from converse_mongo.store.collections import Collections, Options
from converse_mongo.store.indexes import SUPERSEDED_INDEXES, list_indexes
from converse_mongo.store.stuck import Stuck, StuckWork
from converse_mongo.tools.servers import PATIENCE, SELECTION_SECONDS, check_scheme
from converse_mongo.tools.terminal import age, colored, one_line, wrapped
from converse_mongo.watching.changes import pipeline

SHORT_OPLOG_HOURS = 1.0
STUCK_SECONDS = 60.0
"""The time after which a queued message that should have moved is stuck."""
_SECONDS_PER_HOUR = 3600
_INDENT = 22  # the level, the subject and the spaces behind each


class Level(StrEnum):
    """The severity of a finding."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check.

    Attributes:
        level: ``OK``, ``WARN`` if the library works with restrictions, ``FAIL`` if it does not.
        subject: The thing that was checked.
        text: The result.
        advice: The suggested fix.
    """

    level: Level
    subject: str
    text: str
    advice: str | None = None

    def write(self, stream: TextIO) -> None:
        """Writes it for people: wrapped at words and in color where the stream is a terminal."""
        indent = f"{'':<{_INDENT}}"
        text = wrapped(one_line(self.text), indent, stream)
        level = colored(self.level, stream) + " " * (4 - len(self.level))
        stream.write(f"{level}  {one_line(self.subject):<14}  {text}\n")
        if self.advice:
            stream.write(f"{indent}-> {wrapped(self.advice, f'{indent}   ', stream)}\n")
        stream.flush()


ok, warn, fail = (partial(Finding, level) for level in Level)


class UnreachableError(Exception):
    """Ends the checks; the finding of it was yielded before."""


def run(uri: str, database: str | None) -> int:
    """Prints each finding.

    Returns:
        0; 1 if a check failed; or 2 if the server cannot be reached, so that it was not checked.
    """
    return asyncio.run(_run(uri, database))


async def _run(uri: str, database: str | None) -> int:
    failed = False
    try:
        async for finding in examine(uri, database):
            finding.write(sys.stdout)
            failed = failed or finding.level is Level.FAIL
    except UnreachableError:
        return 2
    return 1 if failed else 0


async def examine(uri: str, database_name: str | None) -> AsyncIterator[Finding]:
    """Yields the findings.

    Raises:
        UnreachableError: After the finding that the URI is not valid, or that no server answers.
    """
    for finding in check_installation(installed.driver_versions()):
        yield finding
    try:
        check_scheme(uri)
        with warnings.catch_warnings(record=True) as doubts:
            warnings.simplefilter("always")
            client = clients.open_client(uri, {"appname": "converse-mongo doctor", **PATIENCE})
    except (ConfigurationError, PyMongoError, ValueError, TypeError) as error:
        reason = clients.safe_reason(error, uri)
        yield fail("server", reason, "Correct the URI: mongodb://HOST:PORT/DATABASE")
        raise UnreachableError from None
    for doubt in doubts:
        if isinstance(doubt.message, UserWarning):
            reason = clients.safe_reason(doubt.message, uri)
            yield warn("uri", reason, "The driver ignores this option: correct it")
    try:
        async for finding in _examine_server(client, database_name):
            yield finding
    finally:
        await clients.close_client(client)


async def _examine_server(
    client: clients.Client, database_name: str | None
) -> AsyncIterator[Finding]:
    try:
        hello = await client.admin.command("hello")
        build = await client.admin.command("buildInfo")
    except PyMongoError as error:
        yield _unreachable(error)
        raise UnreachableError from None
    yield check_version(build)
    yield check_topology(hello)
    try:
        database = clients.open_database(client, database_name)
    except ConfigurationError as error:
        advice = "Pass --database or another URI; the checks of the database were skipped"
        yield fail("database", str(error), advice)
        return
    checks = (_check_change_streams, _check_indexes, _check_oplog, _check_write_concern)
    for check in (*checks, _check_queues):
        try:
            async for finding in check(database):
                yield finding
        except (ConverseError, PyMongoError) as error:
            yield fail(
                check.__name__.removeprefix("_check_").replace("_", " "),
                failures.reason(error),
                "Check the server, and that the user of the URI may read this database",
            )


# Checks of data that was read already


def check_installation(versions: Mapping[str, str]) -> Iterable[Finding]:
    """Checks Python, the driver and the ODM."""
    yield ok("python", platform.python_version())
    packages = {"converse-mongo": version("converse-mongo"), **versions}
    installed = ", ".join(f"{name} {number}" for name, number in packages.items())
    yield ok("packages", installed)


def check_version(build: Mapping[str, Any]) -> Finding:
    """Identifies the server."""
    if embedded := build.get("secantusVersion"):
        return ok(
            "server",
            f"SecantusDB {embedded}, for demonstrations and tests; in production, use a MongoDB "
            "replica set",
        )
    return ok("server", f"MongoDB {build.get('version', '(unknown version)')}")


def check_topology(hello: Mapping[str, Any]) -> Finding:
    """Identifies a replica set, a sharded cluster or a standalone server."""
    if "setName" in hello:
        return ok("topology", f"replica set {hello['setName']}")
    if hello.get("msg") == "isdbgrid":
        return ok("topology", "sharded cluster")
    return warn(
        "topology",
        "standalone server: no change streams, no replicas",
        "Convert it to a replica set; one member is enough: "
        "https://www.mongodb.com/docs/manual/tutorial/convert-standalone-to-replica-set/",
    )


def missing_indexes(wanted: Iterable[IndexModel], present: Mapping[str, Any]) -> Iterable[str]:
    """Yields the names of the indexes in ``wanted`` that the index information lacks."""
    there = {
        (tuple(map(tuple, index["key"])), bool(index.get("unique"))) for index in present.values()
    }
    for index in wanted:
        document = index.document
        if (tuple(document["key"].items()), bool(document.get("unique"))) not in there:
            yield document["name"]


def superseded_indexes(
    known: Mapping[str, Sequence[tuple[str, int]]], present: Mapping[str, Any]
) -> list[str]:
    """Lists the indexes in ``present`` that only earlier versions use."""
    return [
        name
        for name, key in known.items()
        if name in present and list(map(tuple, present[name]["key"])) == list(key)
    ]


def check_oplog_window(seconds: Sequence[int]) -> Finding:
    """Checks the oplog window; ``seconds`` are the times of its first and last entry."""
    hours = (seconds[1] - seconds[0]) / _SECONDS_PER_HOUR
    text = f"window of {hours:.1f} h"
    if hours >= SHORT_OPLOG_HOURS:
        return ok("oplog", text)
    return warn(
        "oplog",
        text,
        "Normal for a new server. Otherwise increase it (replSetResizeOplog): a change stream that "
        "is interrupted for longer cannot resume, and watchers re-read the messages instead",
    )


def check_default_concern(concern: Mapping[str, Any], whose: str) -> Finding:
    """Checks that a majority acknowledges writes."""
    w = concern.get("w", 1)
    text = f"{whose}: w={w!r}"
    if w == "majority":
        return ok("write concern", text)
    if w == 0:
        return fail("write concern", text, "Use w='majority'")
    return warn(
        "write concern",
        text,
        "Add w=majority to the URI: with w=1, a failover can roll back acknowledged text. All "
        "other guarantees hold",
    )


# Checks that read


async def _check_change_streams(database: clients.Database) -> AsyncIterator[Finding]:
    stages = pipeline(Message.Settings.name, Conversation.Settings.name)
    try:
        stream = await change_streams.open_change_stream(database, stages)
    except PyMongoError as error:
        if not failures.refuses_change_streams(error):
            raise
        yield warn(
            "change streams",
            f"unavailable: {failures.reason(error)}",
            _advice_on_refusal(error, await servers.has_change_streams(database)),
        )
    else:
        await stream.aclose()
        yield ok("change streams", "available")


def _advice_on_refusal(error: PyMongoError, replicated: bool) -> str:
    polling = "Watchers poll instead: the same events, up to poll_interval later"
    if not replicated:
        return polling
    if "not authorized" in str(error) or "not allowed to do action" in str(error):
        return "Grant the user of the URI the role read on this database"
    return f"{polling}. See the page 'Servers and services' of the documentation"


async def _check_indexes(database: clients.Database) -> AsyncIterator[Finding]:
    present = set(await database.list_collection_names())
    for model in (Conversation, Message, MessageChunkPage, MessageValue):
        settings = model.Settings
        name, where = settings.name, f"{database.name}.{settings.name}"
        if name not in present:
            yield warn("indexes", f"{where} does not exist yet", "Converse.open() creates it")
            continue
        there = await database[name].index_information()
        missing = list(missing_indexes(settings.indexes, there))
        building = (await list_indexes(database[name])).building
        if building:
            names = ", ".join(sorted(spec["name"] for spec in building))
            yield warn(
                "indexes",
                f"{where}: {names} is being built",
                "Wait. Until then, queries that need it are slow, and Converse.open() waits",
            )
        if missing:
            yield fail(
                "indexes",
                f"{where} lacks {', '.join(missing)}",
                "Run await converse.create_indexes() once",
            )
        else:
            yield ok("indexes", f"{where} has all {len(settings.indexes)}")
        superseded = superseded_indexes(SUPERSEDED_INDEXES, there)
        if superseded and name == Message.Settings.name:
            yield warn(
                "indexes",
                f"{where} has {', '.join(superseded)}, which only earlier versions use",
                "When no process runs an earlier version, drop them (dropIndex): they make writes "
                "slower and take space",
            )


async def _check_oplog(database: clients.Database) -> AsyncIterator[Finding]:
    hello = await database.client.admin.command("hello")
    if "setName" not in hello:
        yield ok("oplog", "not checked: this is not a member of a replica set")
        return
    # The oplog of the primary, whatever read preference the URI has.
    local = database.client.get_database(
        "local", read_preference=ReadPreference.PRIMARY, read_concern=ReadConcern("local")
    )
    oplog = local.get_collection("oplog.rs")
    try:
        ends = [await oplog.find_one({}, {"ts": 1}, sort=[("$natural", way)]) for way in (1, -1)]
    except OperationFailure as error:
        yield warn(
            "oplog",
            f"not readable: {failures.reason(error)}",
            "Ask your administrator for rs.printReplicationInfo(): the window should be hours",
        )
        return
    if None in ends:
        yield ok("oplog", "empty")
    else:
        yield check_oplog_window([entry["ts"].time for entry in ends])


async def _check_write_concern(database: clients.Database) -> AsyncIterator[Finding]:
    if own := database.write_concern.document:
        yield check_default_concern(own, "of the URI")
        return
    try:
        defaults = await database.client.admin.command("getDefaultRWConcern")
    except OperationFailure as error:
        yield ok(
            "write concern",
            f"acknowledged; the server's default cannot be read: {failures.reason(error)}",
        )
        return
    yield check_default_concern(defaults.get("defaultWriteConcern", {}), "the server's default")


async def _check_queues(database: clients.Database) -> AsyncIterator[Finding]:
    messages, conversations = (
        collections.from_primary(database[model.Settings.name]) for model in (Message, Conversation)
    )
    options = Options(retry_timeout=SELECTION_SECONDS)
    work = StuckWork(Collections(messages, conversations, options=options), STUCK_SECONDS)
    found = [
        *map(overdue, await work.overdue()),
        *map(blocked, await work.blocked()),
        *map(abandoned, await work.abandoned()),
    ]
    for finding in found or [ok("queues", "no queued message is stuck")]:
        yield finding


def overdue(stuck: Stuck) -> Finding:
    """Makes the finding that nobody takes messages."""
    text = f"{_which(stuck)} due for {age(stuck.seconds)}, and no worker has taken"
    if stuck.running:
        return warn(
            "queues",
            f"{text} {_them(stuck)}; {stuck.running} others run",
            "The workers are busy, or refuse them: see their logs, and run more workers or a "
            "higher --concurrency",
        )
    return warn(
        "queues",
        f"{text} {_them(stuck)}",
        f"Is a worker running? converse-mongo worker MODULE:FUNCTION --queue "
        f"{shlex.quote(one_line(stuck.queue))}",
    )


def blocked(stuck: Stuck) -> Finding:
    """Makes the finding that messages wait for places that are free."""
    return warn(
        "queues",
        f"{_which(stuck)} blocked for {age(stuck.seconds)}, though its key has a free place",
        "A process died in between. A worker of any queue looks for such messages three times in "
        "its lease: run one",
    )


def abandoned(stuck: Stuck) -> Finding:
    """Makes the finding that nobody noticed that workers died."""
    return warn(
        "queues",
        f"{_which(stuck)} running, but the lease of its worker ran out {age(stuck.seconds)} ago",
        "Nobody looks for messages of workers that died. A worker of any queue does: run one, or "
        "call await converse.recover_stale()",
    )


def _which(stuck: Stuck) -> str:
    count = len(stuck.messages)
    first = f"message {stuck.messages[0]}" if count == 1 else f"{count} messages"
    more = "" if count == 1 else f" (the first is {stuck.messages[0]})"
    return f"{first}{more} of the queue {stuck.queue} {'is' if count == 1 else 'are'}"


def _them(stuck: Stuck) -> str:
    return "it" if len(stuck.messages) == 1 else "them"


def _unreachable(error: PyMongoError) -> Finding:
    if isinstance(error, OperationFailure):
        return fail("server", failures.reason(error), "Check the user and the password in the URI")
    return fail(
        "server",
        f"no answer within {SELECTION_SECONDS:.0f} s: {failures.reason(error)}",
        "Is MongoDB running? Check host, port and firewall. To try the library without a server: "
        "converse-mongo demo",
    )
