"""Sub-agents at work are preliminary outputs of their calls, in the stream as in the history."""

import json
import tracemalloc
from collections.abc import Iterator
from itertools import pairwise
from random import Random
from typing import Any

import pytest

from converse_mongo import Conversation, Message, PartIdentity
from converse_mongo.documents.part_views import shown_chunks
from converse_mongo.documents.presentation import Presentation
from converse_mongo.domain.chunks import MessageChunk
from converse_mongo.domain.part_merging import expand_events, merge
from converse_mongo.domain.validation import now
from converse_mongo.web.ui_agents import CHUNK_WEIGHT, MAX_SHOWN
from converse_mongo.web.ui_parts import MAX_AGENTS
from converse_mongo.web.ui_stream import UiStream
from tests.model.part_logs import stored
from tests.web.ai_sdk.node import needs_node
from tests.web.ai_sdk.test_tool_calls import (
    answered,
    asking,
    expect_run,
    history,
    parts_of,
    post,
    request,
)
from tests.web.ai_sdk.test_ui_stream import START, Live, comparable, read
from tests.web.conftest import MakeSite

Chunk = dict[str, Any]


def start(kind: str, parent: int | None = None, **fields: Any) -> Chunk:
    above = {} if parent is None else {"parent": parent}
    return {"event": "start", **above, "fields": {"kind": kind, **fields}}


def call(parent: int | None = None, **fields: Any) -> Chunk:
    return start("tool_call", parent, **{"name": "research", **fields})


def delta(part: int, text: str) -> Chunk:
    return {"part": part, "delta": text}


def change(part: int, **fields: Any) -> Chunk:
    return {"event": "set", "part": part, "fields": fields}


def end(part: int) -> Chunk:
    return {"event": "end", "part": part}


def redact(part: int) -> Chunk:
    return {"event": "redact", "part": part}


def reset(first: int) -> Chunk:
    return {"event": "reset", "fields": {"from": first}}


def live(log: list[Any]) -> Live:
    return Live([{"created_at": now(), **chunk} for chunk in stored(log)])


def live_stream(log: list[Any]) -> Iterator[list[Chunk]]:
    """The parts of each chunk of a log, of which none is written anew."""
    stream = UiStream()
    made = (MessageChunk.from_stored({"created_at": now(), **chunk}) for chunk in stored(log))
    for chunk in shown_chunks(made, Presentation()):
        parts = stream.add(chunk)
        assert parts is not None
        yield parts


LOGS: dict[str, list[Any]] = {
    "each kind": [
        *["I ask. ", call(input={"task": "cats"}, call_id="c1"), start("step", 1)],
        *[start("reasoning", 1), delta(3, "Hm"), end(3), start("text", 1), delta(4 + 2, "Cats ")],
        *[call(1, name="search", call_id="c1"), delta(8, '{"q": 1'), change(8, input={"q": 1})],
        *[change(8, output=[1]), end(2), start("data", 1, name="d", id="x", data=1)],
        *[start("data", 1, name="d", id="x", data=2), start("source_url", 1, url="https://a.b")],
        *[delta(6, "purr."), end(6), "meanwhile ", change(1, output="Cats purr."), "done"],
    ],
    "two at once": [
        *[call(input=1, call_id="a"), call(input=2, call_id="b")],
        *[start("text", 0), start("text", 1), delta(2, "A"), delta(3, "B"), delta(2, "A")],
        *[change(1, error="broken"), delta(2, "A" * 99), delta(3, "late"), change(0, output=1)],
    ],
    "nested": [
        *[call(input=1), call(0, input=2), call(1, input=3), start("text", 2), delta(3, "deep")],
        *[change(2, output="d"), start("text", 1), delta(6, "middle"), change(1, output="m")],
        *[start("text", 0), delta(9, "top"), change(0, output="t")],
    ],
    "input comes late": [
        *[call(), delta(0, '{"a"'), start("text", 0), delta(2, "x"), delta(0, ": 1}")],
        *[change(0, input={"a": 1}), delta(2, "y"), change(0, input={"a": 2}), delta(2, "z")],
    ],
    "approval before": [
        *[call(input=1, approval={"id": "a"}), start("text", 0), delta(1, "x")],
        *[change(0, approval={"id": "a", "approved": True}), delta(1, "y"), change(0, output=1)],
    ],
    "approval in the middle": [
        *[call(input=1), start("text", 0), delta(1, "x"), change(0, approval={"id": "a"})],
        *[delta(1, "y" * 99), change(0, approval={"id": "a", "approved": True}), delta(1, "z")],
    ],
    "approval at once": [
        *[call(input=1), start("text", 0), *(delta(1, "x") for _ in range(20))],
        *[change(0, approval={"id": "a"}), change(0, approval={"id": "a", "approved": True})],
    ],
    "denied": [
        *[call(input=1), start("text", 0), delta(1, "x"), change(0, approval={"id": "a"})],
        *[change(0, approval={"id": "a", "approved": False}), delta(1, "y" * 99), "b"],
    ],
    "approval below": [
        *[call(input=1), call(0, input=2), change(1, approval={"id": "a"}), start("text", 1)],
        *[delta(3, "x"), change(1, approval={"id": "a", "approved": True}), delta(3, "y" * 99)],
    ],
    "an output of the application": [
        *[call(input=1), start("text", 0), delta(1, "x")],
        *[change(0, output="so far", preliminary=True), delta(1, "y" * 99), change(0, output=1)],
    ],
    "renamed": [
        *[call(input=1), start("text", 0), delta(1, "x"), change(0, title="T"), delta(1, "y" * 99)],
    ],
    "redacted": [
        *[call(input=1), start("text", 0), delta(1, "secret"), start("text", 0), delta(3, "x")],
        *[redact(1), delta(3, "y"), "a", delta(3, "z")],
    ],
    "reset": [
        *[call(input=1), start("text", 0), delta(1, "x"), start("text", 0), delta(3, "y"), "a"],
        *[reset(3), start("text", 0), delta(7, "z"), reset(1), "b", reset(0), "c"],
    ],
    "reset of a later step": [
        *[start("step"), call(input=1), start("text", 1), delta(2, "x"), end(0), start("step")],
        *["b", delta(2, "y"), start("text", 1), reset(6), "c", change(1, output=1)],
    ],
    "changed source behind it": [
        *[start("source_url", url=""), call(input=1), start("text", 1), delta(2, "x" * 99)],
        *[delta(2, "y"), change(0, url="https://a.b"), delta(2, "z")],
    ],
    "rewritten in a later step": [
        *[start("step"), call(input=1), start("text", 1), delta(2, "x"), end(0), start("step")],
        *[start("source_url", url=""), "b", start("text", 1), reset(7), change(6, url="https://a")],
    ],
}


def disagreements(lives: list[Live]) -> list[str]:
    """Where a page that follows shows something else than one that is loaded then."""
    streams: list[list[Chunk]] = []
    shown: list[list[Chunk]] = []
    for each in lives:
        sent = [START]
        for parts, behind in zip(each.sent, each.shown, strict=True):
            streams.append(sent := [*sent, *parts])
            shown.append(behind)
        streams.append([*sent, *each.stream.close()])
        shown.append(each.end)
    return [
        f"{comparable(found.get('parts', []))}\n{comparable(wanted)}\n{stream}\n{found}"
        for stream, found, wanted in zip(streams, read(streams), shown, strict=True)
        if "errors" in found or comparable(found["parts"]) != comparable(wanted)
    ]


@needs_node
@pytest.mark.parametrize("name", LOGS)
def test_page__shows_what_the_history_has_of_a_sub_agent(name: str) -> None:
    assert disagreements([live(LOGS[name])]) == []


def a_log(draw: Random) -> list[Any]:
    """A log of calls with sub-agents, which write and are written to in any order.

    It takes nothing back, and asks nothing, of calls in earlier steps: an open page is not told.
    """
    log: list[Any] = [start("step"), call(input=1)]
    parts, step = {1: "tool_call"}, 0
    below: dict[int, int] = {}
    for _ in range(draw.randrange(10, 60)):
        at, part = len(log), draw.choice(list(parts))
        is_call = parts[part] == "tool_call"
        may_change = is_call and (part in below or part > step)
        match draw.randrange(20):
            case 0:
                log.append(call(input=at) if draw.random() < 0.7 else call())
                parts[at] = "tool_call"
            case 1 | 2 | 3 | 4 if is_call:
                kind = draw.choice(["text", "reasoning", "tool_call", "step", "source_url"])
                fields: dict[str, dict[str, Any]] = {
                    "tool_call": {"name": "t", "input": at},
                    "source_url": {"url": "u:"},
                }
                log.append(start(kind, part, **fields.get(kind, {})))
                parts[at], below[at] = kind, part
            case 5:
                log.append(draw.choice(["some text ", call(output=1), start("step")]))
                step = at if log[-1] == start("step") else step
            case 6 if may_change:
                log.append(change(part, input=at))
            case 7 if may_change:
                answered = {"approved": True} if draw.random() < 0.7 else {}
                log.append(change(part, approval={"id": str(part), **answered}))
            case 8 if is_call:
                preliminary = {"preliminary": True} if draw.random() < 0.3 else {}
                log.append(change(part, output=at, **preliminary))
            case 9 if below and draw.random() < 0.3:
                log.append(redact(draw.choice(list(below))))
            case 10 if draw.random() < 0.3:
                log.append(reset(draw.randrange(step + 1, at + 1)))
            case 11 if part in below:
                log.append(end(part))
            case _ if parts[part] in ("text", "reasoning"):
                log.append(delta(part, draw.choice(["word ", "x" * 100, "y" * 1000])))
    return log


@needs_node
@pytest.mark.parametrize("seed", range(4))
def test_page__shows_what_the_history_has_in_any_log_with_sub_agents(seed: int) -> None:
    draw = Random(seed)
    assert disagreements([live(a_log(draw)) for _ in range(25)]) == []


SHAPES: dict[str, Any] = {
    "one text": lambda n: [start("text", 0), *(delta(1, "word ") for _ in range(n))],
    "many texts": lambda n: [
        each
        for at in range(1, 4 * n, 4)
        for each in (start("text", 0), delta(at, "a few "), delta(at, "words"), end(at))
    ],
    "many calls": lambda n: [
        each
        for at in range(1, 2 * n, 2)
        for each in (call(0, input={"q": "x" * 50}), change(at, output="y" * 500))
    ],
    "values first": lambda n: [
        *[call(0, input=1), change(1, output="y" * 50 * n), start("text", 0)],
        *[delta(3, "word ") for _ in range(n)],
    ],
    "calls below": lambda n: [call(at, input=1) if at < 9 else call(at % 9) for at in range(n)],
}


def outputs_of(log: list[Any]) -> list[str]:
    """The outputs of sub-agents that the stream of a log has, in JSON."""
    return [
        json.dumps(part["output"])
        for parts in live_stream(log)
        for part in parts
        if part["type"] == "tool-output-available"
    ]


@pytest.mark.parametrize("shape", SHAPES)
def test_outputs__cost_a_few_times_what_the_sub_agent_wrote(shape: str) -> None:
    for count in (500, 2000):
        log = [call(input=1), *SHAPES[shape](count)]
        written = sum(CHUNK_WEIGHT + len(json.dumps(chunk)) for chunk in log[1:])
        outputs = outputs_of(log)
        assert sum(map(len, outputs)) < 9 * written
        assert len(outputs) < 100


def test_outputs__come_often_at_first_and_then_with_each_eighth_more() -> None:
    log = [call(input=1), start("text", 0), *(delta(1, "word ") for _ in range(1000))]
    counts = [len(json.loads(each)["parts"][0]["text"]) // 5 for each in outputs_of(log)]
    assert counts[:8] == [0, 1, 2, 3, 4, 5, 6, 7]
    assert counts[-1] > 880
    assert all(8 * after <= 9 * before + 17 for before, after in pairwise(counts))


def test_output__is_made_anew_when_something_of_it_is_taken_back() -> None:
    log = [call(input=1), start("text", 0), delta(1, "x" * 999), start("text", 0), delta(3, "y")]
    for taken, left in ((reset(3), ["x" * 999]), (redact(1), ["", "y"]), (reset(1), [])):
        output = json.loads(outputs_of([*log, taken])[-1])
        assert [part["text"] for part in output["parts"]] == left


def test_output__over_a_size_stays_as_it_is_and_takes_no_memory() -> None:
    text = "x" * 1000
    log = [call(input=1), start("text", 0), *(delta(1, text) for _ in range(1000))]
    outputs = outputs_of([*log, change(0, output="done")])
    assert json.loads(outputs[-1]) == "done"
    assert MAX_SHOWN < len(outputs[-2]) < 1.2 * MAX_SHOWN
    anew = outputs_of([*log, start("text", 0), delta(len(log), "y"), redact(1)])
    assert json.loads(anew[-1]) == {"id": "0", "role": "assistant", "parts": []}
    stream = UiStream()
    made = (MessageChunk.from_stored({"created_at": now(), **chunk}) for chunk in stored(log))
    sizes = []
    tracemalloc.start()
    for at, chunk in enumerate(shown_chunks(made, Presentation())):
        stream.add(chunk)
        if at in (500, 1000):
            sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert sizes[1] - sizes[0] < 100 * len(text)


def test_outputs__of_sub_agents_below_each_other_have_a_bound() -> None:
    depth = 64
    log = [call(input=0), *(call(at, input=0) for at in range(depth)), start("text", depth)]
    outputs = outputs_of(log)
    found, levels = json.loads(outputs[-1]), 0
    while found is not None:
        [part] = found["parts"]
        found, levels = part.get("output"), levels + 1
    assert levels == MAX_AGENTS


def test_outputs__are_counted_alike_when_the_chunks_were_merged() -> None:
    log = [
        *[call(input=1), call(0, input=2), change(1, output="so far", preliminary=True)],
        *[start("data", 0, name="d", id="x", data="y" * at) for at in range(99)],
        *[change(1, output="z"), start("text", 0), *(delta(103, "word ") for _ in range(99))],
        *[end(103), change(0, output="done"), "The end."],
    ]
    made = [{"created_at": now(), **chunk} for chunk in stored(log)]
    merged = merge(made)
    document = {
        "content": merged.content,
        "chunk_lengths": merged.lengths,
        "chunk_events": merged.events,
        "completed_at": now(),
    }
    counts = [
        [len(parts) for parts in live_stream(chunks)] for chunks in (log, expand_events(document))
    ]
    # The preliminary output that was replaced is gone, with its part, if there was one.
    assert counts[0] == counts[1]


# Over the wire


async def research(_: Conversation, message: Message) -> None:
    """A sub-agent works, and the page is asked for something meanwhile."""
    async with message.writer() as writer:
        if not message.parts:
            work = await writer.start_tool_call("research", call_id="r_1")
            await work.set_input({"task": "cats"})
            agent = work.nested()
            await agent.write_reasoning("Where to look?")
            await agent.write("Cats ")
            search = await agent.start_tool_call("search", call_id="s_1")
            await search.set_input({"q": "cats"})
            await search.set_output(["a cat"])
            below = (await agent.start_tool_call("ask")).nested()
            await below.write("below")
            locate = await writer.start_tool_call("locate", call_id="l_1", executor="client")
            await locate.set_input({})
            await writer.suspend()
            return
        [left] = [part for part in message.unfinished_calls if part.call_id == "r_1"]
        call = writer.continue_tool_call(left)
        await call.nested().write("purr.")
        await call.set_output("Cats purr.")
        await writer.write("Done")


@pytest.mark.parametrize("shows_search", [True, False])
async def test_history__has_the_output_of_a_sub_agent_at_work(
    make_site: MakeSite, shows_search: bool
) -> None:
    def show_parts(part: PartIdentity) -> bool:
        return shows_search or part.name != "search"

    async with asking(make_site, research, show_parts=show_parts) as (site, conversation, shown):
        work, locate = shown["parts"]
        types = [part["type"] for part in work["output"]["parts"]]
        hidden = ["tool-search"] if shows_search else []
        assert types == ["reasoning", "text", *hidden, "tool-ask"]
        assert (work["state"], work["preliminary"]) == ("output-available", True)
        assert locate["state"] == "input-available"
        streamed = await parts_of(
            await site.http.get(f"/chat/run_{conversation.id}_{shown['id']}/stream")
        )
        outputs = [part for part in streamed if part["type"] == "tool-output-available"]
        assert outputs[-1]["output"] == work["output"]

        response = await post(site, request(conversation, answered(shown, l_1="here")))
        await expect_run(site, response.headers["x-workflow-run-id"], await parts_of(response))
        work, *_ = (await history(site, conversation))[-1]["parts"]
        assert (work["output"], "preliminary" in work) == ("Cats purr.", False)
        whole = f"run_{conversation.id}_{shown['id']}"
        everything = await parts_of(await site.http.get(f"/chat/{whole}/stream?startIndex=0"))
        await expect_run(site, whole, everything)
