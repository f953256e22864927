"""Tests of what the translators have in common while they read a stream."""

import bson
import pytest

from converse_mongo.domain.metadata import MAX_METADATA_DEPTH
from converse_mongo.integrations.streams import parsed


@pytest.mark.parametrize("text", ["", " \n"])
def test_parsed__of_no_text_is_an_empty_object(text: str) -> None:
    assert parsed(text) == {"input": {}}


@pytest.mark.parametrize(
    "text", ["[" * MAX_METADATA_DEPTH + "]" * MAX_METADATA_DEPTH, '{"$ref": "a"}']
)
def test_parsed__keeps_what_can_be_stored(text: str) -> None:
    found = parsed(text)
    assert found == {"input": found["input"]}
    assert str(found["input"]).replace("'", '"') == text
    bson.encode(found)


@pytest.mark.parametrize("text", ['{"q": ', "{'q': 1}", '{"q": NaN}', "[" * 100_000])
def test_parsed__says_what_is_no_json(text: str) -> None:
    assert parsed(text) == {"input": text, "error": "The input is not valid JSON."}


@pytest.mark.parametrize(
    "text",
    [
        "[" * (MAX_METADATA_DEPTH + 1) + "]" * (MAX_METADATA_DEPTH + 1),
        '{"a": ' * 90 + "1" + "}" * 90,
        '{"a\\u0000b": 1}',
        '{"a": [{"b": {"a\\u0000": 1}}]}',
    ],
)
def test_parsed__says_what_cannot_be_stored(text: str) -> None:
    assert parsed(text) == {"input": text, "error": "The input cannot be stored."}
