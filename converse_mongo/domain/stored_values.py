"""Stored values: values of parts that are too large for a chunk, and the references to them.

Such a value is in a collection of its own. A chunk, and the record of a part, have its reference in
``values``, under the name of the field: ``id``, ``size`` and ``hash``. A reference needs its size;
browsers get nothing else of it. What is no reference is void.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from types import MappingProxyType
from typing import Any

import bson
from bson import Code, CodecOptions

from converse_mongo.domain.errors import InvalidInputError, InvalidMetadataError
from converse_mongo.domain.metadata import MAX_METADATA_BYTES, restored, storable
from converse_mongo.domain.validation import (
    MAX_INLINE_VALUE_BYTES,
    MAX_VALUE_BYTES,
    utf8_size,
)

REFERENCE_BYTES = 224
"""An upper bound of the size of a reference, without the name of its field, in bytes."""

_INLINE = frozenset(
    {
        *("kind", "id", "name", "call_id", "executor", "transient"),
        *("started", "approval", "preliminary", "error"),
    }
)
"""Fields that tell what a part is and how far: they are never apart."""

_DECODED: CodecOptions[dict[str, Any]] = CodecOptions(tz_aware=True)


@dataclass(frozen=True, slots=True)
class StoredValue:
    """A value that is too large for its part: ``await message.load_value(value)`` returns it.

    Attributes:
        size: Its size, in bytes of BSON.
        hash: The SHA-256 of its BSON, in hexadecimal digits.
        id: Its id; empty if it is not known here.
    """

    size: int
    hash: str = ""
    id: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Returns the reference as it is stored."""
        named = {"id": self.id, "size": self.size, "hash": self.hash}
        return {name: value for name, value in named.items() if value != ""}


def check_stored(value: object) -> StoredValue:
    """Returns what is to be loaded.

    Raises:
        InvalidInputError: It is not a :class:`StoredValue`.
    """
    if not isinstance(value, StoredValue):
        raise InvalidInputError(
            f"load_value loads a StoredValue of a part, not {type(value).__name__}: all that is "
            "smaller is in the part itself."
        )
    return value


NO_VALUES: Mapping[str, StoredValue] = MappingProxyType({})


def references(found: object) -> dict[str, StoredValue]:
    """Returns the references in the ``values`` of a chunk or a record; what is none is left out."""
    found = restored(found)
    if not isinstance(found, Mapping):
        return {}
    read = {name: _reference(each) for name, each in found.items()}
    return {name: value for name, value in read.items() if value is not None}


def _reference(found: object) -> StoredValue | None:
    if not isinstance(found, Mapping):
        return None
    size = found.get("size")
    if isinstance(size, float) and size.is_integer():  # JavaScript has no other numbers
        size = int(size)
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 2**53:
        return None
    return StoredValue(int(size), _text(found.get("hash")), _text(found.get("id")))


def _text(value: object) -> str:
    return value if isinstance(value, str) and not isinstance(value, Code) else ""


def parted(fields: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Splits fields into those with their values, and the references in stored form."""
    plain: dict[str, Any] = {}
    stored: dict[str, dict[str, Any]] = {}
    for name, value in fields.items():
        if isinstance(value, StoredValue):
            stored[name] = value.to_dict()
        else:
            plain[name] = value
    return plain, stored


def reference_size(names: Mapping[str, Any]) -> int:
    """Returns an upper bound of the size that references take in a document, in bytes."""
    return sum([REFERENCE_BYTES + utf8_size(name) for name in names])


@dataclass(frozen=True, slots=True)
class LargeValue:
    """A value that is to be stored apart.

    Attributes:
        data: The value in BSON.
        hash: The SHA-256 of the data.
    """

    data: bytes
    hash: str

    def reference(self, value_id: str) -> StoredValue:
        """Returns the reference to this value under an id."""
        return StoredValue(len(self.data), self.hash, value_id)


NOTHING_LARGE: Mapping[str, LargeValue] = MappingProxyType({})


def value_of(data: bytes) -> Any:
    """Returns the value of a :class:`LargeValue`, in the plain form."""
    return restored(bson.decode(data, _DECODED))["value"]


def set_apart(
    fields: Mapping[str, Any], what: str
) -> tuple[Mapping[str, Any], Mapping[str, LargeValue]]:
    """Splits off the values that are too large, or that make all of the fields too large together.

    Args:
        fields: The fields, in the plain form.
        what: A name for them in errors.

    Raises:
        InvalidInputError: A value is over the limit.
        InvalidMetadataError: What is left is over the limit.
    """
    size = len(bson.encode(storable(fields)))
    if size <= MAX_INLINE_VALUE_BYTES:
        return fields, NOTHING_LARGE
    encoded = {
        name: bson.encode({"value": storable(value)})
        for name, value in fields.items()
        if name not in _INLINE
    }
    large: dict[str, LargeValue] = {}
    for name in sorted(encoded, key=lambda name: len(encoded[name]), reverse=True):
        data = encoded[name]
        if len(data) > MAX_VALUE_BYTES:
            raise InvalidInputError(
                f"{what}[{name!r}] of {len(data)} bytes is over the limit of {MAX_VALUE_BYTES} "
                "bytes for one value: keep it elsewhere, and refer to it. Nothing was written."
            )
        if len(data) <= (
            MAX_INLINE_VALUE_BYTES if size <= MAX_METADATA_BYTES else 2 * REFERENCE_BYTES
        ):
            break
        large[name] = LargeValue(data, sha256(data).hexdigest())
        size -= len(data)
    inline = {name: value for name, value in fields.items() if name not in large}
    size = len(bson.encode(storable(inline))) + reference_size(large)
    if size > MAX_METADATA_BYTES:
        raise InvalidMetadataError(
            f"{what} of {size} bytes is over the limit of {MAX_METADATA_BYTES} bytes. "
            "Nothing was written."
        )
    return inline, large
