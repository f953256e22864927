"""Owners of conversations: as callers pass them, and as documents hold them."""

from collections.abc import Mapping
from enum import Enum
from typing import Any, TypeAlias
from uuid import UUID

from bson import ObjectId
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from converse_mongo.domain.errors import InvalidInputError
from converse_mongo.domain.validation import check_content

OwnerKey: TypeAlias = tuple[str, str]
"""The type and the id of an owner."""


class Owner(BaseModel):
    """The owner of a conversation: a kind of thing in the application, and its id there.

    The id is ``str``, ``int``, ``ObjectId`` or ``UUID``, and is stored as text.
    """

    model_config = ConfigDict(frozen=True)

    type: str
    id: str

    @model_validator(mode="before")
    @classmethod
    def _from_pair(cls, value: Any) -> Any:
        if isinstance(value, tuple | list) and len(value) == 2:
            value = {"type": value[0], "id": value[1]}
        if not isinstance(value, dict) or not {"type", "id"} <= value.keys():
            return value
        kind, name = value["type"], value["id"]
        if not isinstance(kind, str):
            raise InvalidInputError(
                f"The type of an owner must be str, not {type(kind).__name__}. Nothing was written."
            )
        if isinstance(name, bool) or not isinstance(name, str | int | ObjectId | UUID):
            raise InvalidInputError(
                "The id of an owner must be str, int, ObjectId or UUID, not "
                f"{type(name).__name__}. Nothing was written."
            )
        pair = {"type": _text(kind), "id": _text(name)}
        for part in pair.values():
            check_content(part)
        return {**value, **pair}

    @property
    def pair(self) -> tuple[str, str]:
        """The type and the id."""
        return self.type, self.id


def _text(value: str | int | ObjectId | UUID) -> str:
    if isinstance(value, Enum):
        value = value.value
    return str.__str__(value) if isinstance(value, str) else str(value)


def check_owner(owner: object) -> Owner:
    """Returns the owner that a caller passed.

    Raises:
        InvalidInputError: It is not a pair of a type and an id.
    """
    try:
        return Owner.model_validate(owner)
    except ValidationError as error:
        causes = [each["ctx"]["error"] for each in error.errors() if "error" in each.get("ctx", {})]
        reason = f"{causes[0]} " if causes else ""
        raise InvalidInputError(
            f"{owner!r} is not an owner: {reason}Pass a type and an id, such as ('user', '42')."
        ) from error


def owner_key(stored: Mapping[str, Any]) -> OwnerKey | None:
    """Returns the owner in a document of a conversation; ``None`` if it has no valid one."""
    owner = stored.get("owner")
    if not isinstance(owner, Mapping):
        return None
    kind, name = owner.get("type"), owner.get("id")
    return (kind, name) if isinstance(kind, str) and isinstance(name, str) else None
