"""A model of parts: what a log says, asked anew each time; and logs to ask it about.

The reducer goes through a log once and keeps a state. The model keeps none: it answers each
question by looking at the whole log before a sequence, as the design puts it.
"""

from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any, TypeVar

from bson import DBRef, Decimal128, Int64
from hypothesis import strategies as st

from converse_mongo.domain.metadata import restored

Chunk = dict[str, Any]
Fields = Mapping[str, Any]
R = TypeVar("R")

WITH_TEXT = ("text", "reasoning", "tool_call")
OUTCOME = ("output", "error", "preliminary")


def remembered(answer: Callable[..., R]) -> Callable[..., R]:
    """Answers a question to the same log only once."""

    def asked(self: "Reading", *about: int) -> R:
        known = self.known
        key = answer, about
        if key not in known:
            known[key] = answer(self, *about)
        found: R = known[key]
        return found

    return asked


class Reading:
    """The answers of a log. "At n" is when only the chunks before sequence n are there."""

    def __init__(self, chunks: Sequence[Chunk]) -> None:
        self.chunks = chunks
        self.known: dict[Any, Any] = {}

    # A chunk by itself

    def event(self, i: int) -> Any:
        return self.chunks[i].get("event")

    def fields(self, i: int) -> Fields:
        """The fields; those that are stored apart are a :class:`Reference` each."""
        fields = restored(self.chunks[i].get("fields"))
        values = restored(self.chunks[i].get("values"))
        said: dict[str, Any] = {}
        if self.event(i) in ("start", "set", "end") and isinstance(values, Mapping):
            said = {name: Reference(values[name]) for name in values if is_reference(values[name])}
        return {**said, **(fields if isinstance(fields, Mapping) else {})}

    def named(self, i: int) -> int | None:
        """The part that a chunk names, which may not be there."""
        return number(self.chunks[i].get("part"))

    def is_text(self, i: int) -> bool:
        """Text of the answer; empty text is nothing."""
        chunk = self.chunks[i]
        plain = chunk.get("event") is None and chunk.get("part") is None
        return plain and chunk["content"] != ""

    def is_start(self, i: int) -> bool:
        """A start that is not transient."""
        fields = self.fields(i)
        known = isinstance(fields.get("kind"), str)
        return self.event(i) == "start" and known and fields.get("transient") is not True

    def is_nested(self, i: int) -> bool:
        return self.event(i) == "start" and self.chunks[i].get("parent") is not None

    def voids_from(self, i: int) -> int | None:
        return number(self.fields(i).get("from")) if self.event(i) == "reset" else None

    def kind(self, p: int) -> Any:
        return self.fields(p)["kind"] if self.event(p) == "start" else "text"

    def is_answer(self, p: int) -> bool:
        return self.kind(p) == "text" and not self.is_nested(p)

    # A chunk among the others

    @remembered
    def is_void(self, i: int) -> bool:
        """A start whose parent is no living call."""
        parent = number(self.chunks[i].get("parent"))
        if not self.is_nested(i):
            return False
        return parent is None or not self.is_there(parent, i) or self.kind(parent) != "tool_call"

    def place(self, i: int) -> Any:
        """Data with the same parent, name and id replace each other."""
        fields = self.fields(i)
        name, own = fields.get("name"), fields.get("id")
        if not self.is_start(i) or self.kind(i) != "data":
            return None
        if not isinstance(name, str) or not isinstance(own, str):
            return None
        return self.chunks[i].get("parent"), name, own

    @remembered
    def replaced(self, i: int) -> int | None:
        """The part whose data a start replaces."""
        if self.place(i) is None:
            return None
        same = [p for p in range(i) if self.is_there(p, i) and self.place(p) == self.place(i)]
        return same[0] if same else None

    @remembered
    def begins(self, i: int) -> bool:
        """A part's number is the sequence of the chunk that begins it."""
        if self.is_text(i):
            return self.open_text(i) is None
        return self.is_start(i) and not self.is_void(i) and self.replaced(i) is None

    @remembered
    def is_there(self, p: int, n: int) -> bool:
        """A part lives at n: it began, and no reset since then voided it."""
        if p >= n or not self.begins(p):
            return False
        resets = [self.voids_from(r) for r in range(p + 1, n)]
        return not any(first is not None and first <= p for first in resets)

    @remembered
    def open_text(self, n: int) -> int | None:
        """The text part that the next text of the answer would continue."""
        for i in reversed(range(n)):
            if self.voids_from(i) is not None:
                return None
            if self.is_start(i) and not self.is_nested(i):
                return i if self.kind(i) == "text" else None
            p = None if self.is_text(i) else self.belongs(i)
            if self.event(i) in ("end", "redact") and p is not None:
                step = self.event(i) == "end" and self.kind(p) == "step" and not self.is_nested(p)
                if step or p == self.open_text(i):
                    return None
            elif self.is_text(i):
                return self.belongs(i)
        return None

    @remembered
    def belongs(self, i: int) -> int | None:
        """The part that a chunk belongs to, unless it is void."""
        event, p = self.event(i), self.named(i)
        if self.is_text(i):
            continued = self.open_text(i)
            return i if continued is None else continued
        if event == "start":
            return i if self.begins(i) else self.replaced(i) if not self.is_void(i) else None
        if p is None or not self.is_there(p, i):
            return None
        if event == "redact":
            return p if not self.redacted(p, i) else None
        if event is None:
            takes = self.kind(p) in WITH_TEXT and not self.is_answer(p)
            return p if takes and not self.is_settled(p, i) else None
        return p if event in ("set", "end") and not self.is_settled(p, i) else None

    # A part at n

    def chunks_of(self, p: int, n: int, *events: str | None) -> list[int]:
        """The chunks before n that belong to a part, or those that are such events of it."""
        mine = [i for i in range(p, n) if self.belongs(i) == p]
        return [i for i in mine if not events or self.event(i) in events]

    @remembered
    def is_closed(self, p: int, n: int) -> bool:
        if self.is_answer(p):
            return self.open_text(n) != p
        return bool(self.chunks_of(p, n, "end", "redact"))

    @remembered
    def redacted(self, p: int, n: int) -> str | bool:
        """The reason why a part was redacted, or whether it was."""
        redactions = self.chunks_of(p, n, "redact")
        if not redactions:
            return False
        reason = self.fields(redactions[0]).get("reason")
        return reason if isinstance(reason, str) and reason else True

    def is_settled(self, p: int, n: int) -> bool:
        """Closed; for a call later sets and deltas count."""
        return bool(self.redacted(p, n)) or (self.is_closed(p, n) and self.kind(p) != "tool_call")

    def values(self, p: int, n: int) -> Fields:
        """The last start of a part and the later sets and ends, together."""
        fixed = {"kind", "name", "id"} if self.kind(p) == "data" else {"kind", "name"}
        if self.redacted(p, n):
            kept = {"tool_call": ["name"], "data": ["name", "id"]}.get(self.kind(p), [])
            return {n: v for n, v in self.fields(p).items() if n in kept and type(v) is str}
        last = p if not self.place(p) else self.chunks_of(p, n, "start")[-1]
        said = [without(self.fields(last), "kind") if self.event(last) == "start" else {}]
        said += [
            without(self.fields(i), *fixed) for i in self.chunks_of(p, n, "set", "end") if i > last
        ]
        if self.kind(p) != "tool_call":
            return together(said)
        plain = together([without(each, *OUTCOME, "approval") for each in said])
        return {**plain, **outcome(said), **approval(said)}

    def text(self, p: int, n: int) -> str:
        if self.redacted(p, n):
            return ""
        chunks = [self.chunks[i] for i in self.chunks_of(p, n, None)]
        texts = [each["content"] if self.is_answer(p) else each.get("delta") for each in chunks]
        return "".join(text for text in texts if isinstance(text, str))

    # All parts at n

    def records(self, n: int) -> list[dict[str, Any]]:
        records = []
        for p in (p for p in range(n) if self.is_there(p, n)):
            said = self.values(p, n)
            apart = {name: said[name].said for name in said if isinstance(said[name], Reference)}
            record = {"part": p, "kind": self.kind(p), "fields": without(said, *apart)}
            if apart:
                record["values"] = apart
            if self.is_nested(p):
                record["parent"] = self.chunks[p]["parent"]
            if self.kind(p) in WITH_TEXT:
                record["text"] = self.text(p, n)
            if self.is_closed(p, n):
                record["closed"] = True
            if self.redacted(p, n):
                record["redacted"] = self.redacted(p, n)
            records.append(record)
        return records

    def metadata(self, n: int) -> Fields:
        return together([self.fields(i) for i in range(n) if self.event(i) == "metadata"])

    def answer(self, n: int) -> str:
        answers = [p for p in range(n) if self.is_there(p, n) and self.is_answer(p)]
        return "".join(self.text(p, n) for p in answers)


class Reference:
    """A value that is stored apart: its size, and its hash and id if they are texts."""

    def __init__(self, found: Fields) -> None:
        names = [name for name in ("id", "hash") if isinstance(found.get(name), str)]
        self.said = {"size": int(found["size"])} | {name: found[name] for name in names}
        self.said = {name: self.said[name] for name in self.said if self.said[name] != ""}


def is_reference(found: object) -> bool:
    size = found.get("size") if isinstance(found, Mapping) else None
    whole = isinstance(size, int) and not isinstance(size, bool)
    return (whole or (isinstance(size, float) and size % 1 == 0)) and 0 <= size < 2**53  # type: ignore[operator]


def number(value: object) -> int | None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    return value if whole and value >= 0 else None  # type: ignore[operator, return-value]


def without(fields: Fields, *names: str) -> Fields:
    return {name: value for name, value in fields.items() if name not in names}


def together(said: Sequence[Fields]) -> Fields:
    return {name: value for fields in said for name, value in fields.items()}


def outcome(said: Sequence[Fields]) -> Fields:
    """The last final outcome of a call, else the last preliminary one."""
    outcomes = [each for each in said if "output" in each or "error" in each]
    finals = [each for each in outcomes if each.get("preliminary") is not True]
    if not outcomes:
        return {}
    last = (finals or outcomes)[-1]
    name = "error" if "error" in last else "output"
    return {name: last[name]} if finals else {name: last[name], "preliminary": True}


def approval(said: Sequence[Fields]) -> Fields:
    """The last request for approval, with the first answer to it."""
    counted: list[Fields] = []
    for each in (fields.get("approval") for fields in said):
        if isinstance(each, Mapping):
            answered = counted and isinstance(counted[-1].get("approved"), bool)
            if not answered or request(counted[-1]) != request(each):
                counted.append(each)
    return {"approval": counted[-1]} if counted else {}


def request(answer: Fields) -> str | None:
    found = answer.get("id")
    return found if isinstance(found, str) else None


# Logs


def reference(at: int) -> Fields:
    return {"id": f"i{at}", "size": 2**18 + at, "hash": f"h{at}"}


WORDS = ("a", "é ", "𝄞b", "cd", "")
JUNK: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 1.0, float("nan"), Int64(2), 2**40, "", "x", b"\0", [], [1]),
    *({}, {"a": 1}, {"from": 0}, {"kind": "text"}, Decimal128("sNaN"), DBRef("kind", 1)),
    *({"value": {"size": 3.0, "id": 1, "hash": ""}, "from": {"size": 0}}, {"a": {"size": -1}}),
    *({"kind": {"size": 2**9}, "output": {"size": 5, "id": "i", "x": 1}}, {"b": {"size": 2**53}}),
    *("start", "set", "end", "redact", "reset", "metadata", "tool_call", "data"),
)
KINDS = ("text", "reasoning", "tool_call", "data", "step", "source-url", "unknown")
SETS: tuple[Callable[[int], Fields], ...] = (
    lambda at: {"title": f"t{at}"},
    lambda at: {"input": {"at": at}},
    lambda at: {"output": at},
    lambda at: {"output": at, "preliminary": True},
    lambda at: {"output": True},
    lambda at: {"output": 1, "preliminary": True, "title": None},
    lambda at: {"error": f"e{at}"},
    lambda at: {"error": f"e{at}", "output": at, "preliminary": at % 2 == 0},
    lambda at: {"approval": {"id": "1"}},
    lambda at: {"approval": {"id": "1", "approved": True, "at": at}},
    lambda at: {"approval": {"id": "1", "approved": False}, "title": 1},
    lambda at: {"approval": {"id": "2", "approved": at % 2 == 0}},
    lambda at: {"approval": {"approved": at % 2 == 0}, "started": True},
    lambda at: {"value": at, "name": "w", "id": "9"},
    lambda at: {"value": 1, "kind": "text"},
    lambda at: {"value": True, "reason": "r"},
    lambda at: {"~value": at},
    lambda at: {"~output": at},
    lambda at: {"~output": at, "~input": 1, "preliminary": True},
    lambda at: {"~approval": 1, "approval": {"id": "1"}, "~name": 2},
    lambda at: {},
)


class Log:
    """Writes a log, legal or not."""

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []
        self.numbers: list[int] = [0]
        self.calls: list[int] = [0]

    def add(self, content: str = "", **rest: Any) -> int:
        at = len(self.chunks)
        chunk = {"sequence": at, "content": content}
        fields = rest.get("fields")
        if isinstance(fields, Mapping) and "~" in "".join(fields):  # these are stored apart
            rest["values"] = {n[1:]: reference(fields[n]) for n in fields if n[0] == "~"}
            rest["fields"] = {n: fields[n] for n in fields if n[0] != "~"}
        self.chunks.append(chunk | {name: rest[name] for name in rest if rest[name] is not None})
        return at

    def part(self, a: int) -> int:
        """One of the parts, of which not all may live; the last ones more often."""
        return self.numbers[max(len(self.numbers) - 1 - a, 0)]

    def call(self, a: int) -> int:
        return self.calls[max(len(self.calls) - 1 - a, 0)]

    def begin(self, kind: str, parent: int | None = None, **fields: Any) -> int:
        at = self.add(event="start", parent=parent, fields={"kind": kind, **fields})
        self.numbers.append(at)
        if kind == "tool_call":
            self.calls.append(at)
        return at

    def sets(self, b: int) -> Fields:
        return SETS[b % len(SETS)](len(self.chunks))

    # What an agent does

    def writes(self, a: int, b: int) -> None:
        at = self.add(WORDS[(a + b) % len(WORDS)])
        if a % 2:
            self.numbers.append(at)  # perhaps

    def thinks(self, a: int, b: int) -> None:
        at = self.begin("reasoning", self.call(b) if a % 3 == 0 else None)
        for word in WORDS[: a % 4]:
            self.add(part=at, delta=word)

    def calls_a_tool(self, a: int, b: int) -> None:
        at = self.begin("tool_call", self.call(b) if a % 5 == 4 else None, call_id=f"c{a}")
        self.add(part=at, delta="{")
        self.add(part=at, delta='"é": 1}')
        for index in (1, 3, 2)[: b % 4]:
            self.add(event="set", part=at, fields=self.sets(index))

    def asks(self, a: int, b: int) -> None:
        approved = ({}, {"approved": True}, {"approved": False})[b % 3]
        fields = {"approval": {"id": "12"[a % 3 == 0], **approved}}
        self.add(event="set", part=self.call(0), fields=fields)

    def takes_a_step(self, a: int, b: int) -> None:
        self.add(event="end", part=self.part(a), fields={"usage": {"tokens": len(self.chunks)}})
        self.begin("step")

    def gives_data(self, a: int, b: int) -> None:
        parent = self.call(b) if b % 3 == 2 else None
        value = {"~value" if a % 5 == 0 else "value": len(self.chunks)}
        self.begin("data", parent, name="w", id="12"[a % 4 == 0], **value)

    def gives_other_data(self, a: int, b: int) -> None:
        fields: tuple[dict[str, Any], ...]
        fields = ({"transient": True, "name": "w", "id": "1"}, {"name": "w"}, {}, {"transient": 1})
        self.begin("data", self.call(b) if b % 3 == 2 else None, value=True, **fields[a % 4])

    # What is wrong, or comes from several writers

    def begins(self, a: int, b: int) -> None:
        parent = self.part(b) if b % 3 == 2 else None
        self.begin(KINDS[a % len(KINDS)], parent, **without(self.sets(b), "kind"))

    def goes_on(self, a: int, b: int) -> None:
        self.add(part=self.part(a), delta=WORDS[b % len(WORDS)])

    def changes(self, a: int, b: int) -> None:
        self.add(event="set", part=self.part(a), fields=self.sets(b))

    def changes_the_call(self, a: int, b: int) -> None:
        self.add(event="set", part=self.call(a // 4), fields=self.sets(b))

    def ends(self, a: int, b: int) -> None:
        self.add(event="end", part=self.part(a), fields=self.sets(b) if b % 2 else None)

    def redacts(self, a: int, b: int) -> None:
        self.add(event="redact", part=self.part(a), fields={"reason": ("r", "", 1)[b % 3]})

    def resets(self, a: int, b: int) -> None:
        self.add(event="reset", fields={"from": self.part(a) + b % 2})

    def says_of_the_message(self, a: int, b: int) -> None:
        self.add(event="metadata", fields={"ab"[a % 2]: len(self.chunks) if b % 2 else True})

    def talks_nonsense(self, a: int, b: int) -> None:
        names = ("event", "part", "fields", "delta", "parent", "values")
        some = {name: JUNK[(a * 7 + b * 3 + i) % len(JUNK)] for i, name in enumerate(names)}
        some = {name: some[name] for i, name in enumerate(names) if (a + b) >> i & 1}
        self.add("z" if b % 2 else "", **some)

    def spoils(self, a: int, b: int) -> None:
        """Puts something wrong into a chunk that is right."""
        if self.chunks:
            name = ("event", "part", "fields", "delta", "parent", "values")[a % 6]
            self.chunks[-1] = {**self.chunks[-1], name: JUNK[(a + b * 5) % len(JUNK)]}


Step = Callable[[Log, int, int], None]

AGENT: tuple[Step, ...] = (
    *(Log.writes, Log.writes, Log.thinks, Log.calls_a_tool, Log.takes_a_step, Log.gives_data),
    *(Log.gives_other_data, Log.goes_on, Log.changes_the_call, Log.resets, Log.redacts),
    *(Log.says_of_the_message, Log.asks),
)
ALL = (*AGENT, Log.begins, Log.changes, Log.ends, Log.talks_nonsense, Log.spoils)


def written(drawn: bytes) -> list[Chunk]:
    """Makes a step of three bytes each; one draw is faster than many."""
    log = Log()
    steps = AGENT if drawn[0] % 3 == 0 else ALL
    for which, a, b in zip(*[iter(drawn[1:])] * 3, strict=False):
        steps[which % len(steps)](log, a % 16, b)
    return log.chunks


STEPS = 12
seeds = st.integers(0, 2**64).map(lambda seed: written(Random(seed).randbytes(3 * STEPS + 1)))
logs = seeds | seeds | st.binary(min_size=4, max_size=3 * STEPS + 1).map(written)
"""Logs as an agent writes them, and as nobody should; of bytes alone few differ much."""
