"""One answer with everything: what pages of the AI SDK show of it, at each moment and in the end.

It has reasoning, two calls at once, sources, a file, data, a sub-agent, a reset, an approval and a
tool that the page runs; its question has a file. Its worker is killed in the middle. Nothing of
that can be seen in the end: all who followed it, and who loads it then, have the same as in a run
in which nothing went wrong.
"""

import json
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, NamedTuple, Self
from uuid import uuid4

import pytest

pytest.importorskip("pytest_playwright", reason="needs a browser: python -m nox -s browser")

from anyio.from_thread import BlockingPortal
from bson import ObjectId
from playwright.sync_api import BrowserContext, FilePayload, expect
from pymongo import MongoClient

from converse_mongo.domain.part_log import PartLog, Record
from converse_mongo.web.ui_parts import ui_parts
from tests.browser.site import END_SECONDS, ROOT, Complaints, expire_leases, until_is
from tests.browser.test_ai_sdk import MISSING
from tests.conftest import drop_database
from tests.web.ai_sdk.driving import Site, Tab, Talk
from tests.web.ai_sdk.test_ui_stream import Live, comparable
from tests.web.ai_sdk.worker import BREAKS

pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))

FILE: FilePayload = {"name": "dot.png", "mimeType": "image/png", "buffer": b"only some bytes"}
QUESTION = "What is this?"


class Process:
    """A process that ends with the test, and says one line at a time."""

    def __init__(self, log: IO[bytes], *command: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        )

    def line(self) -> str:
        """What it says next."""
        out = self._process.stdout
        assert out is not None
        assert select.select([out], [], [], END_SECONDS)[0], "It says nothing."
        return out.readline().decode().rstrip("\n")

    def go(self) -> None:
        """Has it write the next thing."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()

    def rest(self) -> str:
        """All that it said, once it has ended."""
        out, _ = self._process.communicate(timeout=END_SECONDS)
        assert self._process.returncode == 0
        return out.decode()

    def kill(self) -> None:
        """Ends it as a crash does."""
        with self._process:
            self._process.kill()
            self._process.wait(END_SECONDS)


class World(NamedTuple):
    """What stands around a chat."""

    site: Site
    start: Callable[..., Process]
    messages: Any

    def worker(self) -> Process:
        """Starts a worker."""
        return self.start("tests.web.ai_sdk.worker", self.site.uri, self.site.database)

    def tail(self, message_id: str, *options: str) -> Process:
        """Starts the command that follows a message."""
        target = "--uri", self.site.uri, "--database", self.site.database
        return self.start("converse_mongo.tools.cli", "tail", *target, *options, message_id)

    def stored(self, message_id: str) -> list[dict[str, Any]]:
        """The chunks of a message."""
        found = self.messages.find_one({"_id": ObjectId(message_id)})
        chunks: list[dict[str, Any]] = found["chunks"]
        return chunks


@pytest.fixture
def world(server_uri: str, portal: BlockingPortal, tmp_path: Path) -> Iterator[World]:
    """A site whose answers are for workers."""
    database, log = f"test_{uuid4().hex[:16]}", tmp_path / "log.txt"
    with ExitStack() as stack:
        stack.callback(portal.call, drop_database, server_uri, database)
        client = stack.enter_context(MongoClient[dict[str, Any]](server_uri, tz_aware=True))
        output = stack.enter_context(log.open("ab"))
        stack.callback(lambda: print(log.read_text(errors="replace")))  # noqa: T201

        def start(*command: str) -> Process:
            process = Process(output, *command)
            stack.callback(process.kill)
            return process

        site = Site(server_uri, database, log, "default")
        stack.callback(site.stop)
        yield World(site.start(), start, client[database].messages)


class Page(Tab):
    """A tab that shows a chat with everything, or that follows it with our own client."""

    def __init__(self, context: BrowserContext, talk: Talk, *, own: bool = False) -> None:
        super().__init__(context.new_page(), talk, f"{talk.site.address}/whole")
        self._own = own
        if own:
            self.address += "&own"

    def _wait_until_loaded(self) -> Self:
        if not self._own:
            return super()._wait_until_loaded()
        expect(self.main).to_have_attribute("data-status", "open")
        return self

    def wait_until_ready(self) -> None:
        """Returns once nothing is received."""
        self.expect_status("ready")

    def state(self) -> dict[str, Any]:
        """What it shows."""
        text = self.page.evaluate("JSON.stringify(window.shown)")
        found: dict[str, Any] = json.loads(text)
        return found

    def answer_parts(self) -> list[dict[str, Any]]:
        """The parts of the answer."""
        parts = self.state()["messages"][-1]["parts"]
        return of_records(parts) if self._own else visible(parts)


def visible(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Parts as a page shows them: a step that begins comes with its first part.

    A page that follows has run its tool before the output is stored.
    """
    found = [located(part) for part in comparable(parts)]
    while found and found[-1]["type"] == "step-start":
        found.pop()
    return found


@pytest.fixture
def open_page(
    complaints: Complaints, new_context: Callable[..., BrowserContext], world: World
) -> Callable[..., Page]:
    """Opens tabs of Ada's."""

    def open_one(talk: Talk, *, beside: Page | None = None, own: bool = False) -> Page:
        if beside is not None:
            context = beside.page.context
        else:
            context = new_context()
            context.add_cookies([{"name": "user", "value": "ada", "url": talk.site.address}])
            complaints.listen(context)
        page = Page(context, talk, own=own)
        page.open()
        return page

    return open_one


def ask(page: Page) -> str:
    """Sends the question with its file; returns the id of the answer."""
    page.page.get_by_label("File").set_input_files([FILE])
    page.page.get_by_label("Question").fill(QUESTION)
    page.page.get_by_label("Question").press("Enter")
    until_is(lambda: [each["role"] for each in page.state()["messages"]][1:], ["assistant"])
    return str(page.state()["messages"][-1]["id"])


def approve(page: Page) -> None:
    """Gives the approval, which sends all answers."""
    page.wait_until_ready()
    page.page.get_by_role("button", name="Approve").click()


def located(part: dict[str, Any]) -> dict[str, Any]:
    """A part as it is once the page has run its tool."""
    if part.get("toolCallId") != "locate" or part["state"] != "input-available":
        return part
    return {**part, "state": "output-available", "output": {"city": "Paris"}}


def of_records(records: list[Record]) -> list[dict[str, Any]]:
    """What a page of the AI SDK shows of the parts of an answer, as our routes have them."""
    return visible(ui_parts(records, ended=True))


def normal(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages without what differs from run to run.

    These are ids, numbers, and the step of the attempt that was killed: nothing is left in it.
    """
    found = []
    for message in messages:
        parts = [{**part, "id": part.get("id") == "p"} for part in visible(message["parts"])]
        pairs = zip([None, *parts], parts, strict=False)
        metadata = {**(message.get("metadata") or {}), "chunks": None}
        shown = [part for before, part in pairs if part != before or part["type"] != "step-start"]
        found.append({"role": message["role"], "metadata": metadata, "parts": shown})
    return found


def undisturbed(worker: Process, page: Page) -> None:
    """Sees an answer through."""
    ask(page)
    for then in (approve, Page.wait_until_ready):
        while worker.line() != "ended":
            worker.go()
        then(page)


def test_answer_with_everything__is_the_same_for_all_at_each_moment_and_in_the_end(
    world: World, open_page: Callable[..., Page]
) -> None:
    talk = world.site.talk()
    first = open_page(talk)
    answer = ask(first)
    worker = world.worker()
    line = worker.line()
    second = open_page(talk, beside=first)
    own = open_page(talk, own=True)
    tails = [world.tail(answer, *options) for options in (("--json",), ("--parts",), ())]
    said: list[str] = []
    while True:
        # Both tabs show what is stored so far; one of them was just loaded.
        second.reload()
        wanted = visible(Live(world.stored(answer)).shown[-1])
        for page in (first, second):
            until_is(page.answer_parts, wanted)
        said.append(line)
        if line == BREAKS and said.count(BREAKS) == 1:
            worker.kill()
            expire_leases(world.site.uri, world.site.database, 0.2)
            worker = world.worker()
        elif said.count("ended") == 2:
            break
        elif line == "ended":
            approve(first)
        else:
            worker.go()
        line = worker.line()

    fresh = open_page(talk, beside=first)
    for page in (first, second, fresh):
        page.wait_until_ready()
    states = [page.state() for page in (first, second, fresh)]
    assert [each["error"] for each in states] == [None] * 3
    assert states[0]["transient"] == ["gone"]
    assert [each["messages"][-1]["id"] for each in states] == [answer] * 3
    expect_what_undisturbed_runs_show(world, worker, open_page, states)
    wanted = fresh.answer_parts()
    loaded = open_page(talk, beside=own, own=True)
    for page in (own, loaded):
        until_is(page.answer_parts, wanted)
    response = own.page.request.get(f"{world.site.address}/api/conversations/{talk.id}/messages")
    assert of_records(response.json()["messages"][-1]["parts"]) == wanted
    events, parts, text = (each.rest() for each in tails)
    expect_told(events, parts, text, wanted)


def expect_what_undisturbed_runs_show(
    world: World, worker: Process, open_page: Callable[..., Page], states: list[dict[str, Any]]
) -> None:
    """Expects that the messages are those of a run in which nothing goes wrong."""
    clean = open_page(world.site.talk())
    undisturbed(worker, clean)
    states = [*states, clean.state()]
    clean.reload()
    shown = [normal(each["messages"]) for each in [*states, clean.state()]]
    assert shown == [shown[0]] * len(shown)
    question, answer = shown[0]
    assert (question["role"], answer["role"]) == ("user", "assistant")
    assert [part["type"] for part in question["parts"]] == ["file", "text"]
    assert answer["metadata"]["finish_reason"] == "stop"


def expect_told(events: str, parts: str, text: str, wanted: list[dict[str, Any]]) -> None:
    """Expects that the command has told the answer, in each of its ways."""
    chunks = [event["chunk"] for event in map(json.loads, events.splitlines()) if "chunk" in event]
    assert of_records(PartLog.of(chunks).records()) == wanted
    again = "[starting again]"
    begun = "It is", again, "I have ", again, "It is", again
    assert text.splitlines() == [
        *(f"I ask around. {begun[0]}", *begun[1:], "I have to ask. Done in Paris.")
    ]
    assert [line for line in parts.splitlines() if not line.startswith("[step]")] == [
        *("[reasoning] Let me think.", "I ask around. "),
        '[weather {"city": "Paris"}] → error: no such city',
        '[weather {"city": "Rome"}] → {"degrees": 21}',
        *("[source] Example https://example.org", "[source] Report application/pdf"),
        "[file] image/png https://example.org/a.png",
        *("[data progress] 1", "[data progress] 2", '[marker] {"color": "red"}'),
        *("  [reasoning] Two pages will do.", "    [text] I search."),
        '  [search {"q": "cats"}] → ["a cat", "another cat"]',
        f"  [text] {'Cats purr, and purr again. ' * 3}",
        '[research {"topic": "cats"}] → Cats purr.',
        *(*begun, "I have to ask. "),
        *('[locate {}] → {"city": "Paris"}', '[erase {"path": "notes.txt"}] → erased'),
        *("[reasoning] All is done.", "Done in Paris."),
    ]
