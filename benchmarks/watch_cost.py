"""What a process costs the server that watches or only writes, against what it was before.

First, the change events that a process receives which only writes, while another streams messages.
Before, it received what each process that watches does, and that with fields that nobody uses.

Second, one comparison of watched conversations with the database: the commands, the documents that
they bring, and what MongoDB examines for them. Before, it fetched every message that was ever saved
in them. SecantusDB scans the collection for such queries and does not explain what MongoDB would
do, so there are fewer conversations on it, and what is examined is left out.
"""

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import bson
from bson import ObjectId, Timestamp
from pymongo import MongoClient, monitoring

from benchmarks.figures import BenchmarkError, Figure, compare
from benchmarks.settings import Setting
from converse_mongo import Converse
from converse_mongo.driver.change_streams import open_change_stream

__all__ = ["run"]

MESSAGES = 1000
APPENDS = 5
TEXT = " token" * 10
SIZES = {"given": (1000, 200), "embedded": (50, 10)}
"""Watched conversations, and saved messages in each, by the kind of server."""
PATIENCE_SECONDS = 60.0


async def run(setting: Setting) -> list[Figure]:
    """Measures both, once each: they count, and take no times."""
    return [*await _events(setting), *await _comparison(setting)]


class Received(monitoring.CommandListener):
    """Counts the change events that a client receives, and keeps its queries with the replies."""

    def __init__(self) -> None:
        self.events = self.bytes = self.appends = self.append_bytes = 0
        self.queries: list[tuple[dict[str, Any], int]] = []
        self._sent: dict[int, dict[str, Any]] = {}

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        """Keeps a query."""
        if event.command_name == "find":
            self._sent[event.request_id] = dict(event.command)

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        """Takes what it brought."""
        cursor = event.reply.get("cursor", {})
        batch = cursor.get("nextBatch", cursor.get("firstBatch", []))
        if "postBatchResumeToken" in cursor:
            self._take(batch)
        elif (sent := self._sent.pop(event.request_id, None)) is not None:
            self.queries.append((sent, len(batch)))
        elif event.command_name == "getMore" and self.queries:
            query, count = self.queries[-1]
            self.queries[-1] = query, count + len(batch)

    def _take(self, changes: list[dict[str, Any]]) -> None:
        for change in changes:
            size = len(bson.encode(change))
            self.events += 1
            self.bytes += size
            updated = change.get("updateDescription", {}).get("updatedFields", {})
            if "next_sequence" in updated:
                self.appends += 1
                self.append_bytes += size

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        """Forgets it."""
        self._sent.pop(event.request_id, None)


# The events


def _told_before(messages: str, conversations: str) -> list[dict[str, Any]]:
    updated = "updateDescription.updatedFields"
    wanted = [
        {"ns.coll": messages},
        {"ns.coll": conversations, "operationType": {"$ne": "update"}},
        {"ns.coll": conversations, f"{updated}.revision": {"$exists": True}},
        {"to.coll": messages},
        {"to.coll": conversations},
        {"operationType": {"$in": ["dropDatabase", "invalidate"]}},
    ]
    left_out = (f"{updated}.content", f"{updated}.chunk_lengths", "fullDocument.context")
    return [{"$match": {"$or": wanted}}, {"$project": dict.fromkeys(left_out, 0)}]


async def _events(setting: Setting) -> list[Figure]:
    setting.note(f"{MESSAGES:,} messages, streamed beside a process that only writes")
    now, before, watched = Received(), Received(), Received()
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(setting.database())
        uri = setting.server.uri

        async def facade(*listeners: Received) -> Converse:
            options = {"event_listeners": list(listeners)}
            return await stack.enter_async_context(Converse(uri, database, client_options=options))

        streaming, writing, former = await facade(), await facade(now), await facade(before)
        viewing = await facade(watched)
        own = await (await writing.start_conversation()).start_streaming_assistant()
        await stack.enter_async_context(own.writer())
        await stack.enter_async_context(viewing.watch_message(own.id))
        names = streaming.message_model.Settings.name, streaming.conversation_model.Settings.name
        messages = former.message_model.store().messages
        feed = await open_change_stream(messages.database, _told_before(*names))
        stack.push_async_callback(feed.aclose)
        for each in (writing, viewing):
            while not each.statistics().streams_opened:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.01)
        conversation = await streaming.start_conversation()
        for _ in range(MESSAGES):
            message = await conversation.start_streaming_assistant()
            for _ in range(APPENDS):
                await message.append_chunk(TEXT)
            await message.complete_streaming({"finish_reason": "stop"})
        async with asyncio.timeout(PATIENCE_SECONDS):
            while now.events < MESSAGES or before.events < MESSAGES * (APPENDS + 3):
                await feed.next_batch()
            while watched.appends < MESSAGES * APPENDS:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.01)
    what = f"a process that only writes, {MESSAGES:,} messages of {APPENDS} appends elsewhere"
    watching = f"a process that watches, {what.partition(', ')[2]}"
    size = len(TEXT)
    return [
        compare(name, unit, {of: [after], "before": [earlier]}, of=of, against="before")
        for of, name, unit, after, earlier in (
            (what, "change events", "events", now.events, before.events),
            (what, "bytes of them", "bytes", now.bytes, before.bytes),
            (watching, "bytes of all change events", "bytes", watched.bytes, before.bytes),
            (
                watching,
                "bytes of an append's event beside its text",
                "bytes",
                watched.append_bytes / watched.appends - size,
                before.append_bytes / before.appends - size,
            ),
        )
    ]


# The comparison


@dataclass
class Counted:
    """What some queries took.

    Attributes:
        commands: How many there were.
        documents: How many documents they brought.
        examined: How many MongoDB looked at; ``None`` where it does not tell.
        keys: The same of index keys.
    """

    commands: int
    documents: int
    examined: int | None = None
    keys: int | None = None


async def _comparison(setting: Setting) -> list[Figure]:
    conversations, saved = SIZES[setting.server.kind]
    setting.note(f"{conversations:,} watched conversations with {saved} saved messages each")
    received = Received()
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(setting.database())
        converse = await stack.enter_async_context(
            Converse(
                setting.server.uri,
                database,
                change_streams=False,
                poll_interval=3600,
                check_interval=3600,
                client_options={"event_listeners": [received]},
            )
        )
        ids = [ObjectId() for _ in range(conversations)]
        with MongoClient[dict[str, Any]](setting.server.uri) as client:
            for conversation_id in ids:
                _plant(client[database], conversation_id, saved)
            for conversation_id in ids:
                watcher = converse.watch_conversation(conversation_id, "now")
                await stack.enter_async_context(watcher)
            comparison = converse._open_parts.hub._reconciler  # noqa: SLF001 - it has no other door
            await comparison.run()
            received.queries.clear()
            await comparison.run()
            now = _counted(received, client, database, setting)
            with MongoClient[dict[str, Any]](
                setting.server.uri, event_listeners=[former := Received()]
            ) as other:
                _compare_before(other[database], ids, saved)
            before = _counted(former, client, database, setting)
    what = f"{conversations:,} conversations, {saved} saved messages each"
    return [
        compare(name, unit, {what: [after], "before": [earlier]}, of=what, against="before")
        for name, unit, after, earlier in (
            ("commands of a comparison", "commands", now.commands, before.commands),
            ("documents that they bring", "documents", now.documents, before.documents),
            ("documents examined", "documents", now.examined, before.examined),
            ("index keys examined", "keys", now.keys, before.keys),
        )
        if after is not None and earlier is not None
    ]


def _plant(database: Any, conversation_id: ObjectId, saved: int) -> None:
    now = datetime.now(UTC)
    conversation = {"_id": conversation_id, "next_position": saved}
    database.conversations.insert_one(conversation | {"created_at": now, "updated_at": now})
    # Saved an hour ago: what was saved in the last seconds is looked at once more.
    marked = int((now - timedelta(hours=1)).timestamp())
    database.messages.insert_many(
        {
            "_id": ObjectId(),
            "conversation_id": conversation_id,
            "position": position,
            "role": "user",
            "status": "completed",
            "content": TEXT,
            "next_sequence": 0,
            "revision": 1,
            "save_mark": Timestamp(marked, position + 1),
            "created_at": now,
        }
        for position in range(saved)
    )


def _compare_before(database: Any, ids: list[ObjectId], end: int) -> None:
    """The queries of a comparison as they were."""
    behind = [{"conversation_id": each, "position": {"$gte": end}} for each in ids]
    list(database.messages.find({"$or": behind}, {"conversation_id": 1}))
    list(database.conversations.find({"_id": {"$in": ids}}, {"_id": 1}))
    there = {"conversation_id": {"$in": ids}, "revision": {"$gte": 1}}
    list(database.messages.find(there, {"conversation_id": 1, "revision": 1, "position": 1}))


def _counted(received: Received, client: Any, database: str, setting: Setting) -> Counted:
    queries = [query for query, _ in received.queries]
    if not queries:
        raise BenchmarkError("No comparison was made.")
    counted = Counted(len(queries), sum(count for _, count in received.queries))
    if setting.server.kind == "embedded":
        return counted
    plans = [_explained(client[database], query) for query in queries]
    counted.examined = sum(plan["totalDocsExamined"] for plan in plans)
    counted.keys = sum(plan["totalKeysExamined"] for plan in plans)
    return counted


def _explained(database: Any, query: Mapping[str, Any]) -> Mapping[str, Any]:
    kept = {name: query[name] for name in ("find", "filter", "projection", "sort") if name in query}
    explained = database.command({"explain": kept, "verbosity": "executionStats"})
    stats: Mapping[str, Any] = explained["executionStats"]
    return stats
