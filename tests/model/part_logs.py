"""Logs of parts: those in ``part_logs.json``, which tests in JavaScript read as well, and any."""

import json
from pathlib import Path
from random import Random
from typing import Any

from hypothesis import strategies as st

VECTORS: list[dict[str, Any]] = json.loads(
    Path(__file__).with_suffix(".json").read_text(encoding="utf-8")
)


def stored(chunks: list[Any]) -> list[dict[str, Any]]:
    """The chunks of a log in the short form, in which a string is text."""
    return [
        {
            "sequence": sequence,
            "content": "",
            **({"content": each} if isinstance(each, str) else each),
        }
        for sequence, each in enumerate(chunks)
    ]


def as_json(value: Any) -> str:
    """The value in JSON: equal texts are equal values, and ``true`` is not 1."""
    return json.dumps(value, sort_keys=True)


def said(value: Any) -> str:
    """The value in a text that is equal for equal ones, in whatever order fields were set.

    Not the values themselves are compared: some are not equal to themselves.
    """
    if isinstance(value, dict):
        return f"{{{', '.join(sorted(f'{each!r}: {said(value[each])}' for each in value))}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(said, value))}]"
    return repr(value)


def as_in_javascript(text: str) -> float:
    """A number of JSON, to be given to ``json.loads`` as ``parse_float``."""
    number = float(text)
    return int(number) if number.is_integer() else number


def logs(odd: list[Any]) -> st.SearchStrategy[list[dict[str, Any]]]:
    """Logs of events that mostly fit each other, with values of all types, ``odd`` ones too.

    Hypothesis draws only where to begin, since it takes it long to make a log.
    """
    values = [*_VALUES, *odd]
    return st.randoms(use_true_random=True).map(lambda draw: stored(_log(draw, values)))


_STARTS: list[dict[str, Any]] = [
    *({"kind": "text"}, {"kind": "text", "id": "t"}, {"kind": "reasoning"}, {"kind": "step"}),
    *({"kind": "tool_call", "error": 1, "output": 1}, {"kind": "new", "output": 1}),
    *({"kind": "data", "name": "w", "id": "w", "value": value} for value in (1, 2, 3)),
    *({"kind": "data", "name": "w", "id": "x"}, {"kind": "data", "name": "x", "id": "w"}),
    *({"kind": "data"}, {"kind": "data", "name": "", "id": ""}, {"kind": "x", "transient": True}),
]
_CHANGES: list[dict[str, Any]] = [
    *({"output": 1}, {"output": None}, {"output": 2, "preliminary": True}, {"error": "no"}),
    *({"approval": {"id": each, "approved": yes}} for each in "ab" for yes in (True, False)),
    *({"approval": {"id": "a"}}, {"name": "w", "id": "w", "value": 4}, {"kind": "text"}, {}),
    *({"reason": "private"}, {"reason": ""}),
]
_REFERENCES: list[Any] = [
    *({"size": 1, "id": "a", "hash": "b"}, {"size": 2.0, "id": ""}, {"size": 0, "id": 1}),
    *({"size": True}, {"size": -1}, {"size": 2**53}, {"size": 0.5}, {"id": "a"}, None, "w", [1]),
]
_VALUES = [
    *(None, True, False, -1, 0, 1, 2, 3, 0.5, 1.0, -0.0, "", "w", "text", "data", "tool_call"),
    *("start", "set", "end", "reset", "redact", [], ["w"], {}, {"kind": "tool_call"}),
    *({"kind": "data", "name": "w", "id": "w"}, {"approved": True}, {"id": 1, "approved": False}),
]
_FIELDS = [
    *("kind", "name", "id", "transient", "from", "reason", "output", "error", "preliminary"),
    *("approval", "value", "__proto__", "constructor"),
]


def _log(draw: Random, values: list[Any]) -> list[dict[str, Any]]:
    kinds = [{"kind": "tool_call"}, *draw.sample(_STARTS, 2)]  # few, so that they meet
    chunks: list[dict[str, Any]] = []
    begun, calls = [0], [0]
    for sequence in range(draw.randint(2, 40)):
        part, text = draw.choice(begun[-3:]), draw.choice(["", "a", "b", "c"])
        fields = draw.choice(kinds)
        start: dict[str, Any] = {"event": "start", "fields": fields}
        below = {**start, "parent": draw.choice(calls[-2:])}
        change = {"event": "set", "part": part, "fields": draw.choice(_CHANGES)}
        end = {**change, "event": draw.choice(["end", "end", "redact"])}
        reset = {"event": "reset", "fields": {"from": draw.randint(0, 30)}}
        metadata = {"event": "metadata", "fields": {draw.choice("ab"): text}}
        chunk = draw.choice(
            [
                *([{"content": text}] * 3 + [start] * 3 + [below] * 3 + [change] * 8),
                *([{"delta": text, "part": part}] * 4 + [end] * 2 + [reset, metadata]),
            ]
        )
        if draw.random() < 0.2:
            chunk = {**chunk, draw.choice([*chunk, "part", "event", "values"]): draw.choice(values)}
        elif draw.random() < 0.1:
            more = {name: draw.choice(values) for name in draw.sample(_FIELDS, 3)}
            chunk = {**chunk, "fields": {**chunk.get("fields", {}), **more}}
        if draw.random() < 0.2:
            names = draw.sample(_FIELDS, 2)
            chunk = {**chunk, "values": {name: draw.choice(_REFERENCES) for name in names}}
        if "content" in chunk or chunk.get("event") == "start":
            begun.append(sequence)
            if fields["kind"] == "tool_call":
                calls.append(sequence)
        chunks.append(chunk)
    return chunks
