"""Who the user is: other sites cannot change it, and a page goes on when it has forgotten."""

from collections.abc import Callable

from playwright.sync_api import BrowserContext, expect

from tests.browser.conftest import OpenTab
from tests.browser.site import Chat, Complaints, Held, Model, Tab, until

FORM = """<form id="form" action="{address}/api/conversations" method="post"></form>
<form id="plain" action="{address}/api/conversations" method="post" enctype="text/plain">
<input name='{{"title": "' value='"}}'></form>"""


def test_form_of_another_site__begins_no_session(
    chat: Chat, new_context: Callable[..., BrowserContext]
) -> None:
    context = new_context()
    page = context.new_page()
    evil = FORM.format(address=chat.address)
    context.route(
        "http://evil.example/",
        lambda route: route.fulfill(content_type="text/html", body=evil),
    )
    for form in ("form", "plain"):
        page.goto("http://evil.example/")
        with page.expect_response(f"{chat.address}/api/conversations") as answered:
            page.evaluate("(id) => document.getElementById(id).submit()", form)
        page.wait_for_url(f"{chat.address}/**")
        assert answered.value.status in (401, 403)
        assert context.cookies(chat.address) == []
    # Nor does a link to what begins one.
    with page.expect_response(f"{chat.address}/api/me") as answered:
        page.goto(f"{chat.address}/api/me")
    assert answered.value.status == 401
    assert context.cookies(chat.address) == []


def test_page__begins_a_new_session_when_its_cookie_is_gone(
    tab: Tab, model: Model, complaints: Complaints
) -> None:
    complaints.allow_network_trouble()
    model.will("One.")
    tab.ask("First question")
    tab.expect_end("completed", "One.")
    expect(tab.titles).to_have_text(["First question"])
    before = tab.page.context.cookies()

    tab.page.context.clear_cookies()
    tab.question.fill("In vain")
    tab.question.press("Enter")
    # The conversation belongs to a user who is gone.
    expect(tab.messages.last).to_contain_text("This could not be sent.")
    expect(tab.titles).to_have_count(0)
    until(lambda: bool(tab.page.context.cookies()))
    after = tab.page.context.cookies()
    assert [each["name"] for each in after] == ["chat_session"]
    assert after[0]["value"] != before[0]["value"]

    tab.page.get_by_role("button", name="New chat").first.click()
    model.will("Two.")
    tab.ask("Second question")
    tab.expect_end("completed", "Two.")
    expect(tab.titles).to_have_text(["Second question"])


def test_page__asks_once_who_the_user_is(open_tab: OpenTab, model: Model) -> None:
    tab = open_tab()
    asked: list[str] = []
    tab.page.on("request", lambda request: asked.append(request.url.removeprefix(tab.address)))
    held = Held(tab.page, "**/api/events")
    tab.open()
    # The stream of the list may be opened long after the list was loaded, which is then loaded
    # again; whatever else the page asks for then, it asks for at the same time.
    held.wait()
    with tab.page.expect_response("**/api/conversations"):
        held.release()
    model.will("One.")
    tab.ask("First question")
    tab.expect_end("completed", "One.")
    assert asked.count("/api/conversations") > 1
    assert asked.count("/api/me") == 1


def test_question__typed_before_the_page_has_started__is_kept(
    open_tab: OpenTab, model: Model
) -> None:
    tab = open_tab()
    held = Held(tab.page, "**/app.js")
    tab.page.goto(tab.address, wait_until="commit")
    tab.question.fill("What is it?")
    expect(tab.send).to_be_disabled()  # else it would send the form, and load the page again
    held.wait()
    held.release()
    expect(tab.send).to_be_enabled()
    expect(tab.question).to_have_value("What is it?")
    model.will("One.")
    tab.send.click()
    tab.expect_end("completed", "One.")
    expect(tab.questions.locator(".text")).to_have_text(["What is it?"])
