"""Answers in a browser: seen while they stream, in step, stopped, failed, given again; as text."""

import re
from functools import partial

from playwright.sync_api import Route, expect

from tests.browser.conftest import OpenTab, Shoot, StartChat
from tests.browser.site import Chat, Complaints, Held, Model, Tab, until, words
from tests.chat.fake_openai import ANSWER, KEY

TEXT = "".join(ANSWER)

CODE = """\
Open it in a **with** block, which closes it again:

```python
from pathlib import Path

with Path("notes.txt").open(encoding="utf-8") as lines:
    for number, line in enumerate(lines, 1):  # one line at a time, however long the file is
        print(number, line.rstrip())
```

Some remarks:

1. `encoding` is worth saying, since the default differs.
2. To have all of it, `Path("notes.txt").read_text()` is shorter.

More at https://docs.python.org/3/library/pathlib.html."""

STOP_TIME = """() => {
  const later = window.setTimeout;
  const waiting = [];
  window.setTimeout = (act, wait) => wait < 1000 ? later(act, wait) : waiting.push(act);
  window.goOn = () => waiting.forEach((act) => act());
}"""


def test_answer__is_seen_while_it_streams(tab: Tab, model: Model, shoot: Shoot) -> None:
    shoot(tab, "empty")
    text = model.will(*ANSWER, slowly=True)
    tab.ask("What is MongoDB?")

    expect(tab.typing).to_have_count(1)
    expect(tab.stop).to_be_visible()
    expect(tab.send).to_be_hidden()
    for count in range(1, len(ANSWER)):
        model.go_on()
        expect(tab.text).to_have_text("".join(ANSWER[:count]))
        expect(tab.answer).to_have_attribute("data-status", "streaming")
        expect(tab.typing).to_have_count(0)
        expect(tab.stop).to_be_visible()
    model.go_on()
    stored = tab.expect_end("completed", text, tokens=len(ANSWER))
    assert stored["metadata"]["usage"]["completion_tokens"] == len(ANSWER)
    expect(tab.facts).to_contain_text("small")
    expect(tab.page.locator(".growing")).to_have_count(0)
    expect(tab.page).to_have_title("What is MongoDB? - Chat")
    expect(tab.titles).to_have_text(["What is MongoDB?"])


def test_built_in_text__answers_without_a_model(
    open_tab: OpenTab, start_chat: StartChat, shoot: Shoot
) -> None:
    tab = open_tab(start_chat(OPENAI_API_KEY="")).open()
    expect(tab.page.get_by_text("No language model is connected")).to_be_visible()
    shoot(tab, "empty-without-a-model")
    tab.page.get_by_role("button", name="/fail").click()
    expect(tab.error).to_have_text("The model's answer was cut off, as you asked. Try again.")
    # It fails each time, and each answer takes the place of the one before it.
    failed = tab.answer.element_handle()
    tab.again.click()
    until(lambda: not failed.evaluate("(node) => node.isConnected"))
    expect(tab.answer).to_have_attribute("data-status", "failed")
    expect(tab.answers).to_have_count(1)
    shoot(tab, "failed-built-in")


def test_code__is_shown_as_code_and_can_be_copied(
    open_tab: OpenTab, model: Model, shoot: Shoot
) -> None:
    tab = open_tab(permissions=["clipboard-read", "clipboard-write"]).open()
    model.will(*re.findall(r"\s*\S+", CODE))
    tab.ask("How do I read a file in Python?")
    expect(tab.answer).to_have_attribute("data-status", "completed")
    code = CODE.split("```python\n")[1].split("\n```")[0]
    assert tab.answer.locator("pre code").text_content() == code
    expect(tab.answer.locator("ol > li")).to_have_count(2)
    link = "https://docs.python.org/3/library/pathlib.html"
    expect(tab.answer.get_by_role("link")).to_have_attribute("href", link)
    assert tab.stored()[-1]["content"] == CODE
    shoot(tab, "completed-with-code")

    # However long this takes, the buttons say that they have copied until time goes on.
    tab.page.evaluate(STOP_TIME)
    tab.page.get_by_role("button", name="Copy code").click()
    expect(tab.page.get_by_role("button", name="Copied")).to_be_visible()
    assert tab.page.evaluate("navigator.clipboard.readText()") == code
    tab.page.get_by_role("button", name="Copy", exact=True).click()
    expect(tab.page.get_by_role("button", name="Copied")).to_have_count(2)
    assert tab.page.evaluate("navigator.clipboard.readText()") == CODE
    tab.page.evaluate("window.goOn()")
    expect(tab.page.get_by_role("button", name="Copied")).to_have_count(0)


def test_enter__before_it_is_known_whether_an_answer_is_written__keeps_the_text(
    tab: Tab, model: Model
) -> None:
    def expect_wait(reason: str) -> None:
        expect(tab.page.locator("#wait")).to_contain_text(reason)
        expect(tab.question).to_have_value("Next")

    model.will(*ANSWER, slowly=True)
    tab.ask("What is MongoDB?")
    model.go_on()
    expect(tab.text).to_have_text("It")
    conversation = tab.conversation
    # Who the user is, and then what the conversation has.
    me, messages = Held(tab.page, "**/api/me"), Held(tab.page, "**/messages?*")
    tab.page.reload()
    tab.question.fill("Next")
    tab.question.press("Enter")
    expect_wait("Wait until the conversation is loaded.")
    expect(tab.page.get_by_text("Loading the conversation")).to_be_visible()
    with tab.page.expect_request("**/messages?*"):
        me.release()
    tab.question.press("Enter")
    expect_wait("Wait until the conversation is loaded.")
    messages.release()
    expect_wait("Wait until the answer ends")
    expect(tab.titles).to_have_count(1)
    model.go_on(len(ANSWER))
    expect(tab.page.locator("#wait")).to_be_empty()

    # A message that is being sent will be answered.
    sent = Held(tab.page, "**/messages")
    tab.ask("And what is a document?")
    tab.question.fill("Next")
    tab.question.press("Enter")
    expect_wait("Wait until your message is sent.")
    sent.release()
    expect(tab.page.locator("#wait")).to_be_empty()
    expect(tab.answers).to_have_count(2)
    expect(tab.answer).to_have_attribute("data-status", "completed")
    tab.question.press("Enter")
    expect(tab.answers).to_have_count(3)
    tab.expect_end("completed", TEXT)
    assert tab.conversation == conversation
    assert [each["content"] for each in tab.stored()[::2]] == [
        *("What is MongoDB?", "And what is a document?", "Next")
    ]


# Over reloads and in two tabs


def test_reload__misses_and_doubles_nothing(tab: Tab, model: Model, shoot: Shoot) -> None:
    tokens = words(100)
    text = model.will(*tokens, slowly=True)
    tab.ask("Count")
    for given in (0, 30, 60):
        model.go_on(20)
        expect(tab.text).to_contain_text(f"w{given + 19} ")
        expect(tab.stop).to_be_visible()
        if given == 30:
            shoot(tab, "streaming")
        model.go_on(10)  # they come while the page is loaded
        tab.page.reload()
    model.go_on(10)
    tab.expect_end("completed", text, tokens=len(tokens))
    expect(tab.messages).to_have_count(2)
    tab.page.reload()
    tab.expect_end("completed", text, tokens=len(tokens))


def test_reload__before_the_first_token__waits_for_it(tab: Tab, model: Model) -> None:
    text = model.will(*ANSWER, slowly=True)
    tab.ask("What is MongoDB?")
    expect(tab.stop).to_be_visible()
    tab.page.reload()
    expect(tab.typing).to_have_count(1)
    expect(tab.stop).to_be_visible()
    model.go_on(len(ANSWER))
    tab.expect_end("completed", text)


def test_second_tab__is_in_step(tab: Tab, open_tab: OpenTab, model: Model, shoot: Shoot) -> None:
    text = model.will(*ANSWER, slowly=True)
    tab.ask("What is MongoDB?")
    expect(tab.stop).to_be_visible()
    second = open_tab(context=tab.page.context).open(tab.conversation)
    for count in range(1, len(ANSWER)):
        model.go_on()
        for each in (tab, second):
            expect(each.text).to_have_text("".join(ANSWER[:count]))
            expect(each.stop).to_be_visible()
    shoot(tab, "two-tabs-1")
    shoot(second, "two-tabs-2")
    model.go_on()
    for each in (tab, second):
        each.expect_end("completed", text, tokens=len(ANSWER))

    # What is said in one is in the other, too.
    second.ask("And what is a document?")
    for each in (tab, second):
        expect(each.messages).to_have_count(4)
        expect(each.messages.nth(2)).to_contain_text("And what is a document?")
        each.expect_end("completed", TEXT)


def test_second_tab__stops_the_answer_and_asks_again(
    tab: Tab, open_tab: OpenTab, model: Model
) -> None:
    model.will(*ANSWER, slowly=True)
    tab.ask("What is MongoDB?")
    expect(tab.stop).to_be_visible()
    second = open_tab(context=tab.page.context).open(tab.conversation)
    model.go_on(2)
    for each in (tab, second):
        expect(each.text).to_have_text("It is")
    second.stop.click()
    for each in (tab, second):
        each.expect_end("cancelled", "It is ")
        expect(each.again).to_be_visible()
    model.wait_until_left()
    second.again.click()
    for each in (tab, second):
        each.expect_end("completed", TEXT)
        expect(each.answers).to_have_count(1)


def test_conversations__go_on_while_another_is_shown(tab: Tab, model: Model, shoot: Shoot) -> None:
    text = model.will(*ANSWER, slowly=True)
    tab.ask("First question")
    model.go_on(2)
    expect(tab.text).to_have_text("It is")
    first = tab.conversation

    tab.page.get_by_role("button", name="New chat").click()
    expect(tab.messages).to_have_count(0)
    model.will("Other.")
    tab.ask("Second question")
    tab.expect_end("completed", "Other.")
    first_title = "First question, is being answered"
    expect(tab.titles).to_have_text(["Second question", first_title])
    expect(tab.titles.first).to_have_attribute("aria-current", "page")

    model.go_on()
    tab.titles.filter(has_text="First question").click()
    expect(tab.text).to_have_text("It is a")
    assert tab.conversation == first
    model.go_on(len(ANSWER))
    tab.expect_end("completed", text)
    tab.page.go_back()
    expect(tab.text).to_have_text("Other.")
    tab.page.go_forward()
    expect(tab.text).to_have_text(text)


# Stopped and failed


def test_stop__keeps_the_text_and_leaves_the_model(tab: Tab, model: Model, shoot: Shoot) -> None:
    model.will(*ANSWER, slowly=True)
    tab.ask("What is MongoDB?")
    model.go_on(4)
    expect(tab.text).to_have_text("It is a database")
    assert not model.fake.left.is_set()
    tab.stop.click()

    stored = tab.expect_end("cancelled", "It is a database ")
    model.wait_until_left()
    expect(tab.facts).to_contain_text("Stopped")
    expect(tab.again).to_be_visible()
    expect(tab.error).to_be_hidden()
    assert stored["error"] is None
    shoot(tab, "stopped")
    tab.page.reload()
    tab.expect_end("cancelled", "It is a database ")
    expect(tab.again).to_be_visible()


def test_stop__before_the_first_token(tab: Tab, model: Model) -> None:
    model.will(*ANSWER, slowly=True)
    tab.ask("What is MongoDB?")
    tab.stop.click()
    tab.expect_end("cancelled", "")
    expect(tab.typing).to_have_count(0)
    expect(tab.again).to_be_visible()


def test_failure__is_told_in_a_safe_sentence_and_given_again(
    tab: Tab, chat: Chat, model: Model, shoot: Shoot
) -> None:
    model.will(*ANSWER, slowly=True, breaks="break off")
    tab.ask("What is MongoDB?")
    model.go_on(3)
    failed = tab.expect_end("failed", "It is a ")
    expect(tab.error).to_have_text("The model's answer was cut off. Try again.")
    shoot(tab, "failed-with-retry")
    # All that there is goes to the log, and nothing of it to the page.
    until(lambda: "Traceback" in chat.log and f"Overloaded: {KEY}" in chat.log)
    for secret in (KEY, "Overloaded", "Traceback", "APIError:", "/v1", "mongodb://"):
        assert secret not in tab.page.content()
    tab.page.reload()
    expect(tab.error).to_have_text("The model's answer was cut off. Try again.")

    model.will(*ANSWER, slowly=True)
    tab.again.click()
    expect(tab.stop).to_be_visible()
    expect(tab.answers).to_have_count(1)
    expect(tab.answer).to_have_attribute("data-status", "streaming")
    expect(tab.error).to_be_hidden()
    model.go_on(len(ANSWER))
    again = tab.expect_end("completed", TEXT)
    assert again["replaces"] == failed["id"]
    expect(tab.answers).to_have_count(1)
    expect(tab.again).to_be_hidden()
    tab.page.reload()
    tab.expect_end("completed", TEXT)
    expect(tab.answers).to_have_count(1)


def test_message_that_is_refused__can_be_sent_again(
    tab: Tab, model: Model, complaints: Complaints, shoot: Shoot
) -> None:
    complaints.allow("status of 400")
    tab.ask("What is MongoDB?")
    tab.expect_end("completed", TEXT)

    def refuse(route: Route) -> None:
        if route.request.method != "POST":
            route.fallback()
            return
        route.fulfill(status=400, json={"error": {"code": "invalid", "message": "No."}})

    tab.page.route("**/messages", refuse)
    tab.ask("And what is a document?")
    refused = tab.page.locator(".message.user").last
    expect(refused).to_have_attribute("data-status", "unsent")
    expect(refused.locator(".error")).to_have_text("This could not be sent.")
    assert len(tab.stored()) == 2
    shoot(tab, "unsent")
    tab.page.unroute("**/messages")
    refused.get_by_role("button", name="Send again").click()
    expect(tab.messages).to_have_count(4)
    tab.expect_end("completed", TEXT)
    expect(refused.get_by_role("button", name="Send again")).to_be_hidden()
    assert [each["content"] for each in model.fake.asked[-1]["messages"][1:]] == [
        *("What is MongoDB?", TEXT, "And what is a document?")
    ]


# Reading


def test_reader_who_scrolls_up__stays_there(tab: Tab, model: Model, shoot: Shoot) -> None:
    tokens = [f"Paragraph {number} of it.\n\n" for number in range(80)]
    model.will(*tokens, slowly=True)
    tab.ask("Tell me much")
    scroller = tab.page.locator("#scroller")
    jump = tab.page.get_by_role("button", name="Jump to latest")
    model.go_on(40)
    expect(tab.text).to_contain_text("Paragraph 39 ")
    expect(tab.text.get_by_text("Paragraph 39 ")).to_be_in_viewport()
    expect(jump).to_be_hidden()

    scroller.hover()
    tab.page.mouse.wheel(0, -600)
    below = "(node) => node.scrollHeight - node.scrollTop - node.clientHeight"
    until(lambda: scroller.evaluate(below) >= 599)
    expect(jump).to_be_visible()
    top = scroller.evaluate("(node) => node.scrollTop")
    model.go_on(20)
    expect(tab.text).to_contain_text("Paragraph 59 ")
    assert scroller.evaluate("(node) => node.scrollTop") == top
    shoot(tab, "scrolled-up")
    jump.click()
    expect(tab.text.get_by_text("Paragraph 59 ")).to_be_in_viewport()
    model.go_on(20)
    expect(tab.text.get_by_text("Paragraph 79 ")).to_be_in_viewport()
    expect(jump).to_be_hidden()


def test_older_messages__are_loaded_when_asked_for(tab: Tab, model: Model) -> None:
    tab.ask("Question 0")
    tab.expect_end("completed", TEXT)
    path = f"{tab.address}/api/conversations/{tab.conversation}/messages"
    post = tab.page.context.request.post
    for number in range(1, 30):
        sent = partial(post, path, data={"content": f"Question {number}"})
        until(lambda sent=sent: sent().ok)  # type: ignore[misc] # one answer at a time
    expect(tab.messages).to_have_count(60)
    expect(tab.page.locator("[data-status=streaming]")).to_have_count(0)
    tab.page.reload()
    expect(tab.messages).to_have_count(50)
    tab.page.get_by_role("button", name="Load older messages").click()
    expect(tab.messages).to_have_count(60)
    expect(tab.messages.first).to_contain_text("Question 0")
    expect(tab.page.get_by_role("button", name="Load older messages")).to_be_hidden()
    questions = tab.page.locator(".message.user .text").all_text_contents()
    assert questions == [f"Question {number}" for number in range(30)]


def test_stranger__is_told_that_there_is_no_such_conversation(
    tab: Tab, open_tab: OpenTab, complaints: Complaints, shoot: Shoot
) -> None:
    complaints.allow("status of 404")
    tab.ask("A secret question")
    tab.expect_end("completed", TEXT)
    stranger = open_tab().open(tab.conversation)
    expect(stranger.page.get_by_role("alert")).to_contain_text(
        "The conversation does not exist, or it is not yours."
    )
    assert "secret question" not in stranger.page.content()
    shoot(stranger, "not-yours")
    stranger.page.get_by_role("button", name="New chat").last.click()
    stranger.ask("A question of my own")
    stranger.expect_end("completed", TEXT)
