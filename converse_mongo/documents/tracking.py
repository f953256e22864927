"""Change tracking: the fields that the application changed on its copy of a document."""

import copy
from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any

from bson import ObjectId

from converse_mongo.domain.metadata import storable
from converse_mongo.store.saves import Changes

_IMMUTABLE = (str, int, float, datetime, ObjectId, type(None))  # enumerations of str are str
"""Types that need no copy, as most fields do not; copying is slow."""

_MISSING = object()


class ChangeTracker:
    """Remembers the fields of a copy, so that a save writes only those that changed since.

    Beanie's own ``save()`` writes every field as this process last saw it, and so overwrites what
    others stored since. (Its state management would avoid that, but encodes every chunk of every
    message on every load.)

    Attributes:
        remembered: The fields as they were last stored.
    """

    __slots__ = ("remembered",)

    def __init__(self) -> None:
        self.remembered: dict[str, Any] = {}

    def __copy__(self) -> "ChangeTracker":
        copied = ChangeTracker()
        copied.remembered = dict(self.remembered)
        return copied

    def remember(self, fields: Mapping[str, Any]) -> None:
        """Notes that ``fields`` are stored; from now on none of them counts as changed."""
        self.remembered = {
            name: value if isinstance(value, _IMMUTABLE) else copy.deepcopy(value)
            for name, value in fields.items()
        }

    def changed(self, fields: Mapping[str, Any]) -> list[str]:
        """Returns the names of the fields that differ from the remembered ones."""
        remembered = self.remembered
        return [name for name, value in fields.items() if remembered.get(name, _MISSING) != value]

    def changes(
        self,
        fields: Mapping[str, Any],
        encoded: Mapping[str, Any],
        paths: Mapping[str, str],
        mappings: Collection[str],
    ) -> Changes:
        """Returns the changes to store.

        Args:
            fields: The fields as they are now.
            encoded: The document in BSON, by path.
            paths: The fields to write, with their names in the document.
            mappings: The fields whose keys are written one by one.
        """
        changes = Changes()
        for name, path in paths.items():
            if name not in mappings:
                changes.assign[path] = encoded[path]
                continue
            before, after = self.remembered[name], fields[name]
            changes.add_mapping(
                path,
                {
                    key: storable(value)
                    for key, value in after.items()
                    if key not in before or before[key] != value
                },
                [key for key in before if key not in after],
            )
        return changes
