"""Plans of queries, as MongoDB explains them: what a stage of them says of their cost.

The shapes are those of https://www.mongodb.com/docs/manual/reference/explain-results/, of both
query engines, of a replica set and of a sharded cluster.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from tests.queries import is_covered

# What is no part of the plan that is used, or says the same in another way.
_ASIDE = frozenset({"rejectedPlans", "slotBasedPlan", "parsedQuery", "command", "queryHash"})
_BY_ID = frozenset({"IDHACK", "EXPRESS_IXSCAN", "EXPRESS_CLUSTERED_IXSCAN", "EXPRESS_UPDATE"})
_SORTS = frozenset({"SORT", "SORT_SIMPLE", "SORT_DEFAULT", "SORT_KEY_GENERATOR", "$sort"})
_EXPLAINED = ("find", "update", "delete", "findAndModify", "aggregate", "count", "distinct")
_OPTIONS = {
    "find": ("filter", "projection", "sort", "limit", "skip"),
    "update": ("updates",),
    "delete": ("deletes",),
    "findAndModify": ("query", "update", "fields", "sort", "new", "remove", "upsert"),
    "aggregate": ("pipeline", "cursor"),
    "count": ("query", "limit"),
    "distinct": ("key", "query"),
}


def stages(explained: Any) -> Iterator[str]:
    """The names of all stages of the winning plan, on all shards."""
    if isinstance(explained, Mapping):
        if isinstance(explained.get("stage"), str):
            yield explained["stage"]
        for name, value in explained.items():
            if name in ("$sort", "$group"):  # stages of an aggregation that are named by a key
                yield name
            if name not in _ASIDE:
                yield from stages(value)
    elif isinstance(explained, list | tuple):
        for value in explained:
            yield from stages(value)


def documents_examined(explained: Mapping[str, Any]) -> int:
    """How many documents were looked at, on all shards together."""
    return int(explained["executionStats"]["totalDocsExamined"])


def to_explain(name: str, command: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The commands whose plans tell what a command of the library costs; none for an insert."""
    if name not in _EXPLAINED or _is_change_stream(command):
        return
    query = {key: command[key] for key in (name, *_OPTIONS[name]) if key in command}
    several = {"update": "updates", "delete": "deletes"}.get(name)
    if several is None:
        yield query
        return
    for one in command[several]:
        yield {**query, several: [one]}


def _is_change_stream(command: Mapping[str, Any]) -> bool:
    return any("$changeStream" in stage for stage in command.get("pipeline", ()))


def faults(query: Mapping[str, Any], explained: Mapping[str, Any]) -> list[str]:
    """What is wrong with the plan of a query."""
    if query.get("find") and not query.get("filter") and query.get("limit") == 1:
        return []  # any document: it is asked for the time of the answer
    plan = set(stages(explained.get("queryPlanner", explained)))
    found = []
    if "COLLSCAN" in plan:
        found.append("scans the collection")
    if plan & _SORTS:
        found.append("sorts in memory")
    # One document by its _id is read past all indexes but that one.
    if "find" in query and is_covered(query) and not plan & _BY_ID:
        if "FETCH" in plan:
            found.append("fetches documents that an index covers")
        elif documents_examined(explained):
            found.append("examines documents that an index covers")
    return found
