"""Logs of parts: those in ``part_logs.json``, which tests in JavaScript read as well, and any."""

import json
from itertools import product
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


def logs(odd: list[Any]) -> st.SearchStrategy[list[dict[str, Any]]]:
    """Logs of events that fit each other, and of others with values of any types, ``odd`` ones too.

    Their chunks come from a pool, since it takes Hypothesis long to make them.
    """
    draw = Random(0)
    values = [*_VALUES, *odd]
    tame = _tame()
    pool = tame * 2

    def fields() -> dict[str, Any]:
        return {name: draw.choice(values) for name in draw.sample(_FIELDS, draw.randint(0, 4))}

    for _ in range(len(tame)):
        names = draw.sample(_NAMES, draw.randint(0, 4))
        wild = {name: draw.choice([draw.choice(values), fields()]) for name in names}
        pool.append({**draw.choice([{}, draw.choice(tame)]), **wild})
    return st.lists(st.sampled_from(pool), min_size=10, max_size=30).map(stored)


_NAMES = ["part", "event", "fields", "delta", "parent", "content"]
_VALUES = [
    *(None, True, False, -1, 0, 1, 2, 3, 0.5, 1.0, -0.0, "", "w", "text", "data", "tool_call"),
    *("start", "set", "end", "reset", "redact", [], ["w"], {}, {"kind": "tool_call"}),
    *({"kind": "data", "name": "w", "id": "w"}, {"approved": True}, {"id": 1, "approved": False}),
]
_FIELDS = [
    *("kind", "name", "id", "transient", "from", "reason", "output", "error", "preliminary"),
    *("approval", "value", "__proto__", "constructor"),
]


def _tame() -> list[dict[str, Any]]:
    starts: list[dict[str, Any]] = [
        *({"kind": "text"}, {"kind": "reasoning"}, {"kind": "step"}, {"kind": "new"}),
        *({"kind": "tool_call"}, {"kind": "tool_call"}, {"kind": "data", "name": "w", "id": "2"}),
        *({"kind": "data", "name": "w", "id": "w", "value": value} for value in (1, 2, 3)),
        {"kind": "data"},
    ]
    changes: list[dict[str, Any]] = [
        *({"output": 1}, {"output": 2, "preliminary": True}, {"error": "no"}, {"value": 4}),
        *({"approval": {"id": each, "approved": yes}} for each in "ab" for yes in (True, False)),
    ]
    parts = range(6)
    return [
        *[{"content": text} for text in ("", "a", "b", "c", "d")],
        *[{"event": "start", "fields": fields} for fields in starts * 6],
        *[{"event": "start", "fields": {**each, "transient": True}} for each in starts[-3:]],
        *[{"event": "start", "fields": each, "parent": part} for each in starts for part in parts],
        *[{"delta": text, "part": part} for text in ("{", "x", "") for part in parts],
        *[{"event": "set", "fields": each, "part": part} for each, part in product(changes, parts)],
        *[{"event": event, "part": part} for event in ("end", "redact") for part in parts],
        *[{"event": "reset", "fields": {"from": part}} for part in (0, 2, 5, 9)],
        *[{"event": "metadata", "fields": {"a": value}} for value in (1, 2)],
    ]
