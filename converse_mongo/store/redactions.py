"""Redactions: the content of a part is removed from every copy of it.

A message that streams gets a ``redact`` event, after which every reader has the part without its
content. One that has ended is changed first: its parts, its text, and ``redactions``. Merged chunks
are changed with it. All others are swept afterwards.
"""

import contextlib
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

import bson
from pymongo.errors import OperationFailure

from converse_mongo.domain.errors import (
    InvalidInputError,
    MessageNotFoundError,
    MessageNotStreamingError,
)
from converse_mongo.domain.events import MessageUpdated
from converse_mongo.domain.headers import PARTS_FORMAT, MessageHeader, check_format
from converse_mongo.domain.part_log import TEXT, PartLog, Record, restored_records, storable_records
from converse_mongo.domain.part_pieces import PartPiece, PartRef
from converse_mongo.domain.part_redaction import Redaction, Sweep, redaction, reduced
from converse_mongo.domain.validation import MAX_CONTENT_BYTES, now, utf8_size
from converse_mongo.driver import servers
from converse_mongo.driver.failures import is_too_large
from converse_mongo.store import updates
from converse_mongo.store.appends import Appends
from converse_mongo.store.collections import Collections, WriteQueue, back_off
from converse_mongo.store.sweeps import Sweeps
from converse_mongo.store.values import Values, referred_to

Document = dict[str, Any]


class Redactions:
    """Redacts parts of messages."""

    def __init__(
        self, collections: Collections, appends: Appends, sweeps: Sweeps, values: Values
    ) -> None:
        self._collections = collections
        self._appends = appends
        self._sweeps = sweeps
        self._values = values

    async def redact(
        self, queue: WriteQueue, key: Mapping[str, Any], part: int | None, reason: str | None
    ) -> None:
        """Removes the content of a part; a second time it finishes what the first one left.

        Args:
            queue: The queue of the message.
            key: The message.
            part: The number of the part; ``None`` for the first text of the answer.
            reason: The reason, if one is to be stored.

        Raises:
            InvalidInputError: The message has no such part.
            MessageNotFoundError: The message does not exist.
            UnknownFormatError: A later version wrote to the message.
            StoreUnavailableError: No answer for ``retry_timeout`` seconds.
        """
        tried = False
        for attempt in count(1):
            stored = await self._read(key)
            state, log = MessageHeader.from_stored(stored), _log_of(stored)
            record = _find(log, part)
            if record is None:
                raise InvalidInputError(
                    f"Message {key['_id']} has no part {part}: pass one of its parts, or the "
                    "number of one. Nothing was written."
                )
            redacted = redaction(record["part"], reason)
            if record.get("redacted"):
                break
            if not state.status.is_final:
                with contextlib.suppress(MessageNotStreamingError):
                    await self._append(queue, key, redacted)
                    break
            else:
                tried = True
                # Before their references go.
                await self._values.delete(key, _referred_to(stored, record))
                if await self._hide(state, stored, log, redacted):
                    break
            await back_off(attempt)
        if tried:
            await self._tell(state)
        await self._sweeps.sweep(key)

    async def _read(self, key: Mapping[str, Any]) -> Document:
        stored = await self._collections.call(
            self._collections.reader.document, key, what=f"read message {key['_id']}"
        )
        if stored is None:
            raise MessageNotFoundError(key["_id"])
        check_format(key["_id"], stored.get("format"))
        return stored

    async def _append(self, queue: WriteQueue, key: Mapping[str, Any], redacted: Redaction) -> None:
        fields = {name: redacted[name] for name in ("reason",) if name in redacted}
        piece = PartPiece("redact", PartRef(None, redacted["part"]), fields)
        await self._appends.append(queue, key, [piece], has_parts=True)

    async def _hide(
        self, state: MessageHeader, stored: Document, log: PartLog, redacted: Redaction
    ) -> bool:
        """Redacts a part of a message that has ended, for all who read it from then on.

        Returns:
            ``False`` if the message was changed since it was read.
        """
        number = redacted["part"]
        is_text = log.kind_of(number) == TEXT
        log.redact(number, redacted.get("reason"))
        kept, removed = _left(state, stored, log, redacted, is_text=is_text)
        try:
            return await self._write(state, stored, redacted, kept, removed)
        except OperationFailure as error:
            if not is_too_large(error):
                raise
        # Readers reduce the chunks instead.
        removed += [name for name in ("parts",) if kept.pop(name, None) is not None]
        if not state.compacted:
            kept["content"] = ""
        return await self._write(state, stored, redacted, kept, removed)

    async def _write(
        self,
        state: MessageHeader,
        stored: Document,
        redacted: Redaction,
        kept: Document,
        removed: Sequence[str],
    ) -> bool:
        moment = now()
        if state.streamed and not state.compacted:
            kept = {**kept, "compact_at": moment}
        messages = self._collections.messages
        save = updates.save_message(
            *(kept, removed, moment, state.conversation_id, state.role),
            servers.mark_type(messages),
        )
        written = await self._collections.call(
            messages.update_one,
            *updates.redact(state.key, stored, redacted, save),
            what=f"redact a part of message {state.message_id}",
        )
        return bool(written.matched_count)

    async def _tell(self, state: MessageHeader) -> None:
        stored: Any = await self._collections.call(
            self._collections.messages.find_one,
            *(state.key, {"revision": 1}),
            what=f"read message {state.message_id}",
        )
        if stored is not None:
            await self._collections.handlers.publish(
                MessageUpdated(
                    conversation_id=state.conversation_id,
                    message_id=state.message_id,
                    role=state.role,
                    revision=stored["revision"],
                )
            )


def _log_of(stored: Document) -> PartLog:
    """Returns the parts of a whole document."""
    if stored.get("chunks"):
        return reduced(stored["chunks"], stored.get("redactions"))
    records = stored.get("parts")
    if records is None:  # text alone, that was added whole
        text = stored.get("content")
        records = [{"part": 0, "kind": TEXT, "fields": {}, "text": text}] if text else []
    return PartLog.from_snapshot({"next_sequence": 0, "parts": restored_records(records)})


def _referred_to(stored: Document, record: Record) -> set[str]:
    """Returns the ids of the values of a part, with those that others replaced."""
    sweep, chunks = Sweep([record["part"]]), stored.get("chunks") or ()
    return referred_to([record, *(each for each in chunks if sweep.sweep(each) is not each)])


def _find(log: PartLog, number: int | None) -> Record | None:
    for record in log.records():
        is_text = record["kind"] == TEXT and "parent" not in record
        if record["part"] == number or (number is None and is_text):
            return record
    return None


def _left(
    state: MessageHeader, stored: Document, log: PartLog, redacted: Redaction, *, is_text: bool
) -> tuple[Document, list[str]]:
    """Returns the fields that change with a redaction, and the names of those that go."""
    records, text = storable_records(log.records()), log.text()
    size, removed = utf8_size(text), []
    kept: Document = {"format": state.format or PARTS_FORMAT}
    if state.compacted:
        redactions = [*(state.redactions or ()), redacted]
        merged = updates.merged_log(stored["chunks"], redactions)
        kept |= {**merged, "content_bytes": size}
        removed += [each for each in ("chunk_metadata", "chunk_events") if each not in merged]
    elif state.streamed and size <= MAX_CONTENT_BYTES:
        kept |= {"content": text, "content_bytes": size}
    elif is_text and not state.streamed:
        kept["content"] = text
    if size + len(bson.encode({"parts": records})) <= MAX_CONTENT_BYTES:
        kept["parts"] = records
    else:
        removed.append("parts")
    return kept, removed
