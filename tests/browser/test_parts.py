"""Parts of answers in the chat: the same after a reload as without, folded, and as text only."""

import asyncio
import json
import queue
from collections.abc import AsyncIterator
from contextlib import closing
from typing import Any

import httpx
from anyio.from_thread import BlockingPortal
from playwright.sync_api import expect

from converse_mongo import (
    Converse,
    DataPart,
    FilePart,
    Message,
    MessageWriter,
    SourceUrlPart,
)
from tests.browser.conftest import OpenTab, Shoot
from tests.browser.site import Chat, Complaints, Tab, until
from tests.browser.test_markup import OURS, STRANGE

# One pixel.
PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJ"
    "AAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
SVG = "PHN2ZyB4bWxucz0iaHR0cDovL3d3dy53My5vcmcvMjAwMC9zdmciLz4="

HOSTILE = '<img src="http://127.0.0.1:1/x" onerror="alert(1)"> "><script>alert(1)</script>'

# What a reader sees of the last answer, with all of it unfolded.
SHOWN = """async () => {
  const answer = [...document.querySelectorAll(".message.assistant")].at(-1);
  if (!answer?.dataset.status) return null;
  for (;;) {
    const closed = answer.querySelectorAll("details:not([open])");
    if (closed.length === 0) break;
    for (const each of closed) each.open = true;
    await new Promise((resolve) => setTimeout(resolve)); // behind the event that draws it
    await new Promise((resolve) => setTimeout(resolve));
  }
  const markup = answer.querySelector(".parts").innerHTML.replace(/\\n+(?=<)/g, "");
  return [answer.dataset.status, answer.querySelector(".typing").hidden, markup];
}"""

TOO_WIDE = """() => [...document.querySelectorAll("html, body, #scroller, .message, .parts, .fold")]
  .filter((node) => node.scrollWidth > node.clientWidth)
  .map((node) => `${node.localName}.${node.className}: ${node.scrollWidth}`)"""


async def answer_in_steps(writer: MessageWriter) -> AsyncIterator[None]:
    """Writes parts of all kinds, and yields at each of their boundaries and between."""
    async with writer.step() as step:
        yield
        await writer.write_reasoning("I have to **th")
        yield
        await writer.write_reasoning("ink** first.")
        yield
        await writer.write("Let me *lo")
        yield
        await writer.write("ok*:\n\n- here\n")
        yield
        search = await writer.start_tool_call("search", title=f"Search {HOSTILE}")
        yield
        await search.input_delta('{"q": ')
        yield
        ask = await writer.start_tool_call("ask_agent", call_id="call_2")
        yield
        await search.input_delta(f'"{HOSTILE}')
        yield
        await search.set_input({"q": HOSTILE})
        yield
        await ask.set_input({})
        step.finish_reason = "tool_calls"
    yield
    async with search.execution(), ask.execution():
        yield
        nested = ask.nested()
        await nested.write_reasoning("My own thought.")
        yield
        deep = await nested.start_tool_call("measure")
        await deep.set_input({"n": 1})
        yield
        await search.set_output({"hits": 1}, preliminary=True)
        yield
        await nested.write("Nested **an")
        yield
        await deep.set_error(f"It failed. {HOSTILE}")
        await nested.write("swer**.")
        yield
        await ask.set_output("An answer.")
        yield
        await search.set_output({"hits": 2, HOSTILE: [HOSTILE]})
        yield
    await writer.write(DataPart("progress", {"percent": 50}, id="p"))
    yield
    await writer.write(DataPart("progress", {"percent": 100}, id="p"))
    yield
    await writer.write("There are **tw")
    yield
    await writer.write("o**.")
    await writer.write(SourceUrlPart("https://example.org/a", title=HOSTILE))
    yield
    await writer.write(SourceUrlPart("javascript:alert(1)"))
    await writer.write(FilePart("data:text/html,x", "text/html", name=HOSTILE))
    yield


class Script:
    """An answer that is written step by step, as a test wants it."""

    def __init__(self, portal: BlockingPortal, message: Message) -> None:
        self._portal = portal
        self._message = message
        self._stored: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._go_on = asyncio.Semaphore(0)
        self._played = portal.start_task_soon(self._play)

    def step(self) -> bool:
        """Goes on, and returns once the next step is stored; false if there is none."""
        self._portal.call(self._go_on.release)
        return self._stored.get(timeout=60)

    def end(self) -> None:
        """Returns once the answer has ended."""
        self._played.result(60)

    def close(self) -> None:
        """Ends it, also where a test has failed."""
        self._played.cancel()

    async def _play(self) -> None:
        try:
            async with self._message.writer() as writer:
                await self._go_on.acquire()
                async for _ in answer_in_steps(writer):
                    await writer.flush()
                    self._stored.put(True)
                    await self._go_on.acquire()
        finally:
            self._stored.put(False)


def begin(tab: Tab, portal: BlockingPortal, converse: Converse) -> Message:
    """Begins a conversation of the user of a tab, and an answer in it."""
    cookies = {each["name"]: each["value"] for each in tab.page.context.cookies()}
    headers = {"cookie": "; ".join(f"{name}={value}" for name, value in cookies.items())}
    address = f"{tab.address}/api/conversations"
    begun = httpx.post(address, headers=headers, json={}, timeout=20, trust_env=False)

    async def start() -> Message:
        conversation = await converse.get_conversation(begun.raise_for_status().json()["id"])
        await conversation.add_user_message("Look it up.")
        return await conversation.start_streaming_assistant()

    return portal.call(start)


def test_parts__reloaded_at_each_step_are_those_of_a_tab_that_was_not(
    open_tab: OpenTab, chat: Chat, portal: BlockingPortal, complaints: Complaints, shoot: Shoot
) -> None:
    steady = open_tab().open()
    converse = Converse(chat.uri, database=chat.database)
    with portal.wrap_async_context_manager(converse):
        message = begin(steady, portal, converse)
        with closing(Script(portal, message)) as script:
            steady.open(str(message.conversation_id))
            other = open_tab(context=steady.page.context).open(str(message.conversation_id))
            shown: list[Any] = []
            while script.step():
                # Both are told of it: the one since the begin, the other since its last reload.
                until(lambda: steady.page.evaluate(SHOWN) not in [None, *shown])
                until(lambda: steady.page.evaluate(SHOWN) == other.page.evaluate(SHOWN))
                if len(shown) % 4 == 0:
                    other.page.reload()
                else:  # as good, since nothing of the answer is kept, and cheaper
                    other.page.evaluate("location.hash = ''")
                    expect(other.messages).to_have_count(0)
                    other.page.evaluate(f"location.hash = '{message.conversation_id}'")
                until(lambda: steady.page.evaluate(SHOWN) == other.page.evaluate(SHOWN))
                shown.append(steady.page.evaluate(SHOWN))
                assert steady.page.locator("#announcer").inner_text() == ""
            script.end()
    expect(steady.answer).to_have_attribute("data-status", "completed")
    other.page.reload()
    expect(other.answer).to_have_attribute("data-status", "completed")
    assert steady.page.evaluate(SHOWN) == other.page.evaluate(SHOWN)

    # Once unfolded, it stayed so.
    details = steady.page.locator(".assistant > .parts > details")
    folds = details.locator("> summary")
    expect(folds).to_have_text(
        ["Thought for a while", f"Search {HOSTILE} Done", "Ask agent Done", "Progress"]
    )
    ask = details.nth(2)
    expect(ask.locator(".parts summary")).to_have_text(["Thought for a while", "Measure Failed"])
    expect(ask.locator(".parts > .text")).to_have_text("Nested answer.")
    expect(ask.locator(".parts .error")).to_contain_text("It failed.")
    assert steady.shown_text().split() == ["Let", "me", "look:", "here", "There", "are", "two."]
    expect(steady.answer.locator(".sources > li")).to_have_text([HOSTILE, "javascript:alert(1)"])
    links = steady.answer.get_by_role("link").evaluate_all("(all) => all.map(({ href }) => href)")
    assert links == ["https://example.org/a"]
    expect(steady.page.locator("#announcer")).to_contain_text("Answer: Let me")
    assert steady.page.evaluate(STRANGE, f"{OURS} details summary") == []

    # By keyboard, and on a narrow screen.
    first = other.answer.locator("details").first
    first.evaluate("(node) => { node.open = false; }")
    first.locator("summary").focus()
    other.page.keyboard.press("Enter")
    expect(first.locator(".text")).to_have_text("I have to think first.")
    other.page.set_viewport_size({"width": 320, "height": 640})
    assert other.page.evaluate(TOO_WIDE) == []
    shoot(other, "parts-narrow")
    assert complaints.found == []


ERRORS = {
    "No such city.": "No such city.",
    '{"error": {"code": 404, "message": "No such city."}}': "No such city.",
    '{"detail": [{"loc": ["q"], "msg": "Too short"}, {"loc": [], "msg": "No"}]}': "Too short; No",
    'HTTP 4: {"error": "{\\"detail\\": \\"Bad.\\"}", "id": 1234567890123456789}': "HTTP 4: Bad.",
    '{"status": 500}': "The tool failed.",
    json.dumps({"message": "long " * 200}): f"{('long ' * 200)[:500]}…",
    json.dumps({"message": HOSTILE}): HOSTILE,
    "Expected {, got [": "Expected {, got [",
    '{"message": "cut': '{"message": "cut',
}
"""Errors of tools, and what is shown of them while the rest is folded."""


def test_errors__that_are_json_show_their_message_and_fold_the_rest(
    open_tab: OpenTab, chat: Chat, portal: BlockingPortal, complaints: Complaints, shoot: Shoot
) -> None:
    tab = open_tab().open()
    converse = Converse(chat.uri, database=chat.database)
    with portal.wrap_async_context_manager(converse):
        message = begin(tab, portal, converse)

        async def answer() -> None:
            async with message.writer() as writer:
                for error in ERRORS:
                    call = await writer.start_tool_call("look_up")
                    await call.set_input({})
                    await call.set_error(error)

        portal.call(answer)
    tab.open(str(message.conversation_id))
    calls = tab.answer.locator(".parts > details")
    expect(calls).to_have_count(len(ERRORS))
    for place, (error, shown) in enumerate(ERRORS.items()):
        call = calls.nth(place)
        call.locator("> summary").click()
        expect(call.locator(".error > p")).to_have_text(shown)
        details = call.locator(".error > details")
        if error.endswith("}"):
            expect(details.locator("pre")).to_be_hidden()
            details.locator("summary").focus()
            tab.page.keyboard.press("Enter")
            expect(details.locator("pre")).to_be_visible()
            found = details.locator("pre").inner_text()
            assert json.loads(found) == json.loads(error[error.index("{") :])
        else:
            expect(details).to_have_count(0)
    calls.nth(1).scroll_into_view_if_needed()
    shoot(tab, "errors-of-tools")
    tab.page.emulate_media(color_scheme="dark")
    tab.page.set_viewport_size({"width": 320, "height": 640})
    calls.nth(3).scroll_into_view_if_needed()
    shoot(tab, "errors-of-tools-narrow")
    assert tab.page.evaluate(TOO_WIDE) == []
    assert tab.page.evaluate(STRANGE, f"{OURS} details summary") == []
    assert complaints.found == []


def test_files__are_previews_or_names(
    open_tab: OpenTab, chat: Chat, portal: BlockingPortal, complaints: Complaints, shoot: Shoot
) -> None:
    tab = open_tab().open()
    converse = Converse(chat.uri, database=chat.database)
    with portal.wrap_async_context_manager(converse):
        message = begin(tab, portal, converse)

        async def answer() -> None:
            async with message.writer() as writer:
                for part in (
                    FilePart(f"data:image/png;base64,{PNG}", "image/png", name="dot.png"),
                    FilePart(f"data:image/svg+xml;base64,{SVG}", "image/svg+xml", name=HOSTILE),
                    FilePart("data:image/png;base64,AAAA", "image/png", name="broken.png"),
                    FilePart("https://example.org/a.png", "image/png", name="far.png"),
                    FilePart("javascript:alert(1)", "image/png", name="script.png"),
                ):
                    await writer.write(part)

        portal.call(answer)
    tab.open(str(message.conversation_id))
    files = tab.answer.locator(".file")
    expect(files).to_have_count(5)
    images = tab.answer.get_by_role("img")
    expect(images).to_have_count(1)
    expect(images).to_have_attribute("alt", "dot.png")
    until(lambda: images.evaluate("(image) => image.complete && image.naturalWidth") == 1)
    own = f"/api/conversations/{message.conversation_id}/messages/{message.id}/files/"
    links = files.evaluate_all(
        "(all) => all.map((each) => each.querySelector('a')?.getAttribute('href') ?? null)"
    )
    assert [link and link.removesuffix(link.rpartition("/")[2]) for link in links] == [
        *(own, own, own),
        *("https://example.org/", None),
    ]
    for index, name in enumerate(["dot.png", HOSTILE, "broken.png", "far.png", "script.png"]):
        expect(files.nth(index)).to_contain_text(name)
    with tab.page.expect_download() as saved:
        files.nth(1).get_by_role("link").click()
    assert saved.value.failure() is None
    assert "#" in tab.page.url  # the page is still there
    shoot(tab, "files")
    assert complaints.found == []
