"""Metadata and context of the application: stored so that it comes back equal, or refused.

A mapping has three forms: that of the caller; the plain form, which :func:`check_metadata` makes of
it and the library hands out; and the form for BSON, which :func:`storable` makes of the plain form,
and :func:`restored` reverses.
"""

import numbers
import operator
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal, DecimalException
from enum import Enum
from typing import Any
from uuid import UUID

import bson
from bson import Binary, Code, DBRef, Decimal128, MaxKey, MinKey, ObjectId, Regex
from bson.binary import UUID_SUBTYPE, UuidRepresentation
from bson.errors import BSONError

from converse_mongo.domain.errors import InvalidMetadataError

MAX_METADATA_BYTES = 1024 * 1024
"""The largest metadata of one call, in bytes of BSON: 1 MiB."""

MAX_METADATA_DEPTH = 80
"""The deepest nesting of metadata; MongoDB accepts 100 levels for the whole document."""

MAX_UNSTORED = 100
"""The most keys to name of those that cannot be stored."""
_NAME_LENGTH = 200
_ROOM_FOR_UNSTORED = 64 * 1024

_INT64 = range(-(2**63), 2**63)
_BSON_TYPES = (Binary, Code, MaxKey, MinKey, Regex)
_UUID_SUBTYPES = (3, UUID_SUBTYPE)
_HINTS: tuple[tuple[type | tuple[type, ...], str], ...] = (
    ((set, frozenset), "pass a sorted list"),
    (Decimal128, "pass a decimal.Decimal"),
    (DBRef, "pass a dictionary"),
    (Binary, "pass bytes or a uuid.UUID"),
)


class _RefusedError(Exception):
    """A value cannot be stored; ``path`` leads to it."""

    path = ""


def check_metadata(metadata: object, what: str = "metadata") -> dict[str, Any]:
    """Returns ``metadata`` as MongoDB will return it: a copy that shares nothing with the argument.

    An Enum becomes its value, a numpy number a Python number, a tuple a list; times are in UTC and
    whole milliseconds.

    Raises:
        InvalidMetadataError: It is not a mapping, is too large or too deep, or a value in it would
            not come back equal. The message names the path.
    """
    if metadata is None:
        return {}
    if not isinstance(metadata, Mapping):
        raise InvalidMetadataError(
            f"{what} must be a mapping, not {type(metadata).__name__}. Nothing was written."
        )
    try:
        plain = _plain_mapping(metadata, 0)
        if "" in plain:
            raise _RefusedError("has an empty key")
    except _RefusedError as refused:
        raise InvalidMetadataError(
            f"{what}{_cut(refused.path)} {refused}. Nothing was written."
        ) from refused.__cause__
    size = len(bson.encode(storable(plain)))
    if size > MAX_METADATA_BYTES:
        raise InvalidMetadataError(
            f"{what} of {size} bytes is over the limit of {MAX_METADATA_BYTES} bytes. "
            "Nothing was written."
        )
    return plain


def _plain_mapping(mapping: Mapping[Any, Any], depth: int) -> dict[str, Any]:
    _check_depth(depth)
    plain: dict[str, Any] = {}
    for key, value in mapping.items():
        name = _plain_key(key)
        if name in plain:
            raise _RefusedError(f"has the key {_short(name)} twice")
        plain[name] = _plain_item(name, value, depth)
    # PyMongo reads such a dictionary as a DBRef, in which this is the same as no "$db" at all.
    if isinstance(plain.get("$ref"), str) and "$id" in plain and plain.get("$db", "") is None:
        raise _RefusedError("has the keys '$ref' and '$id' and None for '$db': leave '$db' out")
    return plain


def _plain_list(values: list[Any] | tuple[Any, ...], depth: int) -> list[Any]:
    _check_depth(depth)
    return [_plain_item(index, value, depth) for index, value in enumerate(values)]


def _plain_item(key: str | int, value: Any, depth: int) -> Any:
    try:
        return _plain(value, depth + 1)
    except _RefusedError as refused:
        refused.path = f"[{_short(key)}]{refused.path}"
        raise


def _check_depth(depth: int) -> None:
    if depth > MAX_METADATA_DEPTH:
        raise _RefusedError(
            f"is nested over the limit of {MAX_METADATA_DEPTH} levels, or contains itself"
        )


def _plain_key(key: object) -> str:
    if isinstance(key, Enum):
        key = key.value
    if not isinstance(key, str):
        raise _RefusedError(
            f"has the key {_short(key)} of the type {type(key).__name__}: keys must be str"
        )
    name = str.__str__(key)
    if "\0" in name:
        raise _RefusedError(f"has the key {_short(name)}, which contains a NUL")
    try:
        return _check_text(name)
    except _RefusedError as refused:
        raise _RefusedError(f"has the key {_short(name)}, which {refused}") from None


def _plain(value: Any, depth: int) -> Any:
    """Returns ``value`` as it will come back.

    Raises:
        _RefusedError: It would not come back equal.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Enum):
        return _plain(value.value, depth)
    if isinstance(value, _BSON_TYPES):
        return _same_type(value)
    if isinstance(value, str):
        return _check_text(str.__str__(value))
    if isinstance(value, Mapping):
        return _plain_mapping(value, depth)
    if isinstance(value, list | tuple):
        return _plain_list(value, depth)
    if isinstance(value, bytes | bytearray):
        return bytes(memoryview(value))
    if isinstance(value, datetime):
        return _moment(value)
    if isinstance(value, Decimal):
        return _decimal(value)
    if isinstance(value, UUID):
        return UUID(int=value.int)
    if isinstance(value, ObjectId):
        return ObjectId(value.binary)
    return _number(value)


def _check_text(text: str) -> str:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise _RefusedError("contains a lone surrogate, which UTF-8 cannot hold") from error
    return text


def _number(value: Any) -> int | float | bool:
    if isinstance(value, numbers.Integral):
        whole = operator.index(value)
        if whole not in _INT64:
            raise _RefusedError("is an integer of more than 64 bits")
        return whole
    if isinstance(value, numbers.Real) and not isinstance(value, numbers.Rational):
        real = float(value)
        if real != value and value == value:  # NaN is not itself
            raise _RefusedError(f"is a {type(value).__name__} that no 64-bit float equals")
        return real
    if _type_name(value) in ("numpy.bool", "numpy.bool_"):
        return bool(value)
    raise _unknown(value)


def _type_name(value: object) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


def _unknown(value: object) -> _RefusedError:
    hints = (hint for known, hint in _HINTS if isinstance(value, known))
    hint = next(hints, "convert it to a type that JSON or BSON has")
    return _RefusedError(f"is a {_type_name(value)}, which would not come back equal: {hint}")


def _moment(value: datetime) -> datetime:
    try:
        if value.utcoffset() is None:
            raise _RefusedError("is a naive datetime: give it a time zone, such as UTC")
        utc = value.astimezone(UTC)
        milliseconds = utc.microsecond // 1000 * 1000
        return datetime(
            *(utc.year, utc.month, utc.day, utc.hour, utc.minute, utc.second, milliseconds),
            tzinfo=UTC,
        )
    except (OverflowError, ValueError, TypeError) as error:
        raise _RefusedError(f"is not a time that MongoDB can hold ({error})") from error


def _decimal(value: Decimal) -> Decimal:
    if value.is_snan():
        raise _RefusedError("is a signaling NaN")
    try:
        return Decimal128(value).to_decimal()
    except DecimalException as error:
        raise _RefusedError(
            "is a Decimal of more than 34 digits, or outside of the range of Decimal128"
        ) from error


def _same_type(value: Any) -> Any:
    """Returns a value of BSON's own types, if it comes back as one."""
    if isinstance(value, Binary) and value.subtype in _UUID_SUBTYPES:
        raise _unknown(value)
    try:
        again = bson.decode(bson.encode({"value": value}))["value"]
    except (BSONError, OverflowError, ValueError, TypeError) as error:
        raise _RefusedError(f"cannot be stored in BSON ({error})") from error
    if type(again) is not type(value) or again != value:
        raise _unknown(value)
    return again


def _short(value: object) -> str:
    return _cut(repr(value))


def _cut(text: str) -> str:
    return text if len(text) <= _NAME_LENGTH else f"{text[:_NAME_LENGTH]}…"


_AS_THEY_ARE = frozenset({str, int, float, bool, type(None), ObjectId, bytes})


def storable(value: Any) -> Any:
    """Makes of the plain form a form that BSON holds, whatever the settings of the client are."""
    if type(value) in _AS_THEY_ARE:
        return value
    if isinstance(value, Mapping):
        return {key: storable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [storable(item) for item in value]
    if isinstance(value, Decimal):
        return Decimal128(value)
    if isinstance(value, UUID):
        return Binary.from_uuid(value, UuidRepresentation.STANDARD)
    return value


def restored(value: Any) -> Any:
    """Makes the plain form of what PyMongo decoded; returns the same object if they are equal."""
    if isinstance(value, dict):
        changed = {
            key: new
            for key, item in value.items()
            if type(item) not in _AS_THEY_ARE and (new := restored(item)) is not item
        }
        return {**value, **changed} if changed else value
    if isinstance(value, list):
        items = [item if type(item) in _AS_THEY_ARE else restored(item) for item in value]
        same = all(new is item for new, item in zip(items, value, strict=True))
        return value if same else items
    if isinstance(value, DBRef):
        return restored(dict(value.as_doc()))
    if isinstance(value, Decimal128):
        return value.to_decimal()
    if isinstance(value, Binary) and value.subtype == UUID_SUBTYPE and len(value) == 16:
        return value.as_uuid(UuidRepresentation.STANDARD)
    if isinstance(value, datetime):
        return value if value.tzinfo is UTC else aware(value)
    return value


def aware(moment: datetime) -> datetime:
    """Returns ``moment`` in UTC with a time zone, which BSON lacks and not every driver adds."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def is_addressable(key: str) -> bool:
    """Returns whether a key can be part of the path of an update operator."""
    return "." not in key and not key.startswith("$")


def keep_storable(metadata: object) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns the storable part of ``metadata``, and the types of the rest by their keys."""
    if metadata is None:
        return {}, {}
    if not isinstance(metadata, Mapping):
        return {}, {"metadata": type(metadata).__name__}
    kept: dict[str, Any] = {}
    unstored: dict[str, str] = {}
    room = MAX_METADATA_BYTES - _ROOM_FOR_UNSTORED
    for key, value in list(metadata.items()):
        try:
            checked = check_metadata({key: value})
            size = len(bson.encode(storable(checked)))
        except Exception:  # noqa: BLE001 - an object of the application may raise anything
            size = room + 1
        if size <= room:
            kept |= checked
            room -= size
        elif len(unstored) < MAX_UNSTORED:
            unstored[_name(key)] = type(value).__name__
    return kept, unstored


def _name(key: object) -> str:
    try:
        name = str(key)
    except Exception:  # noqa: BLE001
        name = type(key).__name__
    return name.encode("utf-8", "replace").decode().replace("\0", "?")[:_NAME_LENGTH]
