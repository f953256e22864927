"""What clients see of the fields that may hold what is not for them."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from converse_mongo.domain.jsonable import jsonable
from converse_mongo.domain.part_identity import PartIdentity
from converse_mongo.domain.surrogates import mend_all
from converse_mongo.domain.work import PendingCall

PRIVATE_ERROR = "The answer could not be completed."
SAFE_ERRORS = frozenset({"interrupted"})
"""Errors that the library itself stores, for an orphan."""
INTERNAL = frozenset({"error_type", "unstored"})
"""Keys of metadata that name classes of the application."""

Shown: TypeAlias = bool | frozenset[str]
"""Whether a part is shown, or the names of the fields that are."""


class Presentation:
    """Picks what clients see of the fields that may hold what is not for them.

    By default: all metadata that names no classes, all parts, no stored error but the library's
    own, and no reason of a stop. The data of the provider of a model are never shown.
    """

    def metadata(self, metadata: Mapping[str, Any]) -> Any:
        """The metadata that clients see."""
        return as_json({key: value for key, value in metadata.items() if key not in INTERNAL})

    def part(self, identity: PartIdentity) -> Shown:  # noqa: ARG002 - others choose
        """What clients see of a part."""
        return True

    def shows_call(
        self,
        call: PendingCall,  # noqa: ARG002 - others hide some
        records: Sequence[Mapping[str, Any]] | None,  # noqa: ARG002
    ) -> bool:
        """Returns whether clients see that a tool call waits, which has one of these records."""
        return True

    def error(self, error: str) -> str:
        """The error that clients see."""
        known = error.partition(" in attempt ")[0]  # of a queued message, it says which
        return known if known in SAFE_ERRORS else PRIVATE_ERROR

    def reason(self, reason: str | None) -> str | None:  # noqa: ARG002 - others show it
        """The reason of a stop that clients see."""
        return None


def as_json(value: Any) -> Any:
    """Returns a value in the types and with the texts that JSON can have."""
    return mend_all(jsonable(value))
