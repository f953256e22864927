"""The buffer: tokens that wait to be stored, and callers that wait for room. No MongoDB here."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any, NamedTuple, TypeAlias

from converse_mongo.domain.chunks import NO_METADATA, Piece
from converse_mongo.domain.part_pieces import AnyPiece, PartPiece
from converse_mongo.domain.surrogates import (
    REPLACEMENT,
    begins_with_second_half,
    mend,
    split_first_half,
)
from converse_mongo.domain.validation import (
    CHUNK_OVERHEAD,
    MAX_APPEND_BYTES,
    MAX_APPEND_CHUNKS,
    MAX_CHUNK_BYTES,
    utf8_size,
)

MAX_STRINGS = 4096


class Run:
    """Adjacent tokens that become one chunk.

    Attributes:
        metadata: The metadata of each of them.
        encoded: The metadata in BSON; empty without metadata.
        since: When its first token was handed to the writer, by the monotonic clock.
        tokens: The number of tokens.
        text_size: The size of their text, in bytes of UTF-8.
    """

    __slots__ = ("_parts", "encoded", "metadata", "since", "text_size", "tokens")

    def __init__(self, metadata: Mapping[str, Any], encoded: bytes) -> None:
        self._parts: list[str] = []
        self.metadata = metadata
        self.encoded = encoded
        self.tokens = self.text_size = 0
        self.since = monotonic()

    def add(self, content: str, text_size: int, tokens: int = 1) -> None:
        """Adds a token of ``text_size`` bytes, or the text of several tokens."""
        self._parts.append(content)
        if len(self._parts) == MAX_STRINGS:
            self._parts = [self.text]  # small strings take many times the memory of their text
        self.tokens += tokens
        self.text_size += text_size

    @property
    def text(self) -> str:
        """The text of all tokens."""
        return "".join(self._parts)

    @property
    def stored_size(self) -> int:
        """The size of the chunk, in bytes."""
        return self.text_size + len(self.encoded) + CHUNK_OVERHEAD

    def piece(self) -> Piece:
        """Returns what becomes the chunk."""
        return Piece(self.text, self.metadata, self.text_size)


class PartRun:
    """An event of a part, or adjacent deltas of one part, that become one chunk.

    Attributes:
        stored_size: The size of the chunk, in bytes.
        held_size: The same, with the values that are stored apart.
        since: When its first piece was handed to the writer, by the monotonic clock.
        tokens: The number of pieces.
        text_size: 0, since it has no text of the answer.
        text: Empty, likewise.
    """

    __slots__ = ("_deltas", "_piece", "held_size", "since", "stored_size", "tokens")

    text_size = 0
    text = ""

    def __init__(self, piece: PartPiece) -> None:
        self._piece = piece
        self._deltas = [piece.delta]
        self.stored_size = piece.stored_size
        self.held_size = piece.held_size
        self.tokens = 1
        self.since = monotonic()

    def continues(self, piece: PartPiece) -> bool:
        """Returns whether a piece is a delta of the same part."""
        return piece.event is None is self._piece.event and piece.part is self._piece.part

    def add(self, piece: PartPiece, size: int) -> None:
        """Adds a delta of ``size`` bytes."""
        self._deltas.append(piece.delta)
        if len(self._deltas) == MAX_STRINGS:
            self._deltas = ["".join(self._deltas)]
        self.stored_size += size
        self.held_size += size
        self.tokens += 1

    def piece(self) -> PartPiece:
        """Returns what becomes the chunk."""
        if len(self._deltas) > 1:
            self._piece.delta = "".join(self._deltas)
            self._deltas = [self._piece.delta]
        return self._piece


AnyRun: TypeAlias = Run | PartRun


class _Addition(NamedTuple):
    """Text to add, with its size, its metadata and the number of its tokens."""

    content: str
    size: int
    metadata: Mapping[str, Any]
    encoded: bytes
    tokens: int = 1

    def replaced(self) -> "_Addition":
        """Replaces half a character by a whole one."""
        return self._replace(content=REPLACEMENT, size=utf8_size(REPLACEMENT))


class TokenBuffer:
    """Tokens in order: first those of the write in flight, then those that gather.

    The first half of a character at the end of a token waits for the next token, which has the
    other half. The whole character belongs to that token, and has its metadata. An unpaired half is
    replaced, with the metadata of its own token.

    Attributes:
        accepted: The number of tokens, without a token that is only half a character so far.
        stored: The number of confirmed tokens.
        replaced: The number of unpaired halves of characters.
        batch: The pieces of the write in flight, or of the last one.
        has_parts: True if not all of them are text of the answer.
        in_flight: Its runs of tokens; empty without a write in flight.
        waits: The number of waits for room.
    """

    def __init__(self, max_bytes: int, wake: Callable[[], None], *, merges: bool) -> None:
        self._max_bytes = max_bytes
        self._wake = wake
        self._merges = merges
        self._gathering: deque[AnyRun] = deque()
        self._last: Run | None = None
        self._last_part: PartRun | None = None
        self._gathering_bytes = self._in_flight_bytes = 0
        self._queue = asyncio.Lock()
        self._queued = 0
        self._waiters: list[asyncio.Future[None]] = []
        self._half: _Addition | None = None
        self.in_flight: list[AnyRun] = []
        self.batch: list[AnyPiece] = []
        self.has_parts = False
        self.accepted = self.stored = self.replaced = self.waits = 0

    def __bool__(self) -> bool:
        """True if any token is not stored yet."""
        return bool(self._gathering or self.in_flight)

    def add(
        self,
        content: str,
        text_size: int,
        metadata: Mapping[str, Any] = NO_METADATA,
        encoded: bytes = b"",
        *,
        in_turn: bool = False,
    ) -> bool:
        """Adds a token if there is room; returns whether there was.

        Args:
            content: The text.
            text_size: Its size, in bytes of UTF-8; -1 if it contains halves of characters.
            metadata: Its metadata.
            encoded: The metadata in BSON.
            in_turn: True to go before the callers that wait for room.
        """
        if self._queued and not in_turn:
            return False
        if text_size < 0 or self._half is not None:
            return self._add_halves(_Addition(content, text_size, metadata, encoded))
        return self._add(content, text_size, metadata, encoded)

    def extend(self, content: str) -> bool:
        """Adds a token without metadata to the last run, if it can.

        A fast path for most tokens. If it returns ``False``, use :meth:`add`.
        """
        run = self._last
        if run is None or run.encoded or not (self._merges and content and content.isascii()):
            return False
        size = len(content)
        gathering = self._gathering_bytes + size
        if (
            2 * gathering >= self._max_bytes
            or gathering + self._in_flight_bytes > self._max_bytes
            or run.text_size + size > MAX_CHUNK_BYTES
            or self._half is not None
            or self._queued
            or self._waiters
        ):
            return False
        run.add(content, size)
        self.accepted += 1
        self._gathering_bytes = gathering
        return True

    def _add(
        self,
        content: str,
        text_size: int,
        metadata: Mapping[str, Any],
        encoded: bytes,
        tokens: int = 1,
        *,
        has_room: bool = False,
    ) -> bool:
        run, size = self._last, text_size
        if (
            run is None
            or run.encoded != encoded
            or not self._merges
            or run.text_size + size > MAX_CHUNK_BYTES
        ):
            run = None
            size += self._cost_of_run(encoded)
        gathering = self._gathering_bytes + size
        if not (has_room or self._has_room(size)):
            return False
        if run is None:
            run = self._last = Run(metadata, encoded)
            self._last_part = None
            self._gathering.append(run)
        run.add(content, text_size, tokens)
        self.accepted += tokens
        self._gathering_bytes = gathering
        if gathering == size or self._waiters or 2 * gathering >= self._max_bytes:
            self._wake()
        return True

    def add_part(self, piece: PartPiece, *, in_turn: bool = False) -> bool:
        """Adds an event or a delta of a part if there is room; returns whether there was.

        Args:
            piece: The event or the delta.
            in_turn: True to go before the callers that wait for room.
        """
        if self._queued and not in_turn:
            return False
        self.end_half()
        run, size = self._last_part, utf8_size(piece.delta)
        if (
            run is None
            or not (self._merges and run.continues(piece))
            or run.stored_size + size > MAX_CHUNK_BYTES
        ):
            run, size = None, piece.held_size
        if not self._has_room(size):
            return False
        if run is None:
            self._last, self._last_part = None, PartRun(piece)
            self._gathering.append(self._last_part)
        else:
            run.add(piece, size)
        self.accepted += 1
        gathering = self._gathering_bytes = self._gathering_bytes + size
        if gathering == size or self._waiters or 2 * gathering >= self._max_bytes:
            self._wake()
        return True

    def _has_room(self, size: int) -> bool:
        held = self._gathering_bytes + self._in_flight_bytes
        return not held or held + size <= self._max_bytes

    def _add_halves(self, token: _Addition) -> bool:
        """Adds a token that begins or ends inside a character, or follows such a token."""
        half, content, tokens, replaced = self._half, token.content, 1, 0
        additions: list[_Addition] = []
        if half is not None and begins_with_second_half(content):
            content, tokens = half.content + content, 1 + half.tokens
        elif half is not None:
            additions.append(half.replaced())
            replaced = 1
        text, first_half = split_first_half(content)
        text, alone = mend(text)
        if text:
            additions.append(token._replace(content=text, size=utf8_size(text), tokens=tokens))
            tokens = 0
        size = sum([each.size + self._cost_of_run(each.encoded) for each in additions])
        if additions and not self._has_room(size):
            return False
        self._half = token._replace(content=first_half, tokens=tokens) if first_half else None
        self.replaced += replaced + alone
        for addition in additions:
            self._add(*addition, has_room=True)
        return True

    def end_half(self) -> None:
        """Replaces half a character that waits for the other half, at the end of all tokens."""
        half, self._half = self._half, None
        if half is not None:
            self.replaced += 1
            self._add(*half.replaced(), has_room=True)

    @property
    def taken(self) -> int:
        """The number of tokens, with a token that is only half a character so far."""
        return self.accepted + (self._half.tokens if self._half is not None else 0)

    def _cost_of_run(self, encoded: bytes) -> int:
        """Returns the size that counts for a run beside its text."""
        return len(encoded) + CHUNK_OVERHEAD if encoded or not self._merges else 0

    async def put(
        self,
        content: str,
        text_size: int,
        metadata: Mapping[str, Any],
        encoded: bytes,
        check: Callable[[], None],
    ) -> None:
        """Adds a token when there is room; callers wait in the order of their calls.

        If it is cancelled while it waits, the token was not added.

        Args:
            content: As for :meth:`add`, like the next three.
            text_size: See there.
            metadata: See there.
            encoded: See there.
            check: Raises if no more may be added; called after each wait.
        """
        await self._wait_for(
            lambda: self.add(content, text_size, metadata, encoded, in_turn=True), check
        )

    async def put_part(self, piece: PartPiece, check: Callable[[], None]) -> None:
        """Adds an event or a delta of a part when there is room, as :meth:`put` does."""
        await self._wait_for(lambda: self.add_part(piece, in_turn=True), check)

    async def _wait_for(self, add: Callable[[], bool], check: Callable[[], None]) -> None:
        self.waits += 1
        self._queued += 1
        since = monotonic()
        try:
            async with self._queue:
                check()
                while not add():
                    await self.progress()
                    check()
                if self._gathering:
                    last = self._gathering[-1]
                    last.since = min(last.since, since)
        finally:
            self._queued -= 1

    @property
    def is_urgent(self) -> bool:
        """True if it is half full, or a caller waits for a write."""
        return bool(self._waiters) or 2 * self._gathering_bytes >= self._max_bytes

    @property
    def gathers(self) -> bool:
        """True if there are tokens in no write yet."""
        return bool(self._gathering)

    def take(self) -> list[AnyPiece]:
        """Puts in flight as many tokens as one append can hold, and returns the pieces."""
        total = 0
        while self._gathering and len(self.in_flight) < MAX_APPEND_CHUNKS:
            run = self._gathering[0]
            total += run.stored_size
            if total > MAX_APPEND_BYTES and self.in_flight:
                break
            self.in_flight.append(self._gathering.popleft())
            if isinstance(run, PartRun):
                size = run.held_size
            else:
                size = run.text_size + self._cost_of_run(run.encoded)
            self._in_flight_bytes += size
            self._gathering_bytes -= size
        if not self._gathering:
            self._last = self._last_part = None
        self.batch = [run.piece() for run in self.in_flight]
        self.has_parts = PartRun in map(type, self.in_flight)
        return self.batch

    def confirm(self) -> int:
        """Drops the tokens in flight, which are stored; returns the size of their text."""
        size = sum([run.text_size for run in self.in_flight])
        self.stored += sum([run.tokens for run in self.in_flight])
        self.in_flight, self._in_flight_bytes = [], 0
        self.wake_waiters()
        return size

    def clear(self) -> tuple[list[str | PartPiece], list[str | PartPiece]]:
        """Drops everything; returns what was in flight, and what was behind it."""
        batch = self.batch if self.in_flight else []
        self.end_half()
        pieces, behind = (
            [each.content if isinstance(each, Piece) else each for each in some]
            for some in (batch, [run.piece() for run in self._gathering])
        )
        self.in_flight.clear()
        self._gathering.clear()
        self._last = self._last_part = None
        self._gathering_bytes = self._in_flight_bytes = 0
        self.wake_waiters()
        return pieces, behind

    async def progress(self) -> None:
        """Requests a write, and waits until tokens were stored or dropped."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._wake()
        try:
            await waiter
        finally:
            with contextlib.suppress(ValueError):
                self._waiters.remove(waiter)

    def wake_waiters(self) -> None:
        """Wakes all callers that wait for progress."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
