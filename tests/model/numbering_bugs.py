"""Planted bugs in how parts go through the protocol: their numbers, merges and ends.

Those of the reducer and of what a merge keeps are in ``part_bugs``.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import pytest

from converse_mongo.domain import part_pieces
from converse_mongo.domain.chunks import MessageChunk, PartChunk
from converse_mongo.domain.part_log import PartLog
from converse_mongo.domain.part_pieces import AnyPiece
from converse_mongo.store import appends, ends
from tests.model.bugs import BUGS, bug, rewrite

__all__ = ["BUGS"]
"""All planted bugs of the protocol."""

Pieces: TypeAlias = Sequence[AnyPiece]


def first_guess() -> Callable[[Pieces, int], int]:
    """Remembers at which sequence an append was to be at first."""
    known: list[tuple[Pieces, int]] = []

    def guess(pieces: Pieces, first: int) -> int:
        found = [number for one, number in known if one is pieces]
        known.append((pieces, first))
        return found[0] if found else first

    return guess


@bug("append write parts")
def references_keep_their_first_numbers(patch: pytest.MonkeyPatch) -> None:
    guess = first_guess()

    def spoiled(pieces: Pieces, first: int, *rest: Any) -> list[MessageChunk]:
        late = first - guess(pieces, first)
        return [
            replace(each, part=each.part - late)
            if isinstance(each, PartChunk) and each.part is not None and each.part >= first
            else each
            for each in part_pieces.numbered(pieces, first, *rest)
        ]

    patch.setattr(appends, "numbered", spoiled)


@bug("append write parts")
def numbers_are_learned_at_the_first_try(patch: pytest.MonkeyPatch) -> None:
    guess = first_guess()

    def spoiled(pieces: Pieces, first: int, *rest: Any) -> list[MessageChunk]:
        guess(pieces, first)
        return part_pieces.numbered(pieces, first, *rest)

    def settle(pieces: Pieces, chunks: Sequence[MessageChunk]) -> None:
        late = chunks[0].sequence - guess(pieces, chunks[0].sequence)
        moved = [replace(each, sequence=each.sequence - late) for each in chunks]
        part_pieces.settle(pieces, moved)

    patch.setattr(appends, "numbered", spoiled)
    patch.setattr(appends, "settle", settle)


@bug("write trouble parts")
def numbers_are_not_learned_without_an_answer(patch: pytest.MonkeyPatch) -> None:
    class Back(list[MessageChunk]):
        pass

    read_back = appends.Appends._read_back

    async def spoiled(self: Any, *arguments: Any) -> Back:
        return Back(await read_back(self, *arguments))

    def settle(pieces: Pieces, chunks: Sequence[MessageChunk]) -> None:
        if not isinstance(chunks, Back):
            part_pieces.settle(pieces, chunks)

    patch.setattr(appends.Appends, "_read_back", spoiled)
    patch.setattr(appends, "settle", settle)


@bug("append read end parts")
def end_with_the_parts_of_a_copy_that_is_behind(patch: pytest.MonkeyPatch) -> None:
    finish = ends.Ends._finish

    async def spoiled(self: Any, state: Any, known: Any) -> Any:
        return await finish(self, state, known and known._replace(chunk_count=state.next_sequence))

    patch.setattr(ends.Ends, "_finish", spoiled)


@bug("append parts")
def append_of_parts_without_their_format(patch: pytest.MonkeyPatch) -> None:
    rewrite(patch, "append", lambda match, update: update.pop("$max", None))


@bug("append end compact parts")
def merge_that_drops_the_events(patch: pytest.MonkeyPatch) -> None:
    rewrite(patch, "compact", lambda match, update: update["$set"].update(chunk_events=[]))


@bug("append end compact parts")
def merge_that_drops_the_last_event(patch: pytest.MonkeyPatch) -> None:
    def change(_match: Any, update: Any) -> None:
        events = update["$set"].get("chunk_events", [])
        update["$set"]["chunk_events"] = events[:-1]

    rewrite(patch, "compact", change)


@bug("append end parts")
def end_with_text_of_all_chunks(patch: pytest.MonkeyPatch) -> None:
    def spoiled(chunks: Any, *, has_parts: bool) -> Any:
        text = "".join(each["content"] or each.get("delta", "") for each in chunks)
        return text, PartLog.of(chunks).records() if has_parts else None

    patch.setattr(ends, "_read", spoiled)
