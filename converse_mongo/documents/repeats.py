"""Whether a message that is stored says what a repeated request asks to store."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from beanie.odm.actions import ActionDirections, ActionRegistry, EventTypes

from converse_mongo.documents.messages import Message
from converse_mongo.domain.part_log import TEXT


async def has_text(message: Message, text: str) -> bool:
    """Returns whether a message was added with a text.

    Hooks of the application may change a text before it is stored: they are run on a copy then.
    """
    if message.content == text:
        return True
    again = message.model_copy(
        update={"content": text, "metadata": copy.deepcopy(message.metadata)}
    )
    await ActionRegistry.run_actions(again, EventTypes.INSERT, ActionDirections.BEFORE, exclude=[])
    return again.content == message.content


def has_parts(message: Message, records: Sequence[Mapping[str, Any]] | None) -> bool:
    """Returns whether a whole message was added with parts, beside its text.

    Those that were redacted since may have been any of their kinds.

    Args:
        message: The message.
        records: The records of the parts in stored form; ``None`` for text alone.
    """
    stored, given = _beside_text(message.part_records), _beside_text(records)
    return len(stored) == len(given) and all(map(_is_same, stored, given))


def _beside_text(records: Iterable[Mapping[str, Any]] | None) -> list[Mapping[str, Any]]:
    return [each for each in records or () if each["kind"] != TEXT]


def _is_same(stored: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
    if stored.get("redacted"):
        return bool(stored["kind"] == given["kind"])
    return _said_by(stored) == _said_by(given)


def _said_by(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a record says, without its place and the ids of what is stored apart."""
    values = {name: each["hash"] for name, each in record.get("values", {}).items()}
    return {**record, "part": None, "values": values}
