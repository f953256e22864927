"""What the tests of the chat hold: its process, the model behind it, and tabs that show it."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Self

import httpx
from anyio.from_thread import BlockingPortal
from playwright.sync_api import (
    APIResponse,
    BrowserContext,
    ConsoleMessage,
    Dialog,
    Page,
    Request,
    Route,
    expect,
)
from pymongo import MongoClient

from converse_mongo.embedded import free_port
from tests.chat.fake_openai import Fake, Plan
from tests.faults.proxy import Proxy

__all__ = [
    "Chat",
    "Complaints",
    "Held",
    "Line",
    "Model",
    "Tab",
    "Worker",
    "expire_leases",
    "until",
    "until_is",
    "words",
]

ROOT = Path(__file__).parents[2]
START_SECONDS = 120.0
# A busy machine may stand still for seconds; what comes about is not waited for so long.
END_SECONDS = 60.0
NETWORK = "Failed to load resource"

WITH_GRACE = """\
import sys
from converse_mongo.tools.chat import app
app.GRACE_SECONDS, app.CLOSE_SECONDS = {grace}, 30.0
from converse_mongo.tools.cli import main
sys.exit(main())
"""


def words(count: int) -> list[str]:
    """Tokens that are all different, so that none is lost or doubled without being seen."""
    return [f"w{number} " for number in range(count)]


def until(condition: Callable[[], bool]) -> None:
    """Returns once this is so."""
    deadline = time.monotonic() + END_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "It did not come about."
        time.sleep(0.05)


def until_is(read: Callable[[], Any], wanted: Any) -> None:
    """Returns once what is read is this."""
    deadline = time.monotonic() + END_SECONDS
    while (found := read()) != wanted and time.monotonic() < deadline:
        time.sleep(0.05)
    assert found == wanted, f"{found}\nis not\n{wanted}"


class Model:
    """The fake of a model, in a thread of its own; each test has a fresh one at the same port."""

    def __init__(self, portal: BlockingPortal) -> None:
        self._portal = portal
        self.fake = Fake()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """The fake of the moment, as an ASGI application."""
        await self.fake.app(scope, receive, send)

    def renew(self) -> None:
        """Forgets what was said and planned; an answer that still waits comes to its end."""
        self.go_on(10_000)
        self.fake = Fake()

    def will(self, *tokens: str, **how: Any) -> str:
        """Plans its next answer, and returns the text of it."""
        plan = Plan(tokens=tokens, **how)
        self.fake.plans.append(plan)
        return "".join(plan.tokens)

    def go_on(self, tokens: int = 1) -> None:
        """Lets that many tokens through of an answer that is given slowly."""

        async def release() -> None:
            for _ in range(tokens):
                self.fake.go_on.release()

        self._portal.call(release)

    def wait_until_left(self) -> None:
        """Returns once somebody has closed the connection before the answer was over."""

        async def wait() -> None:
            await self.fake.left.wait()
            self.fake.left.clear()

        self._portal.start_task_soon(wait).result(END_SECONDS)


class Chat:
    """The example as a process, which a test may end and start again at the same port.

    Args:
        grace: The seconds that its answers have when it ends, if they matter.
    """

    def __init__(
        self,
        uri: str,
        database: str,
        log: Path,
        *,
        port: int | None = None,
        grace: float | None = None,
        **environment: str,
    ) -> None:
        self.uri = uri
        self.database = database
        self.port = port or free_port()
        self._grace = grace
        self._log = log
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """What it has written so far."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def start(self) -> Self:
        """Starts the process, and returns once it answers."""
        ours = ("OPENAI_", "CHAT_", "CONVERSE_")
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
        with self._log.open("ab") as log:
            self._process = self._open(log, inherited | self._environment)
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                httpx.get(f"{self.address}/icon.svg", timeout=5, trust_env=False)
            except httpx.TransportError:
                time.sleep(0.05)
            else:
                return self
        raise RuntimeError(f"The chat did not start:\n{self.log}")

    def _open(self, log: IO[bytes], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        program = ["-m", "converse_mongo.tools.cli"]
        if self._grace is not None:
            program = ["-c", WITH_GRACE.format(grace=self._grace)]
        return subprocess.Popen(
            [
                *(sys.executable, *program, "serve", "--uri", self.uri),
                *("--database", self.database, "--port", str(self.port)),
            ],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )

    def kill(self) -> None:
        """Ends it as a crash does."""
        self._send(signal.SIGKILL)
        self.wait()

    def expire_leases(self, seconds: float) -> None:
        """Lets its answers count as orphans so many seconds from now on, once it is killed.

        A lease that was as short while it wrote could run out when the machine is busy.
        """
        assert self._process is not None
        assert self._process.poll() is not None
        expire_leases(self.uri, self.database, seconds)

    def terminate(self) -> None:
        """Asks it to end, as a deploy does, and does not wait for it."""
        self._send(signal.SIGTERM)

    def wait(self) -> int:
        """Waits until it has ended, and returns its exit code."""
        assert self._process is not None
        return self._process.wait(END_SECONDS)

    def stop(self) -> None:
        """Ends it at once, if it runs."""
        if self._process is not None:
            self.kill()

    def _send(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)


def expire_leases(uri: str, database: str, seconds: float) -> None:
    """Lets answers whose process was killed count as orphans so many seconds from now on."""
    with MongoClient[dict[str, Any]](uri) as client:
        ended = client[database].messages.update_many(
            {"status": "streaming"},
            {
                "$set": {"lease.duration": seconds},
                "$currentDate": {"lease.renewed_at": True},
            },
        )
    assert ended.modified_count > 0


class Worker:
    """A worker of a chat, as a process; see ``tests.browser.worker``."""

    def __init__(self, chat: Chat, log: Path) -> None:
        self._chat = chat
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.browser.worker", chat.uri, chat.database],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def kill(self, lease: float | None = None) -> None:
        """Ends it as a crash does; its answers count as orphans after so many seconds."""
        self._process.kill()
        self._process.wait(END_SECONDS)
        if lease is not None:
            expire_leases(self._chat.uri, self._chat.database, lease)


class Line:
    """The network between a browser and a chat."""

    def __init__(self, portal: BlockingPortal, proxy: Proxy) -> None:
        self._portal = portal
        self._proxy = proxy

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._proxy.port}"

    def cut(self) -> None:
        """Resets the connections that are there; new ones are fine."""
        self._portal.call(self._proxy.cut)

    def lose(self) -> None:
        """Resets the connections, and all that are tried from now on."""
        self._proxy.refusing = True
        self.cut()

    def lead_to(self, chat: Chat) -> None:
        """Takes new connections to another process, as a load balancer does."""
        self._proxy._target = chat.port

    def come_back(self) -> None:
        """Passes everything on again."""
        self._portal.call(self._proxy.heal)


class Held:
    """Requests of a page that are held back from the moment that it is made, until it lets go.

    Args:
        late: Whether they are answered as if they were not, and the responses are held back.
    """

    def __init__(self, page: Page, pattern: str, *, late: bool = False) -> None:
        self._page = page
        self._late = late
        self._responses: list[APIResponse] = []
        self._routes: list[Route] = []
        self._holds = True
        page.route(pattern, self._take)

    def wait(self) -> None:
        """Returns once there is one."""
        # Asking the page for something also takes in what it has told.
        until(lambda: bool(self._page.evaluate("true") and self._routes))

    def release(self) -> None:
        """Lets all of them go, and those that come."""
        self._holds = False
        for response in self._responses:
            self._routes.pop(0).fulfill(response=response)
        while self._routes:
            self._routes.pop(0).fallback()

    def _take(self, route: Route) -> None:
        if self._holds:
            if self._late:
                self._responses.append(route.fetch())
            self._routes.append(route)
        else:
            route.fallback()


class Complaints:
    """What is wrong in a browser: errors of scripts and of the console, dialogs, strange requests.

    A test that expects some of it says so with :meth:`allow`.
    """

    def __init__(self) -> None:
        self._found: list[str] = []
        self._allowed: list[str] = []

    def allow(self, *parts: str) -> None:
        """Takes what has one of these words in it for right."""
        self._allowed += parts

    def allow_network_trouble(self) -> None:
        """Takes it for right that requests fail, which the console always tells."""
        self.allow(NETWORK)

    @property
    def found(self) -> list[str]:
        """What was not to be expected."""
        return [each for each in self._found if not any(part in each for part in self._allowed)]

    def listen(self, context: BrowserContext) -> None:
        """Listens to all pages of a context."""
        context.on("console", self._console)
        context.on("weberror", lambda error: self._found.append(f"script: {error.error}"))
        context.on("dialog", self._dialog)
        context.on("request", self._request)

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self._found.append(f"console: {message.text}")

    def _dialog(self, dialog: Dialog) -> None:
        self._found.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _request(self, request: Request) -> None:
        if not request.url.removeprefix("blob:").startswith("http://127.0.0.1:"):
            self._found.append(f"request: {request.url}")


class Tab:
    """A tab of a browser that shows the chat."""

    def __init__(self, page: Page, address: str) -> None:
        self.page = page
        self.address = address
        self.question = page.get_by_label("Your message")
        self.send = page.get_by_role("button", name="Send", exact=True)
        self.stop = page.get_by_role("button", name="Stop the answer")
        self.again = page.get_by_role("button", name="Try again")
        self.typing = page.locator(".typing:visible")
        self.waits = page.locator(".waits:visible")
        self.messages = page.locator(".message")
        self.questions = page.locator(".message.user")
        self.answers = page.locator(".message.assistant")
        self.answer = self.answers.last
        self.text = self.answer.locator(".text")
        self.error = self.answer.locator(".error")
        self.facts = self.answer.locator(".facts")
        self.connection = page.locator("#connection")
        self.sidebar = page.get_by_role("navigation", name="Conversations")
        self.titles = self.sidebar.get_by_role("link")

    def open(self, conversation: str | None = None) -> Self:
        """Shows a conversation, once it is loaded, or the page to begin one on."""
        self.page.goto(f"{self.address}/#{conversation}" if conversation else self.address)
        self._wait_until_loaded()
        if conversation is None:
            expect(self.page.get_by_role("heading", name="What would you like")).to_be_visible()
            expect(self.question).to_be_focused()
        return self

    def reload(self) -> Self:
        """Loads the page again, with its conversation."""
        self.page.reload()
        return self._wait_until_loaded()

    def _wait_until_loaded(self) -> Self:
        # Who the user is must be known before somebody asks.
        expect(self.page.locator("#model")).not_to_be_empty()
        expect(self.page.locator("#loading")).to_be_hidden()
        return self

    def ask(self, question: str) -> None:
        """Types a question as soon as one can be sent, and returns once the page shows it."""
        self._wait_until_loaded()
        expect(self.page.locator(".message[data-status=pending]")).to_have_count(0)
        expect(self.stop).to_be_hidden()
        before = self.questions.count()
        self.question.fill(question)
        self.question.press("Enter")
        expect(self.question).to_have_value("")
        expect(self.questions).to_have_count(before + 1)

    def hasten(self) -> None:
        """Has the page try again now, as when a network returns: its waits grow with each try."""
        self.page.evaluate("dispatchEvent(new Event('online'))")

    @property
    def conversation(self) -> str:
        """The id of the conversation that is shown."""
        shown = str(self.page.evaluate("location.hash"))
        found = re.fullmatch(r"#([0-9a-f]{24})", shown)
        assert found is not None, shown
        return found[1]

    def stored(self, address: str | None = None) -> list[dict[str, Any]]:
        """The messages as the service has them, for the user of this tab.

        Args:
            address: Where to ask for them, if the way of this tab is cut.
        """
        path = f"/api/conversations/{self.conversation}/messages"
        # Not through the browser, which may be offline.
        cookies = {each["name"]: each["value"] for each in self.page.context.cookies()}
        headers = {"cookie": "; ".join(f"{name}={value}" for name, value in cookies.items())}
        response = httpx.get(
            (address or self.address) + path, headers=headers, timeout=20, trust_env=False
        )
        messages: list[dict[str, Any]] = response.raise_for_status().json()["messages"]
        return messages

    def shown_text(self) -> str:
        """The last answer as it stands in the page, with each blank but those at its end."""
        texts = "(all) => all.map((node) => node.textContent).join('')"
        return str(self.answer.locator(":scope > .parts > .text").evaluate_all(texts))

    def expect_end(self, status: str, text: str, *, tokens: int | None = None) -> dict[str, Any]:
        """Waits until the last answer has ended; the page and the store must have this text."""
        expect(self.answer).to_have_attribute("data-status", status)
        until_is(self.shown_text, text.rstrip())
        stored = self.stored()[-1]
        assert (stored["role"], stored["status"]) == ("assistant", status)
        assert stored["content"] == text
        if tokens is not None:
            expect(self.facts).to_contain_text(f"{tokens} tokens")
        expect(self.stop).to_be_hidden()
        expect(self.send).to_be_visible()
        return stored
