"""Answers that wait for workers, in the chat: what their reader sees, and that each button acts."""

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import OpenTab, Shoot, StartChat, StartWorker
from tests.browser.site import Chat, Tab, until_is
from tests.browser.worker import ASK, HALF, WORDS


@pytest.fixture(scope="module")
def chat(make_chat: StartChat) -> Chat:
    """A chat whose answers wait for workers."""
    return make_chat(CHAT_QUEUE="default").start()


def expect_waiting(tab: Tab, text: str) -> None:
    """The last answer waits, and nothing moves that says otherwise."""
    expect(tab.waits).to_have_text(text)
    expect(tab.typing).to_have_count(0)
    expect(tab.page.locator("[data-tip], .busy-fold")).to_have_count(0)
    expect(tab.stop).to_be_visible()


def test_answer__waits_in_line_and_is_seen_through_by_another_worker(
    chat: Chat, start_worker: StartWorker, open_tab: OpenTab, shoot: Shoot
) -> None:
    tab = open_tab(chat).open()
    tab.ask("What is MongoDB?")
    expect_waiting(tab, "Waiting in line")
    tab.stop.click()
    expect(tab.answer).to_have_attribute("data-status", "cancelled")
    expect(tab.waits).to_have_count(0)
    expect(tab.stop).to_be_hidden()
    tab.again.click()
    expect_waiting(tab, "Waiting in line")
    expect(tab.again).to_be_hidden()
    shoot(tab, "waiting-in-line")

    worker = start_worker(chat)
    expect(tab.text).to_have_text("".join(HALF).rstrip())
    expect(tab.waits).to_have_count(0)
    expect(tab.page.locator("[data-tip]")).to_have_count(1)
    worker.kill(lease=0.6)
    expect_waiting(tab, "Starting again")
    shoot(tab, "starting-again")
    tab.reload()
    second = open_tab(chat, context=tab.page.context).open(tab.conversation)
    for each in (tab, second):
        expect_waiting(each, "Starting again")
        until_is(each.shown_text, "".join(HALF).rstrip())

    start_worker(chat)
    for each in (tab, second):
        each.expect_end("completed", "".join(WORDS))
        expect(each.waits).to_have_count(0)


def test_call__waits_for_its_reader_in_each_tab(
    chat: Chat, start_worker: StartWorker, open_tab: OpenTab, shoot: Shoot
) -> None:
    tab = open_tab(chat).open()
    start_worker(chat)
    tab.ask(ASK)
    expect(tab.waits).to_contain_text("Waits for you")
    second = open_tab(chat, context=tab.page.context).open(tab.conversation)
    shoot(tab, "waits-for-you")
    for each in (tab, second):
        expect_waiting(each, "Waits for youDelete filesApproveDeclineSend mailApproveDecline")
    expect(tab.page.locator("#announcer")).to_contain_text("waits for you")
    third = open_tab(chat, context=tab.page.context).open()
    for each in (tab, second, third):
        expect(each.titles).to_have_text(["New conversationWaits for you"])

    # What is approved is shown, until it is answered.
    for each in (tab, second):
        expect(each.answer.locator("details[open] > summary")).to_have_text(
            ["Delete files Needs approval", "Send mail Needs approval"]
        )
        expect(each.answer.get_by_role("group", name="Input")).to_have_count(2)
    decline = second.page.get_by_role("button", name="Decline: Delete files")
    decline.click()
    for each in (tab, second):
        expect_waiting(each, "Waits for youSend mailApproveDecline")
        expect(each.titles).to_have_text(["New conversationWaits for you"])
        expect(each.answer.locator("details[open] > summary")).to_have_text(
            ["Send mail Needs approval"]
        )
    tab.page.get_by_role("button", name="Approve: Send mail").focus()
    tab.page.keyboard.press("Enter")
    expect(tab.question).to_be_focused()  # the button is gone that had the focus
    for each in (tab, second):
        each.expect_end("completed", "no, yes")
        expect(each.waits).to_have_count(0)
    for each in (tab, second, third):
        expect(each.titles).to_have_text(["New conversation"])

    # A tab that shows another conversation is told, and does not load its list again.
    listed: list[str] = []
    third.page.on("request", lambda sent: listed.append(sent.url))
    tab.ask(f"{ASK} Again?")
    expect(tab.waits).to_contain_text("Waits for you")
    expect(third.titles).to_have_text(["New conversationWaits for you"])
    shoot(third, "waits-for-you-elsewhere")
    for name in ("Approve: Delete files", "Approve: Send mail"):
        tab.page.get_by_role("button", name=name).click()
    expect(third.titles).to_have_text(["New conversation"])
    tab.expect_end("completed", "yes, yes")
    assert not listed

    tab.ask(f"{ASK} And again?")
    expect(tab.waits).to_contain_text("Waits for you")
    expect(third.titles).to_have_text(["New conversationWaits for you"])
    third.reload()
    expect(third.titles).to_have_text(["New conversationWaits for you"])
    second.stop.click()
    expect(third.titles).to_have_text(["New conversation"])
    for each in (tab, second):
        expect(each.answer).to_have_attribute("data-status", "cancelled")
        expect(each.waits).to_have_count(0)
