"""Logs that broke other readings of the rules, and that random runs may miss."""

from typing import Any

from tests.model.parts import Chunk


def chunk(sequence: int, content: str = "", **rest: Any) -> Chunk:
    return {"sequence": sequence, "content": content, **rest}


def log(*said: str | dict[str, Any]) -> list[Chunk]:
    return [
        chunk(at, each) if isinstance(each, str) else chunk(at, **each)
        for at, each in enumerate(said)
    ]


def start(kind: str, parent: int | None = None, **fields: Any) -> dict[str, Any]:
    above = {} if parent is None else {"parent": parent}
    return {"event": "start", "fields": {"kind": kind, **fields}, **above}


def data(value: int, parent: int | None = None) -> dict[str, Any]:
    return start("data", parent, name="w", id="1", value=value)


def delta(part: int, text: str) -> dict[str, Any]:
    return {"part": part, "delta": text}


def event(name: str, part: int, **fields: Any) -> dict[str, Any]:
    return {"event": name, "part": part, "fields": fields}


def reset(first: int) -> dict[str, Any]:
    return {"event": "reset", "fields": {"from": first}}


def answer(part: int, request: str, approved: bool) -> dict[str, Any]:
    return event("set", part, approval={"id": request, "approved": approved})


CALL = start("tool_call", call_id="c")
REFERENCE = {"id": "v", "size": 300_000, "hash": "h"}


def apart(part: int, name: str, **fields: Any) -> dict[str, Any]:
    return {**event("set", part, **fields), "values": {name: REFERENCE}}


LOGS: dict[str, list[Chunk]] = {
    "transient data in a text": log("a", start("data", transient=True, name="w", id="1"), "b"),
    "void data in a text": log("a", data(1), "b", reset(1), "c", data(2), "d"),
    "data twice with text between": log("a", data(1), "b", data(2), "c"),
    "data three times with text between": log("a", data(1), "b", data(2), "c", data(3), "d"),
    "data of a call and of the answer": log(CALL, data(1), data(2, 0), data(3), data(4, 0)),
    "data replaced before a reset": log("a", data(1), "b", data(2), reset(2), "c"),
    "data voided and given again": log(data(1), reset(0), data(2), "a", data(3)),
    "data redacted and given again": log(data(1), event("redact", 0), data(2), "a", data(3)),
    "data closed and given again": log(data(1), event("end", 0), data(2), event("set", 0, v=1)),
    "data with other fields": log(start("data", name="w", id="1", title="t"), data(1)),
    "data renamed": log(data(1), event("set", 0, id="2"), data(2), reset(0), data(3)),
    "deltas in a row": log(start("reasoning"), delta(0, "a"), delta(0, ""), delta(0, "é𝄞")),
    "deltas of two calls": log(
        CALL, CALL, delta(0, "a"), delta(0, "b"), delta(1, "c"), delta(0, "d")
    ),
    "deltas between text": log(start("reasoning"), delta(0, "a"), "b", delta(0, "c"), "d"),
    "a flush behind a reset": log(
        "a", start("reasoning"), delta(1, "b"), reset(0), delta(1, "c"), "d"
    ),
    "text goes on": log("a", "a"),
    "text between events of a call": log(
        "a", start("reasoning", 9), "b", event("set", 0, v=1), "c"
    ),
    "stale numbers": log(
        start("reasoning"), "a", CALL, delta(0, "b"), event("end", 0), delta(0, "c")
    ),
    "approved and denied": log(CALL, answer(0, "1", True), answer(0, "1", False)),
    "asked again, and the first again": log(
        *(CALL, answer(0, "1", True), event("set", 0, approval={"id": "2"})),
        *(answer(0, "1", False), answer(0, "1", True)),
    ),
    "written to when redacted": log(
        *(CALL, delta(0, "a"), event("redact", 0, reason="r"), delta(0, "b")),
        *(event("set", 0, v=1), event("redact", 0, reason="s")),
    ),
    "a reset that voids nothing": log("a", reset(9), "b"),
    "a closed part voided": log("a", start("step"), event("end", 1), reset(1), "b"),
    "text redacted to nothing": log("a", "b", event("redact", 0, reason="r"), "c"),
    "text redacted, closed before": log("a", start("step"), "b", event("redact", 0), "c"),
    "text redacted and voided": log("a", "b", event("redact", 0), reset(0), "c"),
    "text voided in the middle": log("a", start("step"), "b", "c", reset(2), "d", "e"),
    "text voided with a start of its own": log(start("text"), "a", reset(0), "b"),
    "text ended": log("a", event("end", 0), "b", event("end", 0), "c"),
    "text by deltas": log(start("text"), delta(0, "a"), "b", CALL, start("text", 3), delta(4, "c")),
    "a nested part in a text": log(CALL, "a", start("reasoning", 0), delta(2, "b"), "c"),
    "parents that are none": log(
        *("a", CALL, start("step", 0), start("step", 9), reset(1), start("step", 1), "b"),
        *(CALL, {**start("step"), "parent": True}, {**start("step"), "parent": "7"}, "c"),
    ),
    "fields that are none": log("a", {"event": "start", "fields": True}, "b", {"event": "reset"}),
    "true is not one": log(
        *("a", {"event": "set", "part": True}, {"event": "set", "part": 1}),
        *({"event": "set", "part": 1.0}, {"part": True, "delta": "b"}, {"part": 1, "delta": "c"}),
    ),
    "outcomes": log(
        *(CALL, event("set", 0, output=1, preliminary=True), event("set", 0, output=1)),
        *(event("set", 0, output=1, preliminary=True), event("set", 0, error="e", output=2)),
        *(event("set", 0, error="f", preliminary=True), event("end", 0, output=True)),
        *(delta(0, "late"), event("set", 0, title="t")),
    ),
    "values that are stored apart": log(
        *({**CALL, "values": {"input": REFERENCE}}, apart(0, "output", preliminary=True)),
        *(apart(0, "output"), apart(0, "title"), event("set", 0, title="t"), reset(9)),
        *({**start("reasoning"), "values": {"a": REFERENCE}}, apart(6, "b"), event("redact", 6)),
        *({**data(1), "values": {"title": REFERENCE}}, data(2), apart(9, "name"), reset(7)),
        {"event": "metadata", "values": {"a": REFERENCE}},
    ),
    "preliminary outputs alone": log(
        CALL, *(event("set", 0, output=each, preliminary=True) for each in range(4))
    ),
    "metadata": log(*({"event": "metadata", "fields": {"a": each, "b": 1}} for each in (True, 1))),
}
