"""Each state of the page, in pictures for people to look at: build/screenshots/STATE-WIDTH-SCHEME.

One page goes through all of them: it is resized and recolored, and not opened again.
"""

import os
import re
from typing import Literal

from playwright.sync_api import expect

from tests.browser.conftest import ARTEFACTS, OpenLine, OpenTab, StartChat
from tests.browser.site import Chat, Complaints, Model, Tab
from tests.chat.fake_openai import ANSWER

TEXT = "".join(ANSWER)
BUSY = "is being answered"
SIZES = {
    "narrow": {"width": 320, "height": 568},
    "low": {"width": 667, "height": 375},
    "wide": {"width": 1280, "height": 800},
}
LONG = (
    "## Long lines\n\nWith `code`:\n\n```python\ndef a_function_with_a_long_name(first, second):\n"
    '    return "a line that is much longer than any page is wide, so that it has to scroll", 42  '
    "# and so it does\n```\n\n| Name | What it is | Size | Since | By | Where | State |\n"
    "|---|---|--:|---|---|---|---|\n"
    + "| `writer` | Takes tokens and stores them in the background | 1,200 | 2024 | Ada | here | "
    "done |\n"
    * 3
    + "\n- one\n  - two, and it is longer than one line of a small screen can hold\n    1. three\n"
    "- [x] done\n- [ ] not yet\n\n> Quoted *words*\n\n" + "x" * 300
)
WRONG = """() => {
  const wrong = [...document.querySelectorAll("html, body, #scroller, .message, .composer")]
    .filter((node) => node.scrollWidth > node.clientWidth)
    .map((node) => `${node.localName}.${node.className} is too wide`);
  const { top, bottom } = document.querySelector("#question").getBoundingClientRect();
  if (top < 0 || bottom > innerHeight) wrong.push("the field is not in view");
  const room = document.querySelector("#scroller").clientHeight;
  if (room < innerHeight * 0.4) wrong.push(`messages have only ${room} px`);
  return wrong;
}"""


MOVING = """() => new Promise((resolve) => {
  requestAnimationFrame(() => requestAnimationFrame(() => {
    resolve(document.querySelector("#sidebar").getAnimations().length);
  }));
})"""


PICTURES = os.environ.get("CONVERSE_PICTURES") != "0"
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark") if PICTURES else ()
"""The schemes of the pictures; none where nobody looks at them."""


class States:
    """Takes the pictures of a state."""

    def __init__(self, tab: Tab) -> None:
        self._tab = tab
        ARTEFACTS.mkdir(parents=True, exist_ok=True)

    def show(self, state: str) -> None:
        page = self._tab.page
        for size, viewport in SIZES.items():
            page.set_viewport_size({"width": viewport["width"], "height": viewport["height"]})
            if size == "narrow":  # after a wide one: nobody closes the list, so it does not slide
                assert page.evaluate(MOVING) == 0
            expect(self._tab.question).to_be_in_viewport(ratio=1)
            assert page.evaluate(WRONG) == [], (state, size)
            if state == "empty":
                expect(page.get_by_role("heading", level=2)).to_be_in_viewport(ratio=1)
            if state == "list" and size != "wide":
                page.get_by_role("button", name="Show conversations").click()
                expect(self._tab.sidebar).to_be_in_viewport(ratio=1)
            for scheme in SCHEMES:
                page.emulate_media(color_scheme=scheme)
                name = f"{state}-{size}-{scheme}.jpg"
                page.screenshot(path=ARTEFACTS / name, type="jpeg", quality=80)
            page.keyboard.press("Escape")


def test_states__are_shown_on_each_screen(
    open_tab: OpenTab,
    open_line: OpenLine,
    chat: Chat,
    model: Model,
    complaints: Complaints,
) -> None:
    complaints.allow_network_trouble()
    line = open_line(chat)
    tab = open_tab(line.address).open()
    states = States(tab)
    states.show("empty")

    model.will(*ANSWER, slowly=True)
    tab.ask("What is **MongoDB**, and `how` do I use it?\n\n1. First\n2. Second")
    expect(tab.typing).to_have_count(1)
    states.show("asking")
    model.go_on(3)
    expect(tab.text).to_have_text("It is a")
    # The field stays as it is, and says why.
    tab.question.fill("Next")
    tab.question.press("Enter")
    expect(tab.page.get_by_text("Wait until the answer ends")).to_be_visible()
    expect(tab.question).to_have_value("Next")
    expect(tab.messages).to_have_count(2)
    states.show("streaming")
    # An answer is marked in the list, also after a reload.
    tab.reload()
    expect(tab.titles).to_have_text(["What is MongoDB, and how do I use it? First Second, " + BUSY])
    tab.page.get_by_role("button", name="New chat").click()
    states.show("list")
    tab.titles.first.click()
    expect(tab.text).to_have_text("It is a")  # it is loaded, and so known to be answered
    tab.question.fill("Next")
    tab.question.press("Enter")
    expect(tab.page.get_by_text("Wait until the answer ends")).to_be_visible()
    model.go_on(3)
    tab.expect_end("completed", TEXT)
    expect(tab.page.get_by_text("Wait until the answer ends")).to_have_count(0)
    expect(tab.titles).to_have_text(["What is MongoDB, and how do I use it? First Second"])
    states.show("ended")

    model.will(*ANSWER, breaks="break off")
    tab.ask("And now?")
    tab.expect_end("failed", "It is a ")
    states.show("failed")
    model.will(*ANSWER, slowly=True)
    tab.again.click()
    expect(tab.answer).to_have_attribute("data-status", "streaming")
    model.go_on(3)
    expect(tab.text).to_have_text("It is a")
    tab.stop.click()
    tab.expect_end("cancelled", "It is a ")
    states.show("stopped")

    model.will(*re.findall(r"\s*\S+", LONG))
    tab.ask("x" * 200)
    expect(tab.answer).to_have_attribute("data-status", "completed")
    states.show("long")
    tab.text.get_by_role("group", name="Code").focus()
    states.show("long-code")

    line.lose()
    expect(tab.connection).to_have_text("Reconnecting")
    states.show("lost")


def test_answer_that_failed__works_with_a_corrected_key(
    open_tab: OpenTab, start_chat: StartChat, model: Model, complaints: Complaints
) -> None:
    complaints.allow_network_trouble()
    chat = start_chat(OPENAI_API_KEY="wrong")
    tab = open_tab(chat).open()
    model.fake.statuses = [401]
    tab.ask("What is MongoDB?")
    tab.expect_end("failed", "")
    expect(tab.error).to_contain_text("rejected")
    chat.stop()
    start_chat(database=chat.database, port=chat.port, OPENAI_API_KEY="right", CHAT_MODEL="large")
    tab.hasten()
    tab.again.click()
    tab.expect_end("completed", TEXT)
    assert model.fake.keys[-1] == "right"
    expect(tab.answers).to_have_count(1)
    # The page tells who answers now.
    expect(tab.page.locator("#model")).to_have_text("Answers: large")
