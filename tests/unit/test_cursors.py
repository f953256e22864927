"""Cursors of conversations: what they say, and what they refuse to have said."""

import pytest
from bson import ObjectId
from hypothesis import given
from hypothesis import strategies as st

from converse_mongo.domain.cursors import ConversationCursor
from converse_mongo.domain.errors import InvalidCursorError

ID = ObjectId("0123456789abcdef01234567")

states = st.integers(0, 50).flatmap(
    lambda end: st.builds(
        ConversationCursor,
        st.just(ID),
        st.just(end),
        st.dictionaries(st.integers(0, end - 1), st.integers(0, 9), max_size=5)
        if end
        else st.just({}),
    )
)


@given(states)
def test_text__comes_back(cursor: ConversationCursor) -> None:
    assert ConversationCursor.parse(str(cursor), ID) == cursor


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        None,
        7,
        str(ID),
        f"{ID}.",
        f"{ID}.-1",
        f"{ID}.1.",
        f"{ID}.2.1",
        f"{ID}.2.1-",
        f"{ID}.2.2-0",
        f"{ID}.٣",
        f" {ID}.1",
        f"{ID}.1\n",
        "ffffffffffffffffffffffff.1",
        f"{ID}.{'9' * 30}",
    ],
)
def test_text__that_was_not_made_here(text: object) -> None:
    with pytest.raises(InvalidCursorError):
        ConversationCursor.parse(text, ID)


@given(states, st.booleans())
def test_covers__what_comes_behind(cursor: ConversationCursor, streaming: bool) -> None:
    created = cursor.created(streaming)
    later = [created]
    if streaming:
        later += [created.appended(cursor.end, 1), created.ended(cursor.end)]
    for position, sequence in cursor.open.items():
        later += [cursor.appended(position, sequence + 1), cursor.ended(position)]
    assert cursor.covers(cursor)
    for cursor_behind in later:
        assert cursor_behind.covers(cursor)
        assert not cursor.covers(cursor_behind)
