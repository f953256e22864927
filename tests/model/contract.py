"""The contract, as a judge: it sees every write and every outcome, and knows what was promised.

It reads the documents by itself, so that a mistake of the library's reader cannot hide one of its
writers; and it has the library's reader read them too, after each write.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, NamedTuple, NoReturn
from weakref import WeakKeyDictionary

from bson import ObjectId

from converse_mongo.domain import errors, part_merging
from converse_mongo.domain.chunks import MessageChunk, PartChunk, StoredChunk
from converse_mongo.domain.headers import MessageHeader
from converse_mongo.domain.part_log import PartLog, storable_records
from converse_mongo.domain.part_pieces import PartPiece
from converse_mongo.store import EndedMessage
from converse_mongo.store.collections import WriteQueue
from tests.model.parts import Reading
from tests.model.server import CLOCK, MESSAGES, PAGES, Operation, Server, documents
from tests.model.speech import Meaning, is_text, said

__all__ = ["CONVERSATION_ID", "MESSAGE", "MESSAGE_ID", "Broken", "Contract", "View", "broken"]

MESSAGE_ID, CONVERSATION_ID = ObjectId("5" * 24), ObjectId("c" * 24)
MESSAGE = {"_id": MESSAGE_ID, "conversation_id": CONVERSATION_ID}

FINAL = {"completed", "failed", "cancelled"}
WRITERS_OWN = {"append", "acquire", "take_over", "renew", "release"}
SETTLERS = {"sweep", "stop"}
REFUSALS = (
    errors.MessageNotFoundError,
    errors.MessageNotStreamingError,
    errors.StreamStoppedError,
    errors.WriterError,
)
"""What is said to who was given a message that was deleted meanwhile."""


class Broken(AssertionError):  # noqa: N818
    """The contract does not hold."""


def broken(rule: str, *details: object) -> NoReturn:
    raise Broken(f"{rule}: {' | '.join(map(repr, details))}" if details else rule)


@dataclass(frozen=True)
class View:
    """What the database says of the message; of one that is gone, that no log has its id."""

    log_id: ObjectId | None
    log: tuple[str, ...]
    chunks: tuple[StoredChunk, ...] = field(repr=False)
    parts: list[Any] | None = field(repr=False)
    status: str
    end: tuple[Any, ...]
    content: str
    epoch: int
    holder: ObjectId | None
    renewed_at: datetime | None
    duration: float | None
    stop: tuple[bool, str | None]
    live_bytes: int
    compacted: bool
    due: datetime | None
    revision: int
    signs: int = 0
    """How many heartbeats were given so far, to it and to those that had its id before."""
    last_sign: datetime | None = None

    @property
    def text(self) -> str:
        """The text of the answer."""
        return "".join([chunk["content"] for chunk in self.chunks])

    def has(self, chunks: Sequence[StoredChunk], start: int = 0) -> bool:
        """Whether chunks are those from ``start`` on; of merged ones some say nothing any more."""
        mine = self.chunks[start : start + len(chunks)]
        if len(mine) != len(chunks):
            return False
        if len(chunks) == len(self.chunks) and not say_the_same(chunks, self.chunks):
            return False
        return all(map(self._is, mine, chunks))

    def _is(self, mine: StoredChunk, other: StoredChunk) -> bool:
        if any(mine.get(name) != other.get(name) for name in ("sequence", *NAMES)):
            return False
        return said(other) == said(mine) or (self.compacted and not said(other))

    @property
    def ended(self) -> bool:
        """Whether the message has left ``streaming``."""
        return self.status in FINAL

    @property
    def expired(self) -> bool:
        """Whether there was no heartbeat for too long."""
        if self.ended or self.last_sign is None or self.duration is None:
            return False
        return CLOCK.now > self.last_sign + timedelta(seconds=self.duration)


NAMES = ("part", "event", "parent")
"""The fields of a chunk that a merge leaves as they are."""


def say_the_same(chunks: Sequence[StoredChunk], others: Sequence[StoredChunk]) -> bool:
    """Whether they lead to the same parts."""
    if all(map(is_text, chunks)) and all(map(is_text, others)):
        return True
    one, other = PartLog.of(chunks), PartLog.of(others)
    return one.snapshot() == other.snapshot()


GONE = View(
    None, (), (), None, "gone", (), "", 0, None, None, None, (False, None), 0, False, None, 0
)


def look(database: Any) -> View:
    """Reads the message, and checks what must be true of it at any moment."""
    stored = next(iter(documents(database, MESSAGES)), None)
    if stored is None:
        return GONE
    pages = [page for page in documents(database, PAGES) if page["log_id"] == stored["log_id"]]
    pages.sort(key=lambda page: page["first_sequence"])
    embedded, page_start = stored["chunks"], stored["page_start"]
    if stored.get("compacted"):
        texts = _cut(stored["content"], stored["chunk_lengths"])
        chunks: list[StoredChunk] = [
            {"sequence": at, "content": each} for at, each in enumerate(texts)
        ]
        if "chunk_events" in stored:
            chunks = part_merging.expand_events(stored)
        if embedded or page_start != len(chunks):
            broken("A merged message has no chunks of its own", stored)
    else:
        moved = [chunk for page in pages for chunk in page["chunks"]]
        moved = [chunk for chunk in moved if chunk["sequence"] < page_start]
        chunks = moved + embedded
        sequences = [chunk["sequence"] for chunk in chunks]
        if sequences != list(range(len(sequences))) or len(moved) != page_start:
            broken("Sequences are 0, 1, 2, … without gap or repeat", sequences, page_start)
        _check_parts(stored, chunks)
    log = tuple(map(said, chunks))
    if len(log) != stored["next_sequence"]:
        broken("The counter says how many chunks there are", len(log), stored["next_sequence"])
    content = "".join([chunk["content"] for chunk in chunks])
    if stored["content_bytes"] != len(content.encode()):
        broken("The counter says how many bytes there are", stored["content_bytes"])
    size = sum(MessageChunk.from_stored(chunk).stored_size for chunk in embedded)
    if stored["chunk_bytes"] != size:
        broken("The counter says what is embedded", stored["chunk_bytes"], size)
    lease = stored["lease"]
    return View(
        log_id=stored["log_id"],
        log=log,
        chunks=tuple(chunks),
        parts=stored.get("parts"),
        status=stored["status"],
        end=tuple(stored.get(name) for name in ("status", "end_id", "error", "completed_at"))  # noqa: RUF005
        + ((stored.get("metadata") or {}).get("by"),),
        content=stored["content"],
        epoch=lease["epoch"],
        holder=lease.get("holder"),
        renewed_at=lease.get("renewed_at"),
        duration=lease["duration"],
        stop=(stored.get("stop_requested_at") is not None, stored.get("stop_reason")),
        live_bytes=size,
        compacted=bool(stored.get("compacted")),
        due=stored.get("compact_at"),
        revision=stored.get("revision", 0),
    )


def _check_parts(stored: dict[str, Any], chunks: Sequence[StoredChunk]) -> None:
    """Checks that chunks name parts that are there, and what is said of all of them."""
    parts = [PartChunk.from_stored_part(chunk) for chunk in chunks if not is_text(chunk)]
    for chunk in parts:
        for number in (chunk.part, chunk.parent):
            if number is not None and not any(each.sequence == number for each in parts):
                broken("An event names a part that is there", chunk)
        if chunk.event not in (None, "start") and chunk.part is None:
            broken("An event names a part", chunk)
    if stored.get("format") != (2 if parts else None):
        broken("The format says whether there are parts", stored.get("format"), parts)
    size = sum(chunk.stored_size for chunk in parts)
    if stored.get("part_bytes", 0) != size:
        broken("The counter says how large the parts are", stored.get("part_bytes"), size)


def _cut(text: str, lengths: bytes) -> tuple[str, ...]:
    contents, start = [], 0
    for length in lengths:  # each takes one byte: contents are short here
        contents.append(text[start : start + length])
        start += length
    if start != len(text):
        broken("Merging keeps the text", text, lengths)
    return tuple(contents)


class Unknown(NamedTuple):
    """An append of which it is not known whether it was stored."""

    log_id: ObjectId | None
    append_id: ObjectId
    contents: tuple[str, ...]
    pieces: Sequence[Any]


@dataclass
class Contract:
    """Judges what happens to one message, and to those that are started anew under its id.

    Attributes:
        most_live_bytes: What its embedded chunks may take.
        patience: For how many seconds an append waits for room.
        hasty: Whether what the primary has is acknowledged.
        now: What the primary has.
        safe: What no failover takes back.
        acknowledged: For each log, sequence to text of all appends that returned.
        refused: Texts of all appends that said that nothing was stored.
        fences: For each log, the epoch of the last writer who was told that it is the one.
        meant: What the chunks that name a part mean, by what they say.
        unknown: Log, append id and contents of appends that had no answer.
        deletions: How often a message was deleted.
    """

    server: Server
    most_live_bytes: int
    patience: float
    hasty: bool
    now: View = field(init=False)
    safe: View = field(init=False)
    acknowledged: dict[ObjectId | None, dict[int, str]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    refused: set[str] = field(default_factory=set)
    fences: dict[ObjectId | None, int] = field(default_factory=lambda: defaultdict(int))
    meant: dict[str, Meaning] = field(default_factory=dict)
    unknown: list[Unknown] = field(default_factory=list)
    deletions: int = 0
    _failed_seals: WeakKeyDictionary[WriteQueue, tuple[int, datetime]] = field(
        default_factory=WeakKeyDictionary
    )

    def __post_init__(self) -> None:
        self.now = self.safe = look(self.server.primary)

    @property
    def confirmed(self) -> View:
        """What is there under the write concern of the clients."""
        return self.now if self.hasty else self.safe

    # Writes

    def written(self, operation: Operation) -> None:
        """Judges a write of ``operation`` that the server has just performed."""
        before, after = self.now, look(self.server.primary)
        after = replace(after, signs=before.signs, last_sign=before.last_sign)
        if after.compacted and after.log_id == before.log_id:
            if not replace(before, compacted=True).has(after.chunks):
                broken("A merge says the same", before.chunks, after.chunks)
            after = replace(after, log=before.log, chunks=before.chunks)
        if self.is_gone(operation) and before != after:
            broken("Nothing old changes what was started anew", operation, before, after)
        if before.log_id != after.log_id:
            self._judge_restart(operation, before, after)
            self.now = replace(after, signs=before.signs + 1, last_sign=None)
            return
        if before.log_id is None:
            return
        self._judge_log(operation, before, after)
        self._judge_end(operation, before, after)
        self._judge_lease(operation, before, after)
        if before.stop[0] and (not after.stop[0] or after.stop[1] != before.stop[1]):
            broken("The first who asks for a stop gives the reason", before.stop, after.stop)
        if after.live_bytes > self.most_live_bytes:
            broken("A message embeds no more than it may", after.live_bytes)
        if before.due and not after.due and not after.compacted:
            broken("What is due stays so until it is merged", operation)
        sign = self._is_sign_of_life(operation, before, after)
        self.now = replace(
            after,
            signs=before.signs + sign,
            last_sign=CLOCK.now if sign else before.last_sign,
        )

    def is_gone(self, operation: Operation) -> bool:
        """Whether the message that ``operation`` was given is not there any more."""
        return operation.log_id not in (None, self.now.log_id)

    def _is_told_that_it_is_gone(self, operation: Operation, outcome: object) -> bool:
        if self.server.lagging and isinstance(outcome, errors.MessageNotFoundError):
            return True  # and a failover may have brought it back
        return self.is_gone(operation) and isinstance(outcome, REFUSALS)

    def _judge_restart(self, operation: Operation, before: View, after: View) -> None:
        if after.log_id is None:
            self.deletions += 1
            if operation.kind != "delete":
                broken("Only who deletes a message deletes it", operation, before)
        elif before.log_id is not None or operation.kind != "start" or after.log:
            broken("A message is started anew where there is none", operation, before, after)

    def _judge_log(self, operation: Operation, before: View, after: View) -> None:
        if after.log[: len(before.log)] != before.log:
            broken("What is stored stays as it is", before.log, after.log)
        added = after.log[len(before.log) :]
        if not added:
            return
        if operation.kind != "append" or added != operation.contents:
            broken("An append is stored as a whole", operation, added)
        if set(added) & set(before.log):
            broken("An append is stored once", operation, after.log)
        if set(added) & self.refused:
            broken("An append that was refused is not stored", operation, after.log)
        if before.ended:
            broken("Nothing is added after the end", operation, after.log)
        self._judge_meaning(operation, after, len(before.log))
        epoch = operation.epoch
        if epoch is not None and (epoch != before.epoch or epoch < self.fences[before.log_id]):
            broken("Nothing is added by a writer that was replaced", operation, before.epoch)
        if operation.unless_stopped and before.stop[0]:
            broken("Nothing is added by a writer that is to stop", operation)

    def _judge_meaning(self, operation: Operation, after: View, start: int) -> None:
        for chunk in after.chunks[start:]:
            if not is_text(chunk):
                named = [chunk.get(name) for name in ("part", "parent")]
                found = Meaning(*(None if at is None else after.log[at] for at in named))
                if found != self.meant.get(said(chunk), Meaning()):
                    broken("An event names the part that it is meant for", operation, chunk, found)

    def _judge_end(self, operation: Operation, before: View, after: View) -> None:
        text = after.text
        if after.parts is not None and after.parts != before.parts:
            records = Reading(after.chunks).records(len(after.chunks))
            if not after.ended or after.parts != storable_records(records):
                broken("The parts of a message are those of its chunks", after.parts, records)
        if after.content not in (("", text) if after.ended else ("",)):
            broken("The text of a message is that of its chunks", after.content, text)
        if before.content and not after.content:
            broken("The text of a message stays", operation)
        if before.ended and before.end != after.end:
            broken("A message ends once", operation, before.end, after.end)
        if before.ended or not after.ended:
            return
        if operation.kind == "end":
            epoch = operation.epoch
            if epoch is not None and (epoch != before.epoch or epoch < self.fences[before.log_id]):
                broken("A message is not ended by a writer that was replaced", operation)
        elif operation.kind in SETTLERS:
            self._judge_settling(operation, before, after)
        else:
            broken("Only an end ends", operation)

    def _judge_settling(self, operation: Operation, before: View, after: View) -> None:
        if after.epoch <= before.epoch:
            broken("A writer that is presumed dead is told", operation)
        nobody_listens = operation.kind == "stop" and before.holder is None
        if not nobody_listens:
            if operation.looked != before.signs:
                broken("No writer is presumed dead that sent a heartbeat", operation)
            if not before.expired:
                broken("No lease is cut short", operation, before, CLOCK.now)
        if before.stop[0] and after.status != "cancelled":
            broken("A message that is to stop ends cancelled", operation, after.status)

    def _judge_lease(self, operation: Operation, before: View, after: View) -> None:
        lease_before = (before.epoch, before.holder, before.renewed_at, before.duration)
        lease_after = (after.epoch, after.holder, after.renewed_at, after.duration)
        if lease_before == lease_after:
            return
        if after.epoch < before.epoch:
            broken("Epochs only rise", operation, before.epoch, after.epoch)
        replaced = operation.epoch not in (None, before.epoch)
        if before.ended or replaced:
            broken("Only the writer of a message keeps it alive", operation)
        if operation.kind not in WRITERS_OWN | SETTLERS:
            broken("Only the writer of a message keeps it alive", operation)
        if operation.kind in SETTLERS and before.renewed_at not in (None, after.renewed_at):
            broken("Only the writer of a message keeps it alive", operation)
        if operation.kind == "acquire" and before.epoch:
            broken("There is one first writer", operation)

    def _is_sign_of_life(self, operation: Operation, before: View, after: View) -> bool:
        if operation.log_id not in (None, before.log_id):
            return False
        match operation.kind:
            case "append":
                return after.log != before.log
            case "acquire" | "take_over":
                return after.epoch != before.epoch
            case "renew":
                living = not before.ended and not before.stop[0]
                return living and operation.epoch == before.epoch
            case "release":
                return not before.ended and operation.epoch == before.epoch
            case "sweep":
                return before.renewed_at is None and after.renewed_at is not None
        return False

    def replicated(self) -> None:
        """Takes note that a majority has all that the primary has."""
        self.safe = self.now

    def failed_over(self) -> None:
        """Takes note that what only the old primary had is gone."""
        self.now = self.safe
        self.check_acknowledged()

    def check_acknowledged(self) -> None:
        """Checks that what was promised to be stored is stored."""
        stored = self.confirmed
        for sequence, text in self.acknowledged[stored.log_id].items():
            if sequence >= len(stored.log) or stored.log[sequence] != text:
                broken("Acknowledged is stored", sequence, text, stored.log)

    def read(self, operation: Operation) -> None:
        """Takes note of what ``operation`` has seen."""
        operation.looked = self.now.signs

    # Outcomes

    def appended(self, operation: Operation, outcome: Any) -> None:
        """Judges how an append went."""
        if isinstance(outcome, list):
            first = outcome[0].sequence
            sequences = [chunk.sequence for chunk in outcome]
            contents = tuple(said(chunk.to_stored()) for chunk in outcome)
            if contents != operation.contents and not self.now.compacted:
                broken("An append returns what it stored", operation, contents)
            for piece, sequence in zip(operation.pieces, sequences, strict=True):
                if isinstance(piece, PartPiece) and piece.marks and piece.marks.number != sequence:
                    broken("An append tells the numbers of its parts", operation, sequences)
            if sequences != list(range(first, first + len(contents))):
                broken("An append returns where it is", operation, sequences)
            stored = zip(sequences, operation.contents, strict=True)
            self.acknowledged[operation.log_id] |= dict(stored)
            self.check_acknowledged()
            return
        if isinstance(outcome, errors.StoreUnavailableError):
            self._judge_trouble(operation)
            self._judge_patience(operation)
            append_id = outcome.append_id or operation.append_id
            if append_id is None:
                broken("An append without an answer can be tried again", operation, outcome)
            self.unknown.append(
                Unknown(operation.log_id, append_id, operation.contents, operation.pieces)
            )
            return
        self.refused_justly(operation, outcome)
        if set(operation.contents) & set(self.now.log):
            broken("An append that was refused is not stored", operation, outcome)
        self.refused.update(operation.contents)

    def refused_justly(self, operation: Operation, error: object) -> None:
        """Judges an error that says that nothing was done, and why."""
        if self._is_told_that_it_is_gone(operation, error):
            return
        # One that let go of the message is its writer no more.
        holds = self.now.holder is not None and operation.epoch == self.now.epoch
        replaced = operation.epoch is not None and not holds
        match error:
            case errors.WriterFencedError():
                just = replaced
            case errors.MessageNotStreamingError():
                just = self.now.ended and not replaced
            case errors.StreamStoppedError():
                just = operation.unless_stopped and self.now.stop[0]
            case _:
                just = False
        if not just and not self.server.lagging:
            broken("Who is refused is told why", operation, error, self.now)

    def _judge_trouble(self, operation: Operation) -> None:
        # A majority that is behind keeps an append from making room, or who makes it already.
        if not (operation.troubles or operation.queued or self.server.lagging):
            broken("There is an answer where there is no trouble", operation)

    def _judge_patience(self, operation: Operation) -> None:
        assert operation.began is not None
        waited = (CLOCK.now - operation.began).total_seconds()
        if not operation.troubles and waited < self.patience:
            broken("An append waits for room as long as it may", operation, waited)

    def seals(self, queue: WriteQueue, delay: float) -> None:
        """Judges that chunks are about to be moved to a page."""
        failures, moment = self._failed_seals.get(queue, (0, CLOCK.now))
        waited = (CLOCK.now - moment).total_seconds()
        if failures > 1 and waited < delay:
            broken("After seals that had no effect the next one waits", failures, waited)

    def sealed(self, queue: WriteQueue, *, moved: bool) -> None:
        """Takes note of whether they were."""
        failures, _ = self._failed_seals.get(queue, (0, CLOCK.now))
        self._failed_seals[queue] = (0 if moved else failures + 1, CLOCK.now)

    def leased(self, operation: Operation, outcome: Any) -> None:
        """Judges how an acquisition or a take-over went."""
        if self._is_told_that_it_is_gone(operation, outcome):
            return
        if isinstance(outcome, errors.StoreUnavailableError):
            self._judge_trouble(operation)
        elif isinstance(outcome, errors.MessageNotStreamingError):
            if not self.now.ended and not self.server.lagging:
                broken("Who is refused is told why", operation, outcome)
        elif isinstance(outcome, errors.WriterFencedError):
            if self.now.epoch <= 1 and not self.server.lagging:
                broken("Who is refused is told why", operation, outcome)
        elif isinstance(outcome, errors.WriterError):
            if operation.kind == "take_over":
                broken("Whoever takes over is the writer", operation)
            if not self.now.epoch and not self.server.lagging:
                broken("Who is refused is told why", operation, outcome)
        elif isinstance(outcome, Exception):
            broken("Unexpected", operation, outcome)
        else:
            if outcome.status.is_final:
                broken("Nobody becomes the writer of what has ended", operation)
            fence = self.fences[operation.log_id]
            if outcome.lease.epoch <= fence:
                broken("Each writer has an epoch of its own", operation, outcome.lease)
            self.fences[operation.log_id] = max(fence, outcome.lease.epoch)

    def ended(self, operation: Operation, outcome: Any) -> None:
        """Judges how an end went."""
        if self.is_gone(operation) and isinstance(outcome, EndedMessage):
            return
        by = self.now.end[-1] if self.now.end else None
        if isinstance(outcome, EndedMessage):
            stored = self.confirmed
            if stored.end[-1] != operation.label:
                broken("Who ended a message has ended it", operation, stored.end)
            if outcome.state.next_sequence != len(stored.log):
                broken("An end knows how many chunks there are", operation, outcome)
            if outcome.content not in (None, stored.text):
                broken("The text of a message is that of its chunks", operation, outcome.content)
            records = PartLog.of(stored.chunks).records()
            if outcome.records not in (None, records):
                broken("The parts of a message are those of its chunks", outcome.records, records)
            if outcome.content is None:
                self._judge_trouble(operation)
            return
        if isinstance(outcome, errors.StoreUnavailableError):
            self._judge_trouble(operation)
            return
        if by == operation.label:
            broken("Who ended a message is told so", operation, outcome)
        self.refused_justly(operation, outcome)

    def stopped(self, operation: Operation, outcome: Any) -> None:
        """Judges how a request to stop went."""
        if self.is_gone(operation) and isinstance(outcome, MessageHeader):
            return
        if isinstance(outcome, MessageHeader):
            if not outcome.status.is_final and outcome.lease.holder is None:
                broken("A stop ends a message that has no writer", operation, outcome)
            if outcome.status.is_final and not self.now.ended and not self.server.lagging:
                broken("What is said to have ended has ended", operation, outcome)
        else:
            self.succeeded(operation, outcome)

    def swept(self, operation: Operation, outcome: Any) -> None:
        """Judges how a sweep went."""
        self.succeeded(operation, outcome)
        left = operation.orphaned == self.now.signs and not self.now.ended
        if isinstance(outcome, list) and left and not self.server.lagging:
            broken("A sweep ends what is left behind", operation)

    def succeeded(self, operation: Operation, outcome: Any) -> None:
        """Judges a call that only trouble on the network may keep from its work."""
        if isinstance(outcome, errors.StoreUnavailableError):
            self._judge_trouble(operation)
        elif self._is_told_that_it_is_gone(operation, outcome):
            pass
        elif isinstance(outcome, Exception):
            broken("Unexpected", operation, outcome)

    def loaded(
        self,
        operation: Operation,
        log_id: ObjectId | None,
        chunks: Sequence[StoredChunk],
        *,
        whole: bool,
    ) -> None:
        """Judges what a reader got while others wrote.

        Args:
            log_id: Whose text it is.
            whole: Whether it must have all that was stored before it began.
        """
        if log_id != self.safe.log_id:
            return  # that is no more
        safe = replace(self.safe, compacted=self.safe.compacted or self.now.compacted)
        if not safe.has(chunks):
            broken("A reader gets a beginning of the log", operation, chunks, self.safe.log)
        before: View = operation.safe_before
        if whole and before.log_id == log_id and len(chunks) < len(before.log):
            broken("A reader misses nothing", operation, chunks, self.safe.log)
