"""The buffer of a writer: what becomes a chunk, what counts, and who waits."""

import asyncio
import sys

import pytest

from converse_mongo import DataPart
from converse_mongo.domain.composing import Composer
from converse_mongo.domain.part_pieces import PartPiece
from converse_mongo.domain.validation import (
    CHUNK_OVERHEAD,
    MAX_APPEND_CHUNKS,
    MAX_CHUNK_BYTES,
    check_token,
)
from converse_mongo.writing.buffer import (
    MAX_STRINGS,
    Run,
    TokenBuffer,
)


class Wakes:
    """Counts how often the writer's task was woken."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


def make(max_bytes: int = 1000, *, merges: bool = True) -> TokenBuffer:
    return TokenBuffer(max_bytes, Wakes(), merges=merges)


def fill(buffer: TokenBuffer, *tokens: str) -> None:
    for token in tokens:
        assert buffer.add(token, len(token.encode()))


def contents(buffer: TokenBuffer) -> list[str]:
    return [piece.content for piece in buffer.take()]


async def test_add__merges_adjacent_tokens_up_to_a_chunk() -> None:
    buffer = make(10 * MAX_CHUNK_BYTES)
    fill(buffer, "a", "é", "x" * (MAX_CHUNK_BYTES - 3))
    fill(buffer, "b")
    pieces = buffer.take()
    assert [piece.content for piece in pieces] == ["aé" + "x" * (MAX_CHUNK_BYTES - 3), "b"]
    assert [piece.text_size for piece in pieces] == [MAX_CHUNK_BYTES, 1]
    assert (buffer.accepted, buffer.stored) == (4, 0)
    assert buffer.confirm() == MAX_CHUNK_BYTES + 1
    assert (buffer.accepted, buffer.stored, bool(buffer)) == (4, 4, False)


async def test_add__keeps_tokens_apart_that_say_different_things() -> None:
    buffer = make()
    assert buffer.add("a", 1, {"n": 1}, b"one")
    assert buffer.add("b", 1, {"n": 1}, b"one")
    assert buffer.add("c", 1, {"n": 2}, b"two")
    fill(buffer, "d")
    assert [(piece.content, dict(piece.metadata)) for piece in buffer.take()] == [
        ("ab", {"n": 1}),
        ("c", {"n": 2}),
        ("d", {}),
    ]


async def test_add__what_comes_during_a_write_is_a_chunk_of_its_own() -> None:
    buffer = make()
    fill(buffer, "a", "b")
    assert contents(buffer) == ["ab"]
    fill(buffer, "c", "d")
    assert buffer.clear() == (["ab"], ["cd"])


async def test_add__refuses_what_has_no_room_unless_nothing_else_is_held() -> None:
    buffer = make(4)
    fill(buffer, "longer than that")
    assert not buffer.add("x", 1)
    buffer.take()
    assert not buffer.add("x", 1), "what is in flight is held, too"
    buffer.confirm()
    fill(buffer, "1234")
    assert not buffer.add("5", 1)
    assert buffer.accepted == 2


@pytest.mark.parametrize("encoded", [b"", b"twelve bytes"])
async def test_add__counts_what_small_chunks_take_besides(encoded: bytes) -> None:
    most = 10 * (CHUNK_OVERHEAD + 1 + len(encoded))
    buffer = make(most, merges=False)
    for _ in range(10):
        assert buffer.add("x", 1, {}, encoded)
    assert not buffer.add("x", 1, {}, encoded)


async def test_take__leaves_behind_what_one_append_cannot_hold() -> None:
    buffer = make(1_000_000, merges=False)
    fill(buffer, *"x" * (MAX_APPEND_CHUNKS + 1))
    assert len(buffer.take()) == MAX_APPEND_CHUNKS
    assert buffer.gathers
    buffer.confirm()
    assert contents(buffer) == ["x"]
    assert not buffer.gathers


async def test_add__wakes_for_the_first_token_and_when_it_gets_full() -> None:
    wakes = Wakes()
    buffer = TokenBuffer(10, wakes, merges=True)
    fill(buffer, "1")
    assert wakes.count == 1
    fill(buffer, "2", "3", "4")
    assert wakes.count == 1
    fill(buffer, "5")
    assert wakes.count == 2
    assert buffer.is_urgent


async def test_put__waits_in_the_order_of_coming() -> None:
    buffer = make(2)
    fill(buffer, "ab")
    waiting = [asyncio.create_task(buffer.put(token, 1, {}, b"", lambda: None)) for token in "cdef"]
    await asyncio.sleep(0)
    assert not buffer.add("z", 1), "nobody goes past those who wait"
    waiting[1].cancel()
    await asyncio.wait([waiting[1]])
    taken = []
    while any(not task.done() for task in waiting) or buffer:
        taken += contents(buffer)
        buffer.confirm()
        for _ in range(5):
            await asyncio.sleep(0)
    assert "".join(taken) == "abcef"
    assert (buffer.accepted, buffer.waits) == (4, 4)
    fill(buffer, "z")


async def test_put__tells_who_waits_that_no_more_is_taken() -> None:
    buffer, closed = make(2), False

    def check() -> None:
        if closed:
            raise RuntimeError("closed")

    fill(buffer, "ab")
    waiting = asyncio.create_task(buffer.put("c", 1, {}, b"", check))
    await asyncio.sleep(0)
    closed = True
    buffer.wake_waiters()
    with pytest.raises(RuntimeError, match="closed"):
        await waiting
    assert buffer.accepted == 1


def test_run__takes_about_what_its_text_takes() -> None:
    run = Run({}, b"")
    tokens = [f"{number:04d}" for number in range(3 * MAX_STRINGS)]
    for token in tokens:
        run.add(token, 4)
    parts = run._parts
    held = sys.getsizeof(parts) + sum(map(sys.getsizeof, parts))
    assert held < 4 * len(tokens) + 100 * MAX_STRINGS
    assert len(parts) < MAX_STRINGS
    assert run.text == "".join(tokens)
    assert (run.tokens, run.text_size) == (len(tokens), 4 * len(tokens))


# Halves of characters

HIGH, LOW = "\ud83d", "\ude80"
ROCKET = "\U0001f680"


def put_halves(buffer: TokenBuffer, *tokens: str) -> None:
    for token in tokens:
        assert buffer.add(token, check_token(token))


@pytest.mark.parametrize(
    ("tokens", "text", "replaced"),
    [
        (["Great ", HIGH, LOW, " job"], f"Great {ROCKET} job", 0),
        ([f"Great {HIGH}", f"{LOW} job"], f"Great {ROCKET} job", 0),
        ([HIGH + LOW, "é" + HIGH, LOW], f"{ROCKET}é{ROCKET}", 0),
        ([HIGH, LOW + HIGH, LOW + HIGH, LOW], ROCKET * 3, 0),
        ([HIGH, "é"], "\ufffdé", 1),
        ([HIGH, HIGH, LOW], f"\ufffd{ROCKET}", 1),
        ([LOW, LOW + "a" + LOW, "b" + HIGH], "\ufffd\ufffda\ufffdb\ufffd", 4),
        (["\ufffd" + HIGH + "\ufffd"], "\ufffd\ufffd\ufffd", 1),
    ],
)
@pytest.mark.parametrize("merges", [True, False])
async def test_halves__are_joined_or_replaced(
    tokens: list[str], text: str, replaced: int, merges: bool
) -> None:
    buffer = make(merges=merges)
    put_halves(buffer, *tokens)
    assert buffer.taken == len(tokens)
    buffer.end_half()
    assert (buffer.taken, buffer.accepted, buffer.replaced) == (len(tokens), len(tokens), replaced)
    pieces = buffer.take()
    assert "".join(piece.content for piece in pieces) == text
    assert [piece.text_size for piece in pieces] == [len(each.content.encode()) for each in pieces]
    buffer.confirm()
    assert (buffer.stored, bool(buffer)) == (len(tokens), False)


async def test_halves__belong_to_the_token_that_completes_them() -> None:
    buffer = make()
    assert buffer.add("a" + HIGH, -1, {"n": 1}, b"one")
    assert buffer.add(LOW + HIGH, -1, {"n": 2}, b"two")
    assert buffer.add("b", 1, {"n": 3}, b"three")
    assert [(piece.content, dict(piece.metadata)) for piece in buffer.take()] == [
        ("a", {"n": 1}),
        (ROCKET + "\ufffd", {"n": 2}),
        ("b", {"n": 3}),
    ]


async def test_halves__are_a_chunk_only_with_the_token_that_completes_them() -> None:
    buffer = make(merges=False)
    put_halves(buffer, "a", HIGH, LOW, "b" + HIGH, LOW + "c")
    assert contents(buffer) == ["a", ROCKET, "b", ROCKET + "c"]


async def test_halves__wait_until_there_is_room_for_the_character() -> None:
    buffer = make(4)
    put_halves(buffer, "abc", HIGH)
    assert not buffer.add(LOW, -1), "the character takes four bytes"
    assert not buffer.add("de", 2), "a replacement takes three"
    assert (buffer.taken, buffer.replaced) == (2, 0)
    assert contents(buffer) == ["abc"]
    buffer.confirm()
    put_halves(buffer, LOW)
    assert contents(buffer) == [ROCKET]


async def test_halves__that_wait_are_given_back_with_the_rest() -> None:
    buffer = make()
    put_halves(buffer, "a" + HIGH)
    buffer.take()
    assert buffer.clear() == (["a"], ["\ufffd"])
    assert buffer.clear() == ([], [])


async def test_extend__adds_to_what_gathers_and_leaves_the_rest_to_add() -> None:
    buffer = make(1000)
    assert not buffer.extend("a"), "nothing gathers"
    fill(buffer, "a")
    assert buffer.extend("b")
    assert (buffer.accepted, buffer.taken) == (2, 2)
    for token in ("", "é", "x" * 500):
        assert not buffer.extend(token)
    put_halves(buffer, HIGH)
    assert not buffer.extend("c"), "half a character comes before it"
    put_halves(buffer, LOW)
    assert buffer.extend("c")
    assert contents(buffer) == [f"ab{ROCKET}c"]
    assert not buffer.extend("d"), "what is in flight does not change"
    assert buffer.add("d", 1, {"n": 1}, b"one")
    assert not buffer.extend("e"), "it says nothing of itself"


async def test_add_part__counts_a_large_value_while_it_waits_and_not_in_the_append() -> None:
    def large() -> PartPiece:
        (piece,) = Composer().pieces(DataPart("n", "x" * 3_000_000))
        assert isinstance(piece, PartPiece)
        return piece

    buffer = make(4_000_000)
    assert buffer.add_part(large())
    assert buffer.is_urgent
    assert not buffer.add_part(large())
    assert not buffer.add("x", 1_000_000)
    assert buffer.add("x", 1)
    assert len(buffer.take()) == 2
    assert sum(piece.stored_size for piece in buffer.batch) < 1000
    buffer.confirm()
    assert buffer.add_part(large())
    assert len(buffer.take()) == 1
