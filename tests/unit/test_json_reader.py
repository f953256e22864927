"""The reader of JSON keeps what it should, refuses what is not JSON, wherever slices are cut."""

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converse_mongo.web.errors import RequestError, TooLargeError
from converse_mongo.web.json_reader import MAX_DEPTH, ObjectReader

KEPT = ("id", "kept", "messages")


def read(data: bytes, size: int = 1, limit: int = 10**6) -> dict[str, Any]:
    reader = ObjectReader(KEPT, limit, last_of="messages")
    for at in range(0, len(data), size):
        reader.feed(data[at : at + size])
    found: dict[str, Any] = json.loads(reader.end())
    return found


def kept_of(value: dict[str, Any]) -> dict[str, Any]:
    found = {key: item for key, item in value.items() if key in KEPT}
    if isinstance(found.get("messages"), list):
        found["messages"] = found["messages"][-1:]
    return found


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(texts | st.sampled_from(KEPT), inner, max_size=4),
    max_leaves=40,
)  # fmt: skip
objects = st.dictionaries(texts | st.sampled_from(KEPT), values, max_size=6)


@given(objects, st.integers(1, 40), st.booleans(), st.sampled_from([None, 1]))
def test_object__is_read_in_slices_of_any_size(
    value: dict[str, Any], size: int, ascii_only: bool, indent: int | None
) -> None:
    sent = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()
    assert read(sent, size) == kept_of(value)


@given(objects, st.integers(0, 10**9))
def test_object__that_was_damaged_is_refused_as_json_does(value: dict[str, Any], seed: int) -> None:
    chance, sent = random.Random(seed), bytearray(json.dumps(value).encode())
    at = chance.randrange(len(sent))
    sent[at : at + chance.randint(0, 1)] = chance.choice(
        [b"", *(bytes([each]) for each in b'{}[]",:\\u0159.eE-+ntf \n\x00\xff\xc3')]
    )
    answers = set()
    for size in (1, 5, 10**6):
        try:
            answers.add(json.dumps(read(bytes(sent), size)))
        except RequestError as error:
            answers.add("twice" if "twice" in str(error) else "refused")
    try:
        parsed = json.loads(bytes(sent).decode())
    except ValueError:
        parsed = None
    expected = json.dumps(kept_of(parsed)) if isinstance(parsed, dict) else "refused"
    if sent.strip():
        assert answers in ({expected}, {"twice"})


@pytest.mark.parametrize(
    "sent",
    [
        *(b"[1", b"{", b'{"a"', b'{"a":', b'{"a":1', b'{"a":1,', b'{"a":1,}', b'{"a":1}x', b"{}{}"),
        *(b'\xef\xbb\xbf{"a":1}', b'{"a":[1}', b'{"a":{]}', b"{a:1}", b"{'a':1}", b'{"a" 1}'),
        *(b'{"a":NaN}', b'{"a":Infinity}', b'{"a":-Infinity}', b'{"a":01}', b'{"a":.5}'),
        *(b'{"a":1.}', b'{"a":-}', b'{"a":1e}', b'{"a":+1}', b'{"a":tru}', b'{"a":nulls}'),
        *(
            b'{"a":"\n"}',
            b'{"a":"\\x"}',
            b'{"a":"\\u12"}',
            b'{"a":"\xff"}',
            b'{"a":"\xed\xa0\x80"}',
        ),
        *(b'{"a":"\xc3"}', b'{"a":/**/1}', b'{"messages":[1,]}', b'{"messages":[,1]}', b"\xff"),
        b'{"a":' + b"9" * 10_000 + b"}",
        b'{"a":' + b"[" * (MAX_DEPTH + 10),
        b'{"messages":' + b'{"":' * (MAX_DEPTH + 10),
        b'{"id":1,"\\u0069d":2}',
    ],
)
@pytest.mark.parametrize("size", [1, 3, 10**6])
def test_what_is_not_json__is_refused(sent: bytes, size: int) -> None:
    with pytest.raises(RequestError):
        read(sent, size)


@pytest.mark.parametrize("size", [1, 7, 10**6])
def test_list__is_read_to_its_last_element_however_large_the_others_are(size: int) -> None:
    large = b'{"text":"' + b"x" * 3000 + b'"}'
    sent = b'{"id":"a","messages":[' + large + b',[[[[[1]]]]],{"n":1} ],"trigger":1}'
    assert read(sent, size, limit=100) == {"id": "a", "messages": [{"n": 1}]}
    for body, word in (
        (b'{"messages":[1,' + large + b"]}", "last"),
        (b'{"kept":' + large + b"}", "body"),
    ):
        with pytest.raises(TooLargeError) as caught:
            read(body, size, limit=100)
        assert word in str(caught.value.detail)


def test_what_is_kept__has_a_bounded_number_of_values() -> None:
    with pytest.raises(TooLargeError) as caught:
        read(b'{"messages":[[' + b"1," * 30_000 + b"1]]}", 1000)
    assert "values" in str(caught.value.detail)
    text = json.dumps({"messages": [{"text": "[1,2,3]," * 30_000}]}).encode()
    assert len(read(text, 1000)["messages"][0]["text"]) == 240_000


def test_reader__holds_what_it_keeps_and_no_more() -> None:
    reader, most = ObjectReader(KEPT, 1000, last_of="messages"), 0
    for each in [b'{"messages":["', *[b"x" * 1000] * 200, b'",1', *[b" " * 500] * 2, b"]}"]:
        reader.feed(each)
        most = max(
            most,
            sum(len(each) for each in vars(reader).values() if isinstance(each, bytes | bytearray)),
        )
    assert json.loads(reader.end()) == {"messages": [1]}
    assert most < 3000
