"""The chat by keyboard alone, with a screen reader, in the dark, and on a narrow screen."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import OpenTab, Shoot
from tests.browser.site import Complaints, Model, Tab
from tests.chat.fake_openai import ANSWER

TEXT = "".join(ANSWER)
AXE = Path(__file__).parent / "node_modules" / "axe-core" / "axe.min.js"
PHONE = {"width": 390, "height": 844}

FOCUSED = """() => {
  const node = document.activeElement;
  if (node === document.body) return "nothing";
  const label = node.getAttribute("aria-label") ?? node.labels?.[0]?.textContent;
  return label ?? node.textContent.trim();
}"""

AT_REST = """() => Promise.allSettled(document.getAnimations()
  .filter(({ effect }) => effect.getComputedTiming().endTime !== Infinity)
  .map(({ finished }) => finished))"""

TOO_WIDE = """() => [...document.querySelectorAll("html, body, #scroller, .message")]
  .filter((node) => node.scrollWidth > node.clientWidth)
  .map((node) => `${node.localName}.${node.className}: ${node.scrollWidth}`)"""


class Keyboard:
    """The keyboard, and what it has reached."""

    def __init__(self, tab: Tab) -> None:
        self._page = tab.page
        self.press = tab.page.keyboard.press
        self.type = tab.page.keyboard.type

    def focused(self) -> str:
        """The name of what has the focus."""
        return str(self._page.evaluate(FOCUSED))

    def go_back_to(self, name: str) -> list[str]:
        """Goes backwards until something with this name has the focus; returns what it passed."""
        passed: list[str] = []
        while len(passed) < 30:
            self.press("Shift+Tab")
            found = self.focused()
            if found == name:
                # Who cannot see where they are is lost.
                outline = "getComputedStyle(document.activeElement).outlineStyle"
                assert self._page.evaluate(outline) != "none", name
                return passed
            passed.append(found)
        raise AssertionError(f"{name} is not among {passed}.")


# By keyboard


def test_keyboard__is_enough_for_a_conversation(tab: Tab, model: Model, shoot: Shoot) -> None:
    keys = Keyboard(tab)
    expect(tab.question).to_be_focused()
    model.will(*ANSWER, slowly=True)
    keys.type("What is")
    keys.press("Shift+Enter")
    keys.type("MongoDB?")
    expect(tab.question).to_have_value("What is\nMongoDB?")
    expect(tab.messages).to_have_count(0)
    keys.press("Enter")
    expect(tab.messages.first.locator(".text")).to_have_text("What is\nMongoDB?")
    model.go_on(2)
    expect(tab.text).to_have_text("It is")

    keys.press("Tab")
    assert keys.focused() == "Stop the answer"
    keys.press("Enter")
    tab.expect_end("cancelled", "It is ")
    # What had the focus is gone, and the next thing to do is to write.
    expect(tab.question).to_be_focused()

    model.will(*ANSWER, slowly=True)
    assert keys.go_back_to("Try again") == ["Attach images or PDFs", "Copy"]
    shoot(tab, "keyboard-focus")
    keys.press("Enter")
    expect(tab.typing).to_have_count(1)
    expect(tab.again).to_be_hidden()
    model.go_on(len(ANSWER))
    tab.expect_end("completed", TEXT)
    expect(tab.question).to_be_focused()

    expect(tab.titles).to_have_text(["What is MongoDB?"])
    passed = ["Attach images or PDFs", "Copy", "What is MongoDB?"]
    assert keys.go_back_to("New chat") == passed
    keys.press("Enter")
    expect(tab.messages).to_have_count(0)
    expect(tab.question).to_be_focused()
    keys.go_back_to("What is MongoDB?")
    keys.press("Enter")
    expect(tab.text).to_have_text(TEXT)
    expect(tab.question).to_be_focused()


def test_keyboard__skips_to_the_question(tab: Tab) -> None:
    keys = Keyboard(tab)
    expect(tab.question).to_be_focused()
    passed = keys.go_back_to("Skip to the question")
    assert passed[-1] == "New chat"
    expect(tab.page.get_by_role("link", name="Skip to the question")).to_be_in_viewport()
    keys.press("Enter")
    expect(tab.question).to_be_focused()


def test_keyboard__sends_with_the_button_and_asks_what_is_suggested(tab: Tab) -> None:
    keys = Keyboard(tab)
    keys.type("What is MongoDB?")
    keys.press("Tab")
    assert keys.focused() == "Send"
    keys.press("Space")
    tab.expect_end("completed", TEXT)
    expect(tab.question).to_be_focused()
    keys.go_back_to("New chat")
    keys.press("Space")
    keys.go_back_to("How does an answer reach this page?")
    keys.press("Enter")
    tab.expect_end("completed", TEXT)
    expect(tab.messages.first).to_contain_text("How does an answer reach this page?")


# With a screen reader


def test_screen_reader__is_told_how_an_answer_ends(tab: Tab, model: Model) -> None:
    announcer = tab.page.locator("[aria-live=polite]")
    model.will(*ANSWER, slowly=True)
    tab.ask("What is MongoDB?")
    model.go_on(2)
    expect(tab.text).to_have_text("It is")
    expect(announcer).to_be_empty()  # not word by word
    model.go_on(4)
    expect(announcer).to_have_text(f"Answer: {TEXT}")

    model.will(*ANSWER, slowly=True)
    tab.ask("And again?")
    model.go_on(2)
    expect(tab.text).to_have_text("It is")
    tab.stop.click()
    expect(announcer).to_have_text("The answer was stopped. It is")

    model.will(*ANSWER, breaks="break off")
    tab.again.click()
    expect(announcer).to_have_text("The model's answer was cut off. Try again. It is a")


def test_screen_reader__is_told_of_an_answer_that_is_over_at_once(tab: Tab, model: Model) -> None:
    announcer = tab.page.locator("[aria-live=polite]")
    # As on a device that is too busy to draw: all of it comes between two frames.
    slow = "() => { window.requestAnimationFrame = (draw) => setTimeout(draw, 1000); }"
    tab.page.evaluate(slow)
    model.will("Yes.", breaks="decline")
    tab.ask("Is it?")
    expect(announcer).to_have_text("The model declined to answer this. Yes.")
    model.will("No.")
    tab.again.click()
    expect(announcer).to_have_text("Answer: No.")
    tab.reload()
    expect(tab.text).to_have_text("No.")
    expect(announcer).to_be_empty()


def test_screen_reader__finds_its_way_in_the_page(tab: Tab) -> None:
    tab.ask("What is MongoDB?")
    tab.expect_end("completed", TEXT)
    expect(tab.page.locator("body")).to_match_aria_snapshot("""
      - link "Skip to the question"
      - navigation "Conversations":
        - button "New chat"
        - list:
          - listitem:
            - link "What is MongoDB?"
      - banner:
        - heading "What is MongoDB?" [level=1]
      - main:
        - list "Messages":
          - listitem:
            - heading "You" [level=2]
            - paragraph: What is MongoDB?
          - listitem:
            - heading "Answer" [level=2]
            - paragraph: It is a database for documents.
            - button "Copy"
        - form "Ask a question":
          - button "Attach images or PDFs"
          - textbox "Your message"
          - button "Send" [disabled]
    """)


@pytest.fixture
def check() -> Callable[[Tab], None]:
    """Has axe look at a tab: what it finds fails the test."""
    if not AXE.exists():
        pytest.skip("needs axe: npm ci in tests/browser")
    source = AXE.read_text(encoding="utf-8")

    def look(tab: Tab) -> None:
        # What is about to be shown has not its colors yet.
        tab.page.evaluate(AT_REST)
        tab.page.evaluate(source)
        found: list[dict[str, Any]] = tab.page.evaluate("async () => (await axe.run()).violations")
        told = [
            f"{each['id']}: {each['help']}: {[node['html'] for node in each['nodes']]}"
            for each in found
        ]
        assert told == []

    return look


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe__finds_nothing(
    open_tab: OpenTab,
    model: Model,
    complaints: Complaints,
    check: Callable[[Tab], None],
    shoot: Shoot,
    scheme: str,
) -> None:
    complaints.allow("status of 404")
    # The policy of the page keeps axe out, too.
    tab = open_tab(bypass_csp=True, color_scheme=scheme).open()
    check(tab)
    shoot(tab, f"{scheme}-empty")

    model.will(*ANSWER, slowly=True)
    tab.ask("What is MongoDB?")
    expect(tab.stop).to_be_visible()
    check(tab)
    model.go_on(3)
    expect(tab.text).to_have_text("It is a")
    check(tab)
    shoot(tab, f"{scheme}-streaming")
    tab.stop.click()
    tab.expect_end("cancelled", "It is a ")
    check(tab)

    model.will(*ANSWER, breaks="break off")
    tab.again.click()
    tab.expect_end("failed", "It is a ")
    check(tab)
    shoot(tab, f"{scheme}-failed")

    model.will("See `it`:\n\n```python\nprint(1)\n```\n\n1. **One**\n2. https://example.org/")
    tab.ask("Show me code")
    expect(tab.answer).to_have_attribute("data-status", "completed")
    check(tab)
    shoot(tab, f"{scheme}-code")

    tab.page.set_viewport_size({"width": 390, "height": 844})
    check(tab)
    tab.page.get_by_role("button", name="Show conversations").click()
    expect(tab.sidebar).to_be_in_viewport(ratio=1)
    check(tab)
    shoot(tab, f"{scheme}-narrow-list")

    tab.page.goto(f"{tab.address}/#{'0' * 24}")
    tab.reload()
    expect(tab.page.get_by_role("alert")).to_contain_text("The conversation does not exist")
    check(tab)


# On a narrow screen


def test_narrow_screen__has_its_list_behind_a_button(
    open_tab: OpenTab, model: Model, shoot: Shoot
) -> None:
    tab = open_tab(viewport=PHONE, has_touch=True, is_mobile=True).open()
    assert tab.page.evaluate(TOO_WIDE) == []
    shoot(tab, "narrow-empty")
    model.will(
        "Wide: " + "x" * 300 + "\n\n```\n" + "y" * 300 + "\n```\n\nhttps://example.org/" + "z" * 200
    )
    tab.ask("A" * 200)
    expect(tab.answer).to_have_attribute("data-status", "completed")
    assert tab.page.evaluate(TOO_WIDE) == []
    shoot(tab, "narrow")

    show = tab.page.get_by_role("button", name="Show conversations")
    hide = tab.page.get_by_role("button", name="Close the list")
    expect(tab.sidebar).to_be_hidden()
    expect(show).to_have_attribute("aria-expanded", "false")
    show.tap()
    expect(tab.sidebar).to_be_in_viewport(ratio=1)
    expect(hide).to_be_focused()
    assert tab.page.evaluate(TOO_WIDE) == []
    shoot(tab, "narrow-list")
    # What is below the list cannot be reached while it is open.
    for _ in range(8):
        tab.page.keyboard.press("Tab")
        assert tab.page.evaluate("document.activeElement.closest('#page')") is None
    hide.focus()
    hide.tap()
    expect(tab.sidebar).to_be_hidden()
    expect(show).to_be_focused()

    # Beside it is as good as the button, and so is Escape.
    show.tap()
    expect(tab.sidebar).to_be_in_viewport(ratio=1)
    tab.page.touchscreen.tap(370, 400)
    expect(tab.sidebar).to_be_hidden()
    show.tap()
    tab.page.keyboard.press("Escape")
    expect(tab.sidebar).to_be_hidden()

    show.tap()
    tab.page.get_by_role("button", name="New chat").tap()
    expect(tab.sidebar).to_be_hidden()
    expect(tab.messages).to_have_count(0)
    show.tap()
    tab.titles.first.tap()
    expect(tab.sidebar).to_be_hidden()
    expect(tab.messages).to_have_count(2)
