"""The application's JSON: what comes back equal, what is refused, and where it is."""

import enum
import math
import re
from collections import OrderedDict, namedtuple
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from types import MappingProxyType
from typing import Any
from uuid import UUID

import bson
import pytest
from bson import Binary, Code, DBRef, Decimal128, Int64, MinKey, ObjectId, Regex, Timestamp
from bson.binary import UuidRepresentation
from bson.codec_options import CodecOptions

from converse_mongo import InvalidMetadataError
from converse_mongo.domain.metadata import (
    MAX_METADATA_BYTES,
    MAX_METADATA_DEPTH,
    check_metadata,
    keep_storable,
    restored,
    storable,
)


class Color(enum.Enum):
    RED = "red"
    TEN = 10


class Text(str):
    __slots__ = ()


class Real:
    """A number that only :mod:`numbers` knows, as those of numpy are."""

    def __init__(self, value: float) -> None:
        self._value = value

    def __float__(self) -> float:
        return float(self._value)

    def __eq__(self, other: object) -> bool:
        return self._value == other

    __hash__ = None  # type: ignore[assignment]


class Whole(Real):
    def __index__(self) -> int:
        return int(self._value)


def _register() -> None:
    import numbers

    numbers.Real.register(Real)
    numbers.Integral.register(Whole)


_register()

Pair = namedtuple("Pair", "left right")  # noqa: PYI024
MOMENT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=timezone(timedelta(hours=2)))
IN_UTC = datetime(2026, 1, 2, 1, 4, 5, 678000, tzinfo=UTC)
RUN = UUID("8a8e6a1e-1a5c-4d0e-9f0a-3f6f7c1d2e3f")


def read_back(metadata: Mapping[str, Any], uuids: int = UuidRepresentation.STANDARD) -> Any:
    options: CodecOptions[dict[str, Any]] = CodecOptions(tz_aware=True, uuid_representation=uuids)
    return restored(bson.decode(bson.encode({"m": storable(metadata)}), options)["m"])


CASES: list[tuple[dict[str, Any], dict[str, Any] | None]] = [
        ({"$ref": "#/a", "$id": "b", "more": {"$ref": "c", "$id": 1}}, None),
        ({"$id": 1, "$ref": "a", "$db": "d", "x": [{"$id": 2, "$ref": "b"}]}, None),
        ({"$ref": 5, "$id": 1}, None),
        ({"$ref": "a", "$id": {"nested": {"$ref": "b", "$id": 2}}}, None),
        ({"$ref": "a"}, None),
        ({"$id": "a", "properties": {"a.b": {"$ref": "a", "$id": None}}}, None),
        ({"cost": Decimal("0.0100"), "run": RUN, "all": [Decimal("-1E-30"), [RUN]]}, None),
        ({"gpt-4.1": {"$x": {"a.b": 1, "": 2}}}, None),
        ({"a": Color.RED, "b": [Color.TEN], "c": {"d": {Color.RED: Color.RED}}},
         {"a": "red", "b": [10], "c": {"d": {"red": "red"}}}),
        ({"a": (1, (2,)), "b": Pair(1, 2)}, {"a": [1, [2]], "b": [1, 2]}),
        ({"a": Text("x"), Text("b"): OrderedDict(c=1), "d": MappingProxyType({"e": 1})},
         {"a": "x", "b": {"c": 1}, "d": {"e": 1}}),
        ({"a": bytearray(b"x"), "b": b"y"}, {"a": b"x", "b": b"y"}),
        ({"a": MOMENT, "b": [datetime.min.replace(tzinfo=UTC)]},
         {"a": IN_UTC, "b": [datetime.min.replace(tzinfo=UTC)]}),
        ({"a": 2**63 - 1, "b": -(2**63), "c": Int64(5), "d": True, "e": 0.1, "f": math.inf}, None),
        ({"a": Real(0.5), "b": Whole(5)}, {"a": 0.5, "b": 5}),
        ({"a": ObjectId("0" * 24), "b": Regex("x", "i"), "c": MinKey(), "d": Code("x"),
          "e": Binary(b"x", 128), "f": "nul\0"}, None),
    ]  # fmt: skip


@pytest.mark.parametrize(("given", "plain"), CASES, ids=[str(n) for n in range(len(CASES))])
def test_metadata__comes_back_equal(given: dict[str, Any], plain: dict[str, Any] | None) -> None:
    checked = check_metadata(given)
    assert checked == (given if plain is None else plain)
    for uuids in (
        UuidRepresentation.STANDARD,
        UuidRepresentation.UNSPECIFIED,
        UuidRepresentation.JAVA_LEGACY,
    ):
        assert read_back(checked, uuids) == checked
    again = bson.decode(bson.encode({"m": storable(checked)}))["m"]
    assert restored(bson.decode(bson.encode({"m": again}))["m"]) == checked, "moved to a page"
    assert _types(read_back(checked)) == _types(checked)


def _types(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _types(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_types(item) for item in value]
    return int if isinstance(value, Int64) else type(value)


def test_metadata__of_numpy_is_of_python() -> None:
    numpy = pytest.importorskip("numpy")
    checked = check_metadata(
        {
            "a": numpy.int64(5),
            "b": [numpy.float32(0.5), numpy.float64(0.1), numpy.uint8(7)],
            "c": {"d": numpy.bool_(True)},
            "e": numpy.str_("x"),
        }
    )
    assert checked == {"a": 5, "b": [0.5, 0.1, 7], "c": {"d": True}, "e": "x"}
    assert _types(checked) == {"a": int, "b": [float, float, int], "c": {"d": bool}, "e": str}
    for value in (
        numpy.array([1]),
        numpy.array(1),
        numpy.datetime64("2026-01-01"),
        numpy.uint64(2**64 - 1),
        numpy.longdouble(1) / 3,
        numpy.complex64(1),
    ):
        with pytest.raises(InvalidMetadataError):
            check_metadata({"a": value})


circular: dict[str, Any] = {}
circular["self"] = [circular]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({1, 2}, "a set"),
        (frozenset(), "frozenset"),
        (date(2026, 1, 1), "date"),
        (datetime(2026, 1, 1), "naive"),  # noqa: DTZ001
        (datetime.min.replace(tzinfo=timezone(timedelta(hours=2))), "time"),
        (MOMENT.timetz(), "time"),
        (timedelta(1), "timedelta"),
        (2**63, "64 bits"),
        (-(2**63) - 1, "64 bits"),
        (Decimal("1." + "1" * 40), "34 digits"),
        (Decimal("1E+7000"), "range"),
        (Decimal("sNaN"), "signaling"),
        (Decimal128("1"), r"decimal\.Decimal"),
        (Binary.from_uuid(RUN), r"uuid\.UUID"),
        (Binary(b"x" * 16, 3), r"uuid\.UUID"),
        (Binary(b"x", 0), "bytes"),
        (DBRef("a", 1), "dictionary"),
        (Timestamp(1, 1), "Timestamp"),
        (re.compile("x"), "Pattern"),
        (Fraction(1, 3), "Fraction"),
        (1j, "complex"),
        (object(), "object"),
        (range(3), "range"),
        (int, "type"),
        ("\ud800", "surrogate"),
        ({1: 2}, "must be str"),
        ({None: 2}, "must be str"),
        ({True: 2}, "must be str"),
        ({b"x": 2}, "must be str"),
        ({Color.TEN: 2}, "must be str"),
        ({"a\0": 2}, "NUL"),
        ({"\udc00": 2}, "surrogate"),
        ({Color.RED: 1, "red": 2}, "twice"),
        ({"$ref": "a", "$id": 1, "$db": None}, "leave '\\$db' out"),
        (circular, "contains itself"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_metadata__that_would_not_come_back_is_refused(value: object, reason: str) -> None:
    with pytest.raises(InvalidMetadataError, match=reason) as refused:
        check_metadata({"a.b": {"c": [0, value]}}, "context")
    assert "context['a.b']['c'][1]" in str(refused.value)
    assert "Nothing was written" in str(refused.value)


def test_metadata__is_nested_to_a_limit() -> None:
    nested: dict[str, Any] = {}
    for _ in range(MAX_METADATA_DEPTH):
        nested = {"a": nested}
    assert check_metadata(nested) == nested
    with pytest.raises(InvalidMetadataError, match="nested"):
        check_metadata({"a": nested})


def test_restored__leaves_alone_what_is_equal() -> None:
    same = {"a": [1, {"b": "c"}], "d": IN_UTC}
    assert restored(same) is same
    foreign = {"a": Binary(b"short", 4)}
    assert restored(foreign) == foreign
    assert restored({"a": MOMENT.replace(tzinfo=None)})["a"].tzinfo is UTC


class Hostile:
    def __str__(self) -> str:
        raise RuntimeError

    __repr__ = __str__


def test_keep_storable__names_what_is_left_out() -> None:
    kept, unstored = keep_storable(
        {
            "a": 1,
            "seen": {1},
            "probs": {1: 0.5},
            5: 1,
            "x\0\ud800": 1,
            Hostile(): 1,
            "hostile": Hostile(),
            "large": "x" * MAX_METADATA_BYTES,
            "run": UUID(int=1),
            "gpt-4.1": 2,
        }
    )
    assert kept == {"a": 1, "run": UUID(int=1), "gpt-4.1": 2}
    assert unstored == {
        "seen": "set",
        "probs": "dict",
        "5": "int",
        "x??": "int",
        "Hostile": "int",
        "hostile": "Hostile",
        "large": "str",
    }
    assert check_metadata(unstored) == unstored
    assert keep_storable(None) == ({}, {})
    assert keep_storable([1]) == ({}, {"metadata": "list"})
    kept, unstored = keep_storable({f"{'k' * 300}{n}": "x" * 100_000 for n in range(500)})
    assert len(bson.encode(kept | {"unstored": unstored})) <= MAX_METADATA_BYTES
