"""A browser loses its network, or the chat its process, and nothing is missing or doubled."""

import signal

from playwright.sync_api import Request, expect

from converse_mongo.domain.work import MAX_ATTEMPTS
from tests.browser.conftest import OpenLine, OpenTab, Shoot, StartChat
from tests.browser.site import Chat, Complaints, Model, Tab, until, words
from tests.chat.fake_openai import ANSWER

TEXT = "".join(ANSWER)
INTERRUPTED = "The answer stopped because the process that wrote it is gone. Try again."


def is_stream(request: Request) -> bool:
    """Whether it asks for the stream of a conversation."""
    path = request.url.partition("?")[0]
    return path.endswith("/events") and "/conversations/" in path


class Streams:
    """The streams that a tab has asked for, each with the place to begin at."""

    def __init__(self, tab: Tab) -> None:
        self._tab = tab
        self.asked: list[str] = []
        tab.page.on("request", self._note)

    def ask(self, question: str) -> None:
        """Asks, and returns once the tab has asked for a stream too.

        A slow tab would else load the first words with the messages, and go on behind them twice.
        """
        with self._tab.page.expect_request(is_stream):
            self._tab.ask(question)

    def _note(self, request: Request) -> None:
        if is_stream(request):
            self.asked.append(request.url.partition("?")[2])


# The network


def test_offline__is_said_and_nothing_is_missing(
    open_tab: OpenTab,
    open_line: OpenLine,
    chat: Chat,
    model: Model,
    complaints: Complaints,
    shoot: Shoot,
) -> None:
    complaints.allow_network_trouble()
    line = open_line(chat)
    tab = open_tab(line.address).open()
    streams = Streams(tab)
    tokens = words(40)
    text = model.will(*tokens, slowly=True)
    streams.ask("Count")
    model.go_on(10)
    expect(tab.text).to_contain_text("w9")
    [first] = streams.asked

    # Chromium leaves connections alone that it has when it is told to be offline.
    tab.page.context.set_offline(True)
    line.lose()
    expect(tab.connection).to_have_text("Offline")
    model.go_on(10)
    expect(tab.typing).to_have_count(0)
    shoot(tab, "offline")
    # The service goes on without this reader: it has stored what the page has not got.
    until(lambda: "w19 " in tab.stored(chat.address)[-1]["content"])
    assert tab.shown_text() == "".join(tokens[:10]).rstrip()

    line.come_back()
    tab.page.context.set_offline(False)
    expect(tab.connection).to_have_text("")
    expect(tab.text).to_contain_text("w19")
    assert tab.shown_text() == "".join(tokens[:20]).rstrip()
    assert len(streams.asked) > 1
    assert first not in streams.asked[1:]  # it went on from where it was
    model.go_on(20)
    tab.expect_end("completed", text, tokens=40)


def test_offline__is_not_said_of_a_service_on_the_same_machine(
    open_tab: OpenTab, complaints: Complaints
) -> None:
    complaints.allow_network_trouble()
    tab = open_tab()
    tab.page.add_init_script(
        "Object.defineProperty(Navigator.prototype, 'onLine', { get: () => false })"
    )
    tab.open().ask("Hello")
    tab.expect_end("completed", TEXT)
    expect(tab.connection).to_have_text("")
    tab.page.evaluate("dispatchEvent(new Event('offline'))")
    expect(tab.connection).to_have_text("Offline")
    tab.ask("Hello again")
    expect(tab.connection).to_have_text("")


def test_conversation__lost_while_it_is_answered__has_nothing_to_stop(
    open_tab: OpenTab, open_line: OpenLine, chat: Chat, model: Model, complaints: Complaints
) -> None:
    complaints.allow_network_trouble()
    line = open_line(chat)
    tab = open_tab(line.address).open()
    model.will(*words(10), slowly=True)
    tab.ask("Count")
    model.go_on(5)
    expect(tab.text).to_contain_text("w4")
    expect(tab.stop).to_be_visible()
    tab.page.context.clear_cookies()
    line.cut()
    expect(tab.page.get_by_role("alert")).to_contain_text("it is not yours")
    expect(tab.stop).to_be_hidden()
    expect(tab.send).to_be_disabled()


def test_connection__cut_again_and_again__misses_and_doubles_nothing(
    open_tab: OpenTab, open_line: OpenLine, chat: Chat, model: Model, complaints: Complaints
) -> None:
    complaints.allow_network_trouble()
    line = open_line(chat)
    tab = open_tab(line.address).open()
    streams = Streams(tab)
    tokens = words(250)
    text = model.will(*tokens, slowly=True)
    streams.ask("Count")
    for given in range(0, 200, 40):
        model.go_on(30)
        expect(tab.text).to_contain_text(f"w{given + 29} ")
        model.go_on(10)  # they come while the line is cut
        with tab.page.expect_request(is_stream):
            line.cut()
    model.go_on(50)
    expect(tab.connection).to_have_text("")
    tab.expect_end("completed", text, tokens=250)
    assert len(set(streams.asked)) > 5  # each time it went on from another place


def test_question__asked_without_a_network__is_sent_once(
    open_tab: OpenTab,
    open_line: OpenLine,
    chat: Chat,
    model: Model,
    complaints: Complaints,
    shoot: Shoot,
) -> None:
    complaints.allow_network_trouble()
    line = open_line(chat)
    tab = open_tab(line.address).open()
    tab.ask("What is MongoDB?")
    tab.expect_end("completed", TEXT)
    line.lose()
    expect(tab.connection).to_have_text("Reconnecting")
    tab.ask("And what is a document?")
    asked = tab.page.locator(".message.user").last
    expect(asked).to_have_attribute("data-status", "pending")
    expect(asked).to_contain_text("Sending")
    shoot(tab, "sending-without-a-network")
    line.come_back()
    expect(tab.messages).to_have_count(4)
    tab.expect_end("completed", TEXT)
    assert [each["content"] for each in tab.stored()] == [
        *("What is MongoDB?", TEXT, "And what is a document?", TEXT)
    ]
    expect(tab.messages).to_have_count(4)
    assert len(model.fake.asked) == 2


# The process


def test_killed_process__is_followed_by_one_that_answers_anew(
    open_tab: OpenTab,
    start_chat: StartChat,
    model: Model,
    complaints: Complaints,
    shoot: Shoot,
) -> None:
    complaints.allow_network_trouble()
    chat = start_chat()
    tab = open_tab(chat).open()
    tokens = words(20)
    model.will(*tokens, slowly=True)
    tab.ask("Count")
    model.go_on(10)
    expect(tab.text).to_contain_text("w9")

    chat.kill()
    expect(tab.connection).to_have_text("Reconnecting")
    assert tab.shown_text() == "".join(tokens[:10]).rstrip()
    shoot(tab, "reconnecting")
    model.wait_until_left()
    again = [f"again{number} " for number in range(20)]
    text = model.will(*again, slowly=True)
    chat.expire_leases(3)
    chat.start()
    tab.hasten()
    expect(tab.connection).to_have_text("")
    model.go_on(5)
    expect(tab.text).to_have_text("".join(again[:5]).rstrip())
    expect(tab.again).to_be_hidden()
    model.go_on(15)
    tab.expect_end("completed", text, tokens=20)
    expect(tab.answers).to_have_count(1)
    expect(tab.error).to_be_hidden()


def test_killed_process__for_the_last_time_leaves_an_answer_that_can_be_given_again(
    open_tab: OpenTab,
    start_chat: StartChat,
    model: Model,
    complaints: Complaints,
    shoot: Shoot,
) -> None:
    complaints.allow_network_trouble()
    chat = start_chat()
    tab = open_tab(chat).open()
    tokens = words(20)
    model.will(*tokens, slowly=True)
    tab.ask("Count")
    for attempt in range(MAX_ATTEMPTS):
        model.go_on(attempt + 2)
        expect(tab.text).to_have_text("".join(tokens[: attempt + 2]).rstrip())
        chat.kill()
        expect(tab.connection).to_have_text("Reconnecting")
        model.wait_until_left()
        if attempt + 1 < MAX_ATTEMPTS:
            model.will(*tokens, slowly=True)
        chat.expire_leases(0.5)
        chat.start()
        tab.hasten()
        expect(tab.connection).to_have_text("")
    tab.expect_end("failed", "".join(tokens[: MAX_ATTEMPTS + 1]))
    expect(tab.error).to_have_text(INTERRUPTED)
    shoot(tab, "interrupted")

    text = model.will(*tokens)
    tab.again.click()
    tab.expect_end("completed", text, tokens=20)
    expect(tab.answers).to_have_count(1)
    expect(tab.error).to_be_hidden()


def test_killed_process__is_followed_by_pages_that_are_loaded_meanwhile(
    open_tab: OpenTab, start_chat: StartChat, model: Model, complaints: Complaints
) -> None:
    complaints.allow_network_trouble()
    chat = start_chat()
    tab = open_tab(chat).open()
    model.will(*ANSWER, slowly=True)
    tab.ask("What is MongoDB?")
    model.go_on(2)
    expect(tab.text).to_have_text("It is")
    chat.kill()
    model.wait_until_left()
    model.will(*ANSWER, slowly=True)
    chat.expire_leases(3)
    chat.start()
    tab.page.reload()  # nobody knows yet that the writer is gone, and not only slow
    model.go_on(1)
    expect(tab.text).to_have_text("It")
    model.go_on(len(ANSWER))
    tab.expect_end("completed", TEXT)


def test_deploy__in_mid_answer__goes_on_with_the_next_process(
    open_tab: OpenTab,
    open_line: OpenLine,
    start_chat: StartChat,
    model: Model,
    complaints: Complaints,
) -> None:
    complaints.allow_network_trouble()
    old = start_chat(grace=60.0)
    new = start_chat(database=old.database)
    line = open_line(old)
    tab = open_tab(line.address).open()
    streams = Streams(tab)
    text = model.will(*ANSWER, slowly=True)
    streams.ask("What is MongoDB?")
    model.go_on(2)
    expect(tab.text).to_have_text("It is")

    # The old process takes no more connections, but has time for what it has begun.
    line.lead_to(new)
    with tab.page.expect_request(is_stream):
        old.terminate()
    for count in range(3, len(ANSWER)):
        model.go_on()
        expect(tab.text).to_have_text("".join(ANSWER[:count]))
        expect(tab.answer).to_have_attribute("data-status", "streaming")
    model.go_on()
    tab.expect_end("completed", text, tokens=len(ANSWER))
    expect(tab.connection).to_have_text("")
    assert len(set(streams.asked)) > 1
    assert old.wait() == 128 + signal.SIGTERM
    assert "Traceback" not in old.log


def test_deploy__that_an_answer_outlasts__is_answered_by_the_next_process(
    open_tab: OpenTab, start_chat: StartChat, model: Model, complaints: Complaints
) -> None:
    complaints.allow_network_trouble()
    old = start_chat(grace=0.5)
    tab = open_tab(old).open()
    model.will(*ANSWER, slowly=True)
    tab.ask("What is MongoDB?")
    model.go_on(4)
    expect(tab.text).to_have_text("It is a database")
    old.terminate()
    expect(tab.connection).to_have_text("Reconnecting")
    model.wait_until_left()
    model.will(*ANSWER, slowly=True)
    start_chat(database=old.database, port=old.port)
    tab.hasten()
    model.go_on(2)
    expect(tab.text).to_have_text("It is")
    expect(tab.connection).to_have_text("")
    model.go_on(len(ANSWER))
    tab.expect_end("completed", TEXT)
    assert old.wait() == 128 + signal.SIGTERM
    assert "Traceback" not in old.log
    expect(tab.answers).to_have_count(1)
