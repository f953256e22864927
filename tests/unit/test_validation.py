"""Bad input is refused before anything is written, and says what was wrong."""

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from bson import Decimal128, ObjectId

from converse_mongo.domain import errors, validation
from converse_mongo.domain.composing import pieces_of
from converse_mongo.domain.errors import (
    ConverseError,
    InvalidContentError,
    InvalidCursorError,
    InvalidIdError,
    InvalidInputError,
    InvalidMetadataError,
)
from converse_mongo.domain.metadata import (
    MAX_METADATA_BYTES,
    MAX_METADATA_DEPTH,
    check_metadata,
)
from converse_mongo.domain.types import MessageRole

circular: dict[str, Any] = {}
circular["self"] = circular
deep: Any = "bottom"
for _ in range(MAX_METADATA_DEPTH + 1):
    deep = [deep]


@pytest.mark.parametrize("content", [None, 5, b"bytes", ["a"], object()])
def test_content__is_no_text(content: object) -> None:
    with pytest.raises(InvalidContentError, match=type(content).__name__):
        validation.check_content(content)


@pytest.mark.parametrize(("content", "index"), [("\ud800", 0), ("ab\udfffc", 2)])
def test_content__has_a_lone_surrogate(content: str, index: int) -> None:
    with pytest.raises(InvalidContentError, match=f"index {index}"):
        validation.check_content(content)


@pytest.mark.parametrize("content", ["", "a", "\x00", "ü漢🙂", "line\r\nline"])
def test_content__is_measured_in_utf8(content: str) -> None:
    assert validation.check_content(content) == len(content.encode())


def test_content__is_too_large() -> None:
    limit = validation.MAX_CHUNK_BYTES
    assert validation.check_content("x" * limit, limit) == limit
    for content in ("x" * (limit + 1), "ü" * (limit // 2 + 1)):
        with pytest.raises(InvalidContentError, match=f"limit of {limit} bytes"):
            validation.check_content(content, limit)


@pytest.mark.parametrize("contents", ["text", b"bytes", None, 5, ["a", None], [["a"]]])
def test_contents__of_an_append(contents: object) -> None:
    with pytest.raises(InvalidContentError):
        pieces_of(contents)


def test_contents__are_a_list_in_the_end() -> None:
    assert [each.content for (each,) in pieces_of(iter(["a", "b"]))] == ["a", "b"]
    with pytest.raises(InvalidContentError, match="split"):
        pieces_of(["a", "x" * (validation.MAX_CHUNK_BYTES + 1)])


@pytest.mark.parametrize(
    "metadata",
    [
        [("a", 1)],
        "text",
        0,
        {1: "number"},
        {"": 1},
        {"nul\x00": 1},
        {"x": object()},
        {"x": {1, 2}},
        {"x": Decimal128("1")},
        {"x": date(2026, 1, 1)},
        {"x": 2**64},
        {"x": "\ud800"},
        {"x": {"y": [object()]}},
        {"x": circular},
        {"x": deep},
        {"x": "x" * (MAX_METADATA_BYTES + 1)},
    ],
    ids=lambda value: repr(value)[:20],  # without an address, which differs from run to run
)
def test_metadata__cannot_be_stored(metadata: object) -> None:
    with pytest.raises(InvalidMetadataError, match="Nothing was written"):
        check_metadata(metadata)


def test_metadata__comes_back_as_mongodb_will_give_it() -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    given = {"id": ObjectId(), "when": moment, "list": (1, 2), "nested": {"a.b": {"$c": None}}}
    checked = check_metadata(given)
    assert checked == {
        "id": given["id"],
        "when": moment.replace(microsecond=678000),
        "list": [1, 2],
        "nested": {"a.b": {"$c": None}},
    }
    given["nested"]["a.b"]["$c"] = "changed later"  # type: ignore[index]
    assert checked["nested"] == {"a.b": {"$c": None}}
    assert check_metadata(None) == {}


@pytest.mark.parametrize("value", [None, 5, "", "xyz", b"123456789012", "0" * 23, ["a"]])
def test_id__is_none(value: object) -> None:
    with pytest.raises(InvalidIdError, match="message"):
        validation.object_id(value, "message")


@pytest.mark.parametrize("after", [True, False, -2, 1.0, "1", [1]])
def test_after__is_no_sequence(after: object) -> None:
    with pytest.raises(InvalidCursorError):
        validation.check_sequence(after)


@pytest.mark.parametrize(("after", "start"), [(None, 0), (-1, 0), (0, 1), (7, 8)])
def test_after__is_a_sequence(after: int | None, start: int) -> None:
    assert validation.check_sequence(after) == start


@pytest.mark.parametrize("count", [True, -1, 1.5, "3"])
def test_limit__is_no_count(count: object) -> None:
    with pytest.raises(InvalidInputError):
        validation.check_count(count, "limit")


@pytest.mark.parametrize("error", [None, 5, b"x", "\ud800"])
def test_error__is_no_text(error: object) -> None:
    with pytest.raises(InvalidInputError):
        validation.check_error(error)


def test_error__is_text_or_an_exception() -> None:
    assert validation.check_error("lost") == "lost"
    assert validation.check_error(ValueError("lost")) == "lost"
    assert validation.check_error(TimeoutError()) == "TimeoutError"


def test_errors__have_one_root() -> None:
    for name, each in vars(errors).items():
        if isinstance(each, type) and each.__module__ == errors.__name__:
            assert issubclass(each, ConverseError), name
            assert name.endswith("Error")


@pytest.mark.parametrize("value", [True, 0, -1, 1.0, "1", None])
def test_int__is_below_the_least_or_none(value: object) -> None:
    with pytest.raises(InvalidInputError, match="size must be an integer of at least 1, got"):
        validation.check_int(value, "size", 1)
    assert validation.check_int(1, "size", 1) == 1
    assert validation.check_count(0, "limit") == 0
    assert validation.check_count(None, "limit") is None


@pytest.mark.parametrize("seconds", [True, 0, -1.0, float("nan"), "1", validation.MAX_SECONDS + 1])
def test_seconds__are_no_duration(seconds: object) -> None:
    with pytest.raises(InvalidInputError, match="lease must be"):
        validation.check_seconds(seconds, "lease")
    assert validation.check_seconds(validation.MAX_SECONDS, "lease") == validation.MAX_SECONDS


@pytest.mark.parametrize(
    ("retention", "seconds"),
    [("keep", None), ("compact", 0.0), (timedelta(0), 0.0), (timedelta(minutes=1), 60.0)],
)
def test_retention__is_in_seconds(retention: object, seconds: float | None) -> None:
    assert validation.check_retention(retention) == seconds


@pytest.mark.parametrize("retention", ["never", None, 5, timedelta(-1), timedelta(days=36_601)])
def test_retention__is_none(retention: object) -> None:
    with pytest.raises(InvalidInputError, match="retention must be"):
        validation.check_retention(retention)


def test_choice__is_one_of_some() -> None:
    assert validation.check_choice("user", MessageRole, "role") is MessageRole.USER
    with pytest.raises(InvalidInputError, match=r"role must be one of system, user, .*got 'bot'"):
        validation.check_choice("bot", MessageRole, "role")


def test_reason__is_short_text_or_none() -> None:
    assert validation.check_reason(None) is None
    longest = "x" * validation.MAX_REASON_BYTES
    assert validation.check_reason(longest) == longest
    for reason in (5, longest + "x"):
        with pytest.raises(InvalidContentError):
            validation.check_reason(reason)


@pytest.mark.parametrize(("token", "size"), [("", 0), ("a", 1), ("ü漢", 5), ("a\ud83d", -1)])
def test_token__is_measured_or_has_halves(token: str, size: int) -> None:
    assert validation.check_token(token) == size


@pytest.mark.parametrize(
    "token", [b"x", "x" * (validation.MAX_CHUNK_BYTES + 1), "\ud83d" * validation.MAX_CHUNK_BYTES]
)
def test_token__cannot_be_stored(token: object) -> None:
    with pytest.raises(InvalidContentError):
        validation.check_token(token)
