"""Tokens that wait to be stored, and writers that wait for room. No MongoDB here."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from converse_mongo._validation import (
    CHUNK_OVERHEAD,
    MAX_APPEND_BYTES,
    MAX_APPEND_CHUNKS,
    MAX_CHUNK_BYTES,
)

__all__ = ["Piece", "Token", "TokenBuffer"]


class Piece(NamedTuple):
    """What becomes a chunk."""

    content: str
    metadata: Mapping[str, Any]


class Token(NamedTuple):
    """What a generation loop wrote.

    Attributes:
        content: The text.
        metadata: What was said of it.
        text_size: The size of the text, in bytes of UTF-8.
        encoded: The metadata in BSON; empty where there are none.
    """

    content: str
    metadata: Mapping[str, Any]
    text_size: int
    encoded: bytes

    @property
    def size(self) -> int:
        """What it takes, in bytes."""
        return self.text_size + len(self.encoded)


class TokenBuffer:
    """Tokens in order: first those of the write that is in flight, then those that gather.

    Attributes:
        accepted: How many tokens were put in.
        stored: How many of them were confirmed.
        batch: What the write in flight is made of, or was last.
        in_flight: The tokens of that; empty when no write is in flight.
        waits: How often somebody had to wait for room.
    """

    def __init__(self, max_bytes: int, wake: Callable[[], None], *, merges: bool) -> None:
        self._max_bytes = max_bytes
        self._wake = wake
        self._merges = merges
        self._gathering: deque[Token] = deque()
        self._gathering_bytes = self._in_flight_bytes = 0
        self._queue = asyncio.Lock()
        self._waiters: list[asyncio.Future[None]] = []
        self.in_flight: list[Token] = []
        self.batch: list[Piece] = []
        self.accepted = self.stored = self.waits = 0

    def __bool__(self) -> bool:
        """Whether anything is not stored yet."""
        return bool(self._gathering or self.in_flight)

    async def put(self, token: Token, check: Callable[[], None]) -> None:
        """Adds a token; waits where there is no room, first come, first served.

        Cancelled while it waits, it has not added the token.

        Args:
            token: The token.
            check: Raises when no more is to be added; called after each wait.
        """
        if self._queue.locked() or self._is_full(token.size):
            self.waits += 1
            async with self._queue:
                check()
                while self._is_full(token.size):
                    await self.progress()
                    check()
        self.accepted += 1
        self._gathering_bytes += token.size
        self._gathering.append(token)
        if len(self._gathering) == 1 or self.is_urgent:
            self._wake()

    @property
    def is_urgent(self) -> bool:
        """Whether it is getting full, or somebody waits for a write."""
        return bool(self._waiters) or 2 * self._gathering_bytes >= self._max_bytes

    @property
    def gathers(self) -> bool:
        """Whether there are tokens that are in no write yet."""
        return bool(self._gathering)

    def _is_full(self, size: int) -> bool:
        held = self._gathering_bytes + self._in_flight_bytes
        return bool(held) and held + size > self._max_bytes

    def take(self) -> list[Piece]:
        """Puts in flight what one append can hold, and makes chunks of it."""
        pieces: list[tuple[list[str], Mapping[str, Any]]] = []
        encoded = b""
        total = merged = 0
        while self._gathering:
            token = self._gathering[0]
            merge = (
                self._merges
                and bool(pieces)
                and encoded == token.encoded
                and merged + token.text_size <= MAX_CHUNK_BYTES
            )
            cost = token.text_size if merge else token.size + CHUNK_OVERHEAD
            if pieces and (
                total + cost > MAX_APPEND_BYTES or len(pieces) + (not merge) > MAX_APPEND_CHUNKS
            ):
                break
            if merge:
                pieces[-1][0].append(token.content)
                merged += token.text_size
            else:
                pieces.append(([token.content], token.metadata))
                merged, encoded = token.text_size, token.encoded
            total += cost
            self.in_flight.append(self._gathering.popleft())
            self._in_flight_bytes += token.size
            self._gathering_bytes -= token.size
        self.batch = [Piece("".join(contents), metadata) for contents, metadata in pieces]
        return self.batch

    def confirm(self) -> int:
        """Lets go of what was in flight, since it is stored; returns the size of its text."""
        size = sum([token.text_size for token in self.in_flight])
        self.stored += len(self.in_flight)
        self.in_flight, self._in_flight_bytes = [], 0
        self.wake_waiters()
        return size

    def clear(self) -> tuple[list[str], str]:
        """Lets go of everything; returns the chunks that were in flight and the text behind."""
        chunks = [piece.content for piece in self.batch] if self.in_flight else []
        behind = "".join([token.content for token in self._gathering])
        self.in_flight.clear()
        self._gathering.clear()
        self._gathering_bytes = self._in_flight_bytes = 0
        self.wake_waiters()
        return chunks, behind

    async def progress(self) -> None:
        """Waits until something was stored or given up; has a write made soon."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._wake()
        try:
            await waiter
        finally:
            with contextlib.suppress(ValueError):
                self._waiters.remove(waiter)

    def wake_waiters(self) -> None:
        """Wakes everybody who waits for progress."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
