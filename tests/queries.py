"""What tests of queries have in common: which index answers one without the documents."""

from collections.abc import Iterator, Mapping
from typing import Any

from pymongo import IndexModel

from converse_mongo import Conversation, Message, MessageChunkPage, MessageValue

INDEXES: dict[str, list[IndexModel]] = {
    model.Settings.name: list(model.Settings.indexes)
    for model in (Conversation, Message, MessageChunkPage, MessageValue)
}


def fields_of(match: Mapping[str, Any]) -> Iterator[str]:
    """The fields that a filter looks at."""
    for name, value in match.items():
        if name in ("$or", "$and"):
            for clause in value:
                yield from fields_of(clause)
        else:
            yield name


def is_covered(find: Mapping[str, Any]) -> bool:
    """Whether an index of the library holds all that a ``find`` command filters and asks for.

    https://www.mongodb.com/docs/manual/core/query-optimization/#covered-query
    """
    wanted = {name for name, shown in find.get("projection", {}).items() if shown}
    if not wanted:
        return False  # the whole document
    if find["projection"].get("_id", 1):
        wanted.add("_id")
    asked = set(fields_of(find["filter"]))
    for index in [*INDEXES[find["find"]], IndexModel("_id")]:
        key = list(index.document["key"])
        partial = set(index.document.get("partialFilterExpression", ()))
        if key[0] in asked and partial <= asked and wanted | asked <= set(key):
            return True
    return False
