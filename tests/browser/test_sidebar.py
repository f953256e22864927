"""The list of conversations: live in each tab of a user, and in no other user's."""

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import OpenLine, OpenTab, Shoot
from tests.browser.site import Chat, Complaints, Model, Tab
from tests.chat.fake_openai import ANSWER


@pytest.fixture
def other(open_tab: OpenTab, tab: Tab) -> Tab:
    """Another tab of the same user, which shows no conversation."""
    other = open_tab(context=tab.page.context).open()
    expect(other.sidebar).to_contain_text("Your conversations appear here.")
    return other


def test_list__shows_what_another_tab_begins(
    tab: Tab, other: Tab, open_tab: OpenTab, model: Model, shoot: Shoot
) -> None:
    stranger = open_tab().open()
    model.will(*ANSWER, slowly=True)
    tab.ask("What is MongoDB?")
    model.go_on()
    for each in (tab, other):
        expect(each.titles).to_have_count(1)
        expect(each.titles).to_contain_text("What is MongoDB?")
        expect(each.titles).to_contain_text("is being answered")
    shoot(other, "sidebar-busy")
    model.go_on(len(ANSWER))
    for each in (tab, other):
        expect(each.titles).to_have_text(["What is MongoDB?"])
    other.titles.first.click()
    other.expect_end("completed", "".join(ANSWER))
    expect(stranger.titles).to_have_count(0)


def test_list__has_first_what_was_added_to_last(tab: Tab, other: Tab, model: Model) -> None:
    for question in ("First", "Second"):
        model.will("Yes.")
        tab.ask(question)
        expect(tab.answer).to_have_attribute("data-status", "completed")
        tab.page.get_by_role("button", name="New chat").click()
    for each in (tab, other):
        expect(each.titles).to_have_text(["Second", "First"])
    other.titles.last.click()
    expect(other.text).to_have_text("Yes.")  # it is loaded, so that a question can be sent
    model.will("And yes.")
    other.ask("First again")
    for each in (tab, other):
        expect(each.titles).to_have_text(["First", "Second"])


def test_list__comes_back_after_an_outage(
    chat: Chat, tab: Tab, open_tab: OpenTab, open_line: OpenLine, complaints: Complaints
) -> None:
    complaints.allow_network_trouble()
    line = open_line(chat)
    context = tab.page.context
    away = open_tab(line.address, context=context).open()
    line.lose()
    begun = tab.page.request.post(f"{tab.address}/api/conversations", data={"title": "Meanwhile"})
    assert begun.status == 201
    expect(tab.titles).to_have_text(["Meanwhile"])
    expect(away.titles).to_have_count(0)
    line.come_back()
    expect(away.titles).to_have_text(["Meanwhile"])
