"""What a push costs into one array that nobody takes pages out of, with the raw driver.

It shows what pages are for; nothing of the library is in it, and it has no target.
"""

import asyncio
from datetime import UTC, datetime
from typing import Any

from bson import ObjectId
from pymongo import MongoClient
from pymongo.collection import Collection

from benchmarks.figures import Figure, compare
from benchmarks.meters import Cost, Meter, Traffic
from benchmarks.settings import Setting

__all__ = ["run"]

LENGTHS = 100, 10_000
PUSHES = 16
TEXT = " token."


async def run(setting: Setting) -> list[Figure]:
    """Measures it, each round with new documents that are pushed to in turns."""
    traffic = Traffic()
    async with setting.database() as database:
        with MongoClient[dict[str, Any]](setting.server.uri, event_listeners=[traffic]) as client:
            meter = Meter(setting.server, traffic)
            rounds = []
            for number in range(setting.rounds):
                setting.note(f"round {number + 1} of {setting.rounds}")
                rounds.append(await asyncio.to_thread(_round, meter, client[database].messages))
    return figures(rounds)


def _round(meter: Meter, messages: Collection[dict[str, Any]]) -> dict[int, Cost]:
    costs = {}
    for length in LENGTHS:
        chunks = [_chunk(sequence) for sequence in range(length)]
        inserted = messages.insert_one({"chunks": chunks, "next_sequence": length})
        costs[length] = Cost()
        with meter.measure(costs[length]):
            for sequence in range(length, length + PUSHES):
                messages.update_one(
                    {"_id": inserted.inserted_id, "next_sequence": sequence},
                    {
                        "$push": {"chunks": {"$each": [_chunk(sequence)]}},
                        "$inc": {"next_sequence": 1},
                    },
                )
        messages.delete_one({"_id": inserted.inserted_id})
    return costs


def _chunk(sequence: int) -> dict[str, Any]:
    return {
        "sequence": sequence,
        "content": TEXT,
        "created_at": datetime.now(UTC),
        "append_id": ObjectId(),
    }


def figures(rounds: list[dict[int, Cost]]) -> list[Figure]:
    """The figures of a push, the long array against the short one."""
    found = []
    for name, attribute in (("server time", "server_seconds"), ("time", "seconds")):
        if any(getattr(cost, attribute) is None for costs in rounds for cost in costs.values()):
            continue  # the server does not tell
        series = {
            _label(length): [getattr(costs[length], attribute) * 1e6 / PUSHES for costs in rounds]
            for length in LENGTHS
        }
        short, long = map(_label, LENGTHS)
        found.append(compare(name, "µs", series, of=long, against=short))
    return found


def _label(length: int) -> str:
    return f"{length:,} in the array"
