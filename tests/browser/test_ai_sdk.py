"""The AI SDK in a browser: ``useChat`` in React's StrictMode, on the endpoints, with no adapter."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from uuid import uuid4

import pytest

pytest.importorskip("pytest_playwright", reason="needs a browser: python -m nox -s browser")

from anyio.from_thread import BlockingPortal
from playwright.sync_api import BrowserContext, expect

from tests.browser.conftest import ARTEFACTS
from tests.browser.site import Complaints, Held, Line, words
from tests.conftest import drop_database
from tests.faults.proxy import Proxy
from tests.web.ai_sdk.driving import Site, Tab, Talk
from tests.web.ai_sdk.site import BUNDLE, SOURCES

SAFE = "The answer could not be completed."
RESUME, SEND, STOP = "GET /api/chat/ID/stream", "POST /api/chat", "POST /api/chat/ID/stop"


def what_is_missing() -> str | None:
    """Why there is no page to test."""
    how = "python -m nox -s browser, or npm ci && npm run build in tests/web/ai_sdk"
    if not BUNDLE.exists():
        return f"needs the page as npm's esbuild bundles it: {how}"
    if any(source.stat().st_mtime > BUNDLE.stat().st_mtime for source in SOURCES):
        return f"the page was bundled before it was changed: {how}"
    return None


MISSING = what_is_missing()
pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))

OpenTab = Callable[..., Tab]
StartSite = Callable[[], Site]


@pytest.fixture(scope="session")
def start_site(
    server_uri: str, portal: BlockingPortal, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StartSite]:
    """Starts sites, each with a database of its own; all are ended with the session."""
    with ExitStack() as stack:

        def start() -> Site:
            database = f"test_{uuid4().hex[:16]}"
            stack.callback(portal.call, drop_database, server_uri, database)
            site = Site(server_uri, database, tmp_path_factory.mktemp("site") / "log.txt")
            stack.callback(site.stop)
            return site.start()

        yield start


@pytest.fixture(scope="session")
def shared_site(start_site: StartSite) -> Site:
    """The site of all tests that leave it as it is: each has a chat of its own."""
    return start_site()


@pytest.fixture
def site(shared_site: Site) -> Iterator[Site]:
    """A running site; what it complains about is shown if the test fails."""
    before = len(shared_site.log)
    yield shared_site
    print(shared_site.log[before:])  # noqa: T201 - shown if the test fails


@pytest.fixture
def talk(site: Site) -> Talk:
    """A new chat of Ada's."""
    return site.talk()


@pytest.fixture
def open_tab(complaints: Complaints, new_context: Callable[..., BrowserContext]) -> OpenTab:
    """Opens tabs: in a browser of their own, or in the one of another tab."""

    def open_one(
        talk: Talk,
        *,
        user: str = "ada",
        context: BrowserContext | None = None,
        address: str | None = None,
    ) -> Tab:
        address = address or talk.site.address
        if context is None:
            context = new_context()
            context.add_cookies([{"name": "user", "value": user, "url": address}])
            complaints.listen(context)
        return Tab(context.new_page(), talk, address)

    return open_one


@pytest.fixture
def tab(open_tab: OpenTab, talk: Talk) -> Tab:
    """A tab that shows the new chat."""
    return open_tab(talk).open()


def shoot(tab: Tab, name: str) -> None:
    """Takes a picture, for people to look at: ``build/screenshots/ai_sdk_NAME.png``."""
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    tab.page.screenshot(path=ARTEFACTS / f"ai_sdk_{name}.png")


def test_answer__streams_to_its_end_with_metadata(tab: Tab, talk: Talk) -> None:
    tab.expect_status("ready")
    tab.ask("How?")
    tab.expect_status("submitted")
    so_far = ""
    for token in words(5):
        so_far += talk.say(token)
        tab.expect_text(so_far)
        tab.expect_status("streaming")
    shoot(tab, "streaming")
    talk.end()
    tab.expect_status("ready")
    tab.expect_metadata(finish_reason="stop", chunks=5)
    tab.expect_no_open_part()
    expect(tab.error).to_be_hidden()
    tab.expect_stored("How?", so_far)
    shoot(tab, "completed")

    # And it goes on: the next one is sent with all that was said.
    tab.ask("And then?")
    second = talk.say("Then ", "that.")
    talk.end()
    expect(tab.messages).to_have_count(4)
    tab.expect_text(second)
    tab.expect_status("ready")
    tab.expect_stored("How?", so_far, "And then?", second)
    assert (talk.asked, tab.asked_for(SEND)) == (2, 2)


@pytest.mark.parametrize("late", ["request", "response"])
def test_question__sent_before_it_is_known_whether_to_resume__is_answered_once(
    open_tab: OpenTab, talk: Talk, late: str
) -> None:
    tab = open_tab(talk)
    resumes = Held(tab.page, "**/stream", late=late == "response")
    tab.page.goto(tab.address)
    resumes.wait()
    tab.question.fill("How?")
    tab.question.press("Enter")
    text = talk.say(*words(3))
    tab.expect_text(text)
    with tab.page.expect_response("**/stream"):
        resumes.release()
    text += talk.say("more")
    tab.expect_text(text)
    talk.end()
    tab.expect_no_open_part()
    tab.expect_status("ready")
    tab.expect_stored("How?", text)
    assert (talk.asked, tab.asked_for(SEND)) == (1, 1)


def test_strict_mode__runs_effects_twice_and_doubles_nothing(tab: Tab, talk: Talk) -> None:
    # React takes the first mount back and mounts again, as it does in development.
    expect(tab.page.locator("body")).to_have_attribute("data-effects", "2")
    tab.expect_status("ready")
    assert tab.asked_for(RESUME) == 1  # the SDK takes the first one back before it is sent
    tab.ask("How?")
    text = talk.say(*words(3))
    tab.expect_text(text)
    tab.reload()
    tab.expect_text(text)
    expect(tab.page.locator("body")).to_have_attribute("data-effects", "2")
    assert tab.asked_for(RESUME) == 2
    text += talk.say("more")
    tab.expect_text(text)
    talk.end()
    tab.expect_status("ready")
    tab.expect_stored("How?", text)
    assert (talk.asked, tab.asked_for(SEND)) == (1, 1)


def test_reload__in_mid_answer__misses_and_doubles_nothing(tab: Tab, talk: Talk) -> None:
    tokens = words(400)
    tab.ask("Count")
    for first in range(0, 400, 100):
        talk.say(*tokens[first : first + 100])
        expect(tab.text).to_contain_text(f"w{first + 20} ")
        tab.page.reload()  # tokens come before it, meanwhile and after it
    shoot(tab, "reloaded")
    tab.expect_text("".join(tokens))
    tab.expect_status("streaming")
    talk.end()
    tab.expect_status("ready")
    tab.expect_metadata(**talk.stored[-1]["metadata"])
    tab.expect_no_open_part()
    tab.expect_stored("Count", "".join(tokens))
    assert (talk.asked, tab.asked_for(SEND)) == (1, 1)


def test_second_tab__opened_in_mid_answer__follows_to_the_end(
    tab: Tab, talk: Talk, open_tab: OpenTab
) -> None:
    tab.ask("Count")
    text = talk.say(*words(3))
    tab.expect_text(text)
    second = open_tab(talk, context=tab.page.context).open()
    third = open_tab(talk).open()  # Ada's other computer
    for token in ("and ", "so ", "on"):
        for each in (tab, second, third):
            each.expect_text(text)
            each.expect_status("streaming")
        text += talk.say(token)
    shoot(second, "second_tab")
    talk.end()
    for each in (tab, second, third):
        each.expect_status("ready")
        each.expect_no_open_part()
        each.expect_stored("Count", text)
    assert talk.asked == 1


def test_lost_connection__in_mid_answer__resumes_into_the_same_message(
    talk: Talk, open_tab: OpenTab, portal: BlockingPortal, complaints: Complaints
) -> None:
    complaints.allow_network_trouble()
    proxy = Proxy(talk.site.port)
    with portal.wrap_async_context_manager(proxy):
        line = Line(portal, proxy)
        tab = open_tab(talk, address=line.address).open()
        tab.ask("Count")
        text = talk.say(*words(3))
        tab.expect_text(text)
        line.cut()
        tab.expect_status("error")
        text += talk.say("unseen ")
        # The SDK resumes when the page is looked at again, and not before.
        tab.page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        tab.expect_text(text)
        tab.expect_status("streaming")
        text += talk.say("seen")
        talk.end()
        tab.expect_status("ready")
        expect(tab.error).to_be_hidden()
        tab.expect_no_open_part()
        tab.expect_stored("Count", text)
        assert (talk.asked, tab.asked_for(SEND)) == (1, 1)


def test_reload__after_the_end__starts_nothing(tab: Tab, talk: Talk) -> None:
    tab.ask("How?")
    text = talk.say("Like ", "this.")
    talk.end()
    tab.expect_status("ready")
    with tab.page.expect_response(lambda response: response.url.endswith("/stream")) as resumed:
        tab.reload()
    assert resumed.value.status == 204
    tab.expect_text(text)
    tab.expect_status("ready")
    expect(tab.error).to_be_hidden()
    tab.expect_stored("How?", text)
    assert (talk.asked, tab.asked_for(SEND)) == (1, 1)


@pytest.mark.parametrize("tokens", [0, 3])
def test_error__is_a_safe_sentence_and_the_answer_is_given_again(
    tab: Tab, talk: Talk, tokens: int
) -> None:
    tab.ask("How?")
    part = talk.say(*words(tokens))
    talk.fail("secret: mongodb://user:password@host")
    tab.expect_status("error")
    expect(tab.error).to_have_text(SAFE)
    tab.expect_no_open_part()
    assert talk.stored[-1]["status"] == "failed"
    assert tab.shown()[-1][2] == part
    for secret in ("secret", "password", "RuntimeError", "Traceback"):
        assert secret not in tab.page.content()
    shoot(tab, f"error_after_{tokens}")

    tab.again.click()
    tab.expect_status("submitted")
    expect(tab.error).to_be_hidden()
    text = talk.say("Like ", "this.")
    talk.end()
    tab.expect_status("ready")
    failed, given = talk.stored[1:]
    assert (failed["content"], given["content"]) == (part, text)
    assert given["metadata"]["replaces"] == failed["id"]
    for _ in range(2):  # also after a reload
        shown = tab.shown()
        assert [text for _, _, text in shown] == ["How?", text]
        assert shown[-1][1] == given["id"]
        tab.reload()
        tab.expect_text(text)
        tab.expect_status("ready")
    assert talk.asked == 2


def test_error__after_a_reload__is_said_in_the_metadata(tab: Tab, talk: Talk) -> None:
    tab.ask("How?")
    text = talk.say("part")
    talk.fail("secret")
    tab.expect_status("error")
    tab.reload()
    tab.expect_status("ready")
    tab.expect_stored("How?", text)
    tab.expect_metadata(status="failed", error=SAFE, **talk.stored[-1]["metadata"])
    assert "secret" not in tab.page.content()


def test_stop__ends_the_generation_and_leaves_the_page_ready(tab: Tab, talk: Talk) -> None:
    tab.ask("Count")
    text = talk.say(*words(3))
    tab.expect_text(text)
    tab.stop.click()
    tab.expect_status("ready")
    talk.wait_for("cancelled")
    talk.say("too late ")
    expect(tab.error).to_be_hidden()
    tab.expect_stored("Count", text)
    assert tab.asked_for(STOP) == 1
    shoot(tab, "stopped")
    tab.reload()
    tab.expect_text(text)
    tab.expect_metadata(status="cancelled", **talk.stored[-1]["metadata"])
    tab.expect_stored("Count", text)


def test_stop__in_one_tab__ends_the_answer_in_the_other(
    tab: Tab, talk: Talk, open_tab: OpenTab
) -> None:
    tab.ask("Count")
    text = talk.say(*words(3))
    second = open_tab(talk, context=tab.page.context).open()
    second.expect_text(text)
    second.stop.click()
    for each in (tab, second):
        each.expect_status("ready")
        expect(each.error).to_be_hidden()
        each.expect_stored("Count", text)
    tab.expect_no_open_part()  # in the other one the SDK's own stop() may leave it so
    assert talk.stored[-1]["status"] == "cancelled"


def test_stopped_answer__is_followed_by_a_question_and_another_answer(tab: Tab, talk: Talk) -> None:
    tab.ask("Count")
    expect(tab.answers).to_have_count(1)  # a stop must not overtake what it is to stop
    tab.expect_status("submitted")
    tab.stop.click()  # before the first token
    tab.expect_status("ready")
    talk.wait_for("cancelled")
    tab.ask("Count, please")
    text = talk.say("One.")
    talk.end()
    tab.expect_text(text)
    tab.expect_status("ready")
    tab.expect_stored("Count", "", "Count, please", text)


def test_closed_page__leaves_the_answer_to_be_written(
    tab: Tab, talk: Talk, open_tab: OpenTab
) -> None:
    context = tab.page.context
    tab.ask("Count")
    text = talk.say(*words(3))
    tab.expect_text(text)
    tab.page.close()
    talk.wait_until_left()  # the site has seen that nobody is there
    text += talk.say("alone")
    talk.end()
    talk.wait_for("completed")
    later = open_tab(talk, context=context).open()
    later.expect_text(text)
    later.expect_stored("Count", text)
    assert talk.asked == 1


def test_deploy__in_mid_answer__is_answered_by_the_next_process(
    start_site: StartSite, open_tab: OpenTab, complaints: Complaints
) -> None:
    complaints.allow_network_trouble()
    site = start_site()
    talk = site.talk()
    tab = open_tab(talk).open()
    tab.ask("Count")
    text = talk.say(*words(3))
    tab.expect_text(text)
    site.terminate()
    tab.expect_status("error")
    expect(tab.error).to_have_text(
        "The connection was ended by the server. Reload the page to continue."
    )
    shoot(tab, "deploy")
    site.wait()
    site.start()
    tab.reload()
    text = talk.say(*words(5))
    talk.end()
    tab.expect_text(text)
    tab.expect_status("ready")
    tab.reload()
    tab.expect_text(text)
    tab.expect_stored("Count", text)
    tab.expect_metadata(**talk.stored[-1]["metadata"])
    assert "Traceback" not in site.log


def test_chat_of_another_user__is_not_there(
    tab: Tab, talk: Talk, open_tab: OpenTab, complaints: Complaints
) -> None:
    complaints.allow("status of 404")
    tab.ask("A private question")
    text = talk.say("A private answer")
    tab.expect_text(text)
    stranger = open_tab(talk, user="eve")
    stranger.page.goto(stranger.address)
    expect(stranger.error).to_have_text("There is no such chat: 404")
    assert "private" not in stranger.page.content()
    shoot(stranger, "not_yours")
    asking = stranger.page.context.request
    base = f"{talk.site.address}/api/chat"
    message = {"id": "m", "role": "user", "parts": [{"type": "text", "text": "Mine"}]}
    for response in (
        asking.get(f"{base}/{talk.id}/stream"),
        asking.post(f"{base}/{talk.id}/stop", data={}),
        asking.post(base, data={"id": talk.id, "messages": [message]}),
    ):
        assert response.status == 404
        assert "private" not in response.text()

    # Eve has a chat of her own beside it, and Ada's goes on.
    own = talk.site.talk("eve")
    hers = open_tab(own, user="eve").open()
    hers.ask("Hello")
    reply = own.say("Hello, Eve")
    own.end()
    hers.expect_text(reply)
    hers.expect_status("ready")
    hers.expect_stored("Hello", reply)
    talk.end()
    tab.expect_status("ready")
    tab.expect_stored("A private question", text)
