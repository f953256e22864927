"""A real browser: Debian's chromium, driven by pytest-playwright, in a session of its own.

Its tests are no coroutines, and cannot run in one process with those that are: the loop that drives
the browser would be in their way.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

pytest.importorskip("pytest_playwright", reason="needs a browser: python -m nox -s browser")

from anyio.from_thread import BlockingPortal, start_blocking_portal
from playwright.sync_api import BrowserContext, expect

from tests.browser.site import END_SECONDS, Chat, Complaints, Line, Model, Tab, Worker
from tests.chat.fake_openai import KEY
from tests.conftest import drop_database
from tests.faults.proxy import Proxy
from tests.web.conftest import serving

CHROMIUM = os.environ.get("CONVERSE_CHROMIUM") or shutil.which("chromium")
BUILD = Path(__file__).parents[2] / "build"
ARTEFACTS = BUILD / "screenshots"
FAILURES = BUILD / "browser-failures"

expect.set_options(timeout=END_SECONDS * 1000)
TEST_SECONDS = 600

OpenTab = Callable[..., Tab]
Shoot = Callable[[Tab, str], None]
OpenLine = Callable[[Chat], Line]
StartChat = Callable[..., Chat]
StartWorker = Callable[[Chat], Worker]


def pytest_configure(config: pytest.Config) -> None:
    """Keeps what shows why a test failed, where the command line says nothing else.

    ``--tracing retain-on-failure`` shows more, and takes a tenth more time.
    """
    for option, default, ours in (
        ("screenshot", "off", "only-on-failure"),
        ("output", "test-results", str(FAILURES)),
    ):
        if config.getoption(option) == default:
            setattr(config.option, option, ours)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Gives these tests time, and leaves them out where others are collected, too."""
    ours = [item for item in items if Path(__file__).parent in item.path.parents]
    for item in ours:
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TEST_SECONDS))
    if len(ours) < len(items):
        alone = pytest.mark.skip(reason="not beside coroutines: python -m pytest tests/browser")
        for item in ours:
            item.add_marker(alone)


@pytest.fixture(scope="session")
def browser_type_launch_args(browser_type_launch_args: dict[str, Any]) -> dict[str, Any]:
    """The chromium of the machine, which asks nobody but the server under test."""
    if CHROMIUM is None:
        pytest.fail("No chromium: install Debian's package, or name one in CONVERSE_CHROMIUM.")
    return {
        **browser_type_launch_args,
        "executable_path": CHROMIUM,
        "args": [
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
        ],
    }


@pytest.fixture(scope="session")
def base_url() -> None:
    """None for all tests: each serves on a port of its own."""


@pytest.fixture(scope="session")
def portal() -> Iterator[BlockingPortal]:
    """A thread with an event loop, for what stands around the chat."""
    with start_blocking_portal() as portal:
        yield portal


@pytest.fixture(scope="session")
def shared_model(portal: BlockingPortal) -> Iterator[tuple[Model, str]]:
    """The fake of a model, and where it is."""
    model = Model(portal)
    with portal.wrap_async_context_manager(serving(model)) as port:
        yield model, f"http://127.0.0.1:{port}/v1"


@pytest.fixture
def model(shared_model: tuple[Model, str]) -> Iterator[Model]:
    """What the chats of this test ask for answers."""
    model, _ = shared_model
    yield model
    model.renew()


@pytest.fixture(scope="session")
def make_chat(
    server_uri: str,
    portal: BlockingPortal,
    shared_model: tuple[Model, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[StartChat]:
    """Makes chats in databases of their own; all are ended with the session, if not before."""
    _, base_url = shared_model
    with ExitStack() as stack:

        def make(*, database: str | None = None, **options: Any) -> Chat:
            if database is None:
                database = f"test_{uuid4().hex[:16]}"
                stack.callback(portal.call, drop_database, server_uri, database)
            log = tmp_path_factory.mktemp("chat") / "log.txt"
            options = {
                "OPENAI_API_KEY": KEY,
                "OPENAI_BASE_URL": base_url,
                "CHAT_MODEL": "small",
                "CHAT_HOSTS": "127.0.0.1",  # with every port: lines have ports of their own
                **options,
            }
            chat = Chat(server_uri, database, log, **options)
            stack.callback(chat.stop)
            return chat

        yield make


@pytest.fixture
def start_chat(make_chat: StartChat) -> Iterator[StartChat]:
    """Starts chats that a test may harm; each is ended with it, and then says what it logged."""
    with ExitStack() as stack:

        def start(**options: Any) -> Chat:
            chat = make_chat(**options)
            stack.callback(lambda: print(chat.log))  # noqa: T201 - shown if the test fails
            stack.callback(chat.stop)
            return chat.start()

        yield start


@pytest.fixture
def start_worker(tmp_path: Path) -> Iterator[StartWorker]:
    """Starts workers of a chat, which end with the test and then say what they logged."""
    log = tmp_path / "workers.txt"
    log.touch()
    with ExitStack() as stack:
        stack.callback(lambda: print(log.read_text(errors="replace")))  # noqa: T201

        def start(chat: Chat) -> Worker:
            worker = Worker(chat, log)
            stack.callback(worker.kill)
            return worker

        yield start


@pytest.fixture(scope="session")
def shared_chat(make_chat: StartChat) -> Chat:
    """The chat of all tests that leave it as it is: each has users of its own."""
    return make_chat().start()


@pytest.fixture
def chat(shared_chat: Chat, model: Model) -> Iterator[Chat]:
    """A running chat, whose model is the fake."""
    before = len(shared_chat.log)
    yield shared_chat
    print(shared_chat.log[before:])  # noqa: T201 - shown if the test fails


@pytest.fixture
def complaints() -> Iterator[Complaints]:
    """What browsers complained about; something that was not expected fails the test."""
    complaints = Complaints()
    yield complaints
    assert complaints.found == []


@pytest.fixture
def new_context(new_context: Callable[..., BrowserContext]) -> Callable[..., BrowserContext]:
    """Makes browsers that wait for a page as long as tests do for what it shows."""

    def make(**options: Any) -> BrowserContext:
        context = new_context(**options)
        context.set_default_timeout(END_SECONDS * 1000)
        return context

    return make


@pytest.fixture
def open_tab(
    request: pytest.FixtureRequest,
    complaints: Complaints,
    start_chat: StartChat,  # so that browsers are closed before the chats that they show
    new_context: Callable[..., BrowserContext],
) -> OpenTab:
    """Opens tabs: of a user of its own, or of one whose browser is there already.

    Its arguments are a chat, or the address of one; a ``context``, or the options of a new one.
    """

    def open_one(
        site: Chat | str | None = None, *, context: BrowserContext | None = None, **options: Any
    ) -> Tab:
        found: Chat | str = request.getfixturevalue("chat") if site is None else site
        if context is None:
            context = new_context(**options)
            complaints.listen(context)
        return Tab(context.new_page(), found if isinstance(found, str) else found.address)

    return open_one


@pytest.fixture
def tab(open_tab: OpenTab) -> Tab:
    """A tab of a new user of the chat, who has not asked anything."""
    return open_tab().open()


@pytest.fixture
def open_line(portal: BlockingPortal) -> Iterator[OpenLine]:
    """Puts a line between a browser and a chat, which a test can cut."""
    with ExitStack() as stack:

        def open_one(chat: Chat) -> Line:
            proxy = Proxy(chat.port)
            stack.enter_context(portal.wrap_async_context_manager(proxy))
            return Line(portal, proxy)

        yield open_one


@pytest.fixture
def shoot() -> Shoot:
    """Takes a picture of a tab, for people to look at: ``build/screenshots/NAME.png``."""

    def take(tab: Tab, name: str) -> None:
        ARTEFACTS.mkdir(parents=True, exist_ok=True)
        tab.page.screenshot(path=ARTEFACTS / f"{name}.png")

    return take
