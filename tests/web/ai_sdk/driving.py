"""What the tests of the page hold: its site, a chat as it is behind the page, and tabs."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

import httpx
from playwright.sync_api import Page, Request, expect

from tests.browser.site import END_SECONDS, until, until_is

__all__ = ["Site", "Tab", "Talk"]

ROOT = Path(__file__).parents[3]
# The SDK takes an answer to its first request, whether there is something to resume, for the news
# of the moment: if it comes when a question was sent meanwhile, the page says "ready" until the
# first token. So tests wait for it, and a moment for what the SDK does with it.
NOTE_RESUMED = """
const send = window.fetch;
window.fetch = async (...request) => {
  const response = await send(...request);
  const resumes = new URL(response.url).pathname.endsWith("/stream");
  if (resumes) setTimeout(() => document.body.setAttribute("data-resumed", ""));
  return response;
};
"""


class Site:
    """The process that serves the pages, on one port for as long as it is wanted.

    Args:
        queue: The queue of its answers, if they are for workers.
    """

    def __init__(self, uri: str, database: str, log: Path, queue: str | None = None) -> None:
        self.uri = uri
        self.database = database
        self.port = 0
        self._queue = [] if queue is None else [queue]
        self._log = log
        self._process: subprocess.Popen[str] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """What it has complained about so far."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def start(self) -> Self:
        """Starts the process, and returns once it listens; the port stays the same."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "tests.web.ai_sdk.site"),
                    *(self.uri, self.database, str(self.port), *self._queue),
                ],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"The site did not start:\n{self.log}")
        self.port = int(line)
        return self

    def terminate(self) -> None:
        """Asks it to end, as a deploy does, and does not wait for it."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)

    def wait(self) -> None:
        """Waits until it has ended, and ends it if that takes too long."""
        process, self._process = self._process, None
        assert process is not None
        with process:
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                raise

    def stop(self) -> None:
        """Ends it at once, if it runs."""
        if self._process is not None:
            self._process.kill()
            self.wait()

    def talk(self, user: str = "ada") -> "Talk":
        """A new chat of a user."""
        return Talk(self, self.call("POST", "/test/chats", {"user": user})["id"])

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Asks it something behind the page."""
        url = self.address + path
        response = httpx.request(method, url, json=body, timeout=END_SECONDS, trust_env=False)
        return response.raise_for_status().json()


class Talk:
    """A chat from behind: what its model says, and what is stored of it."""

    def __init__(self, site: Site, chat: str) -> None:
        self.site = site
        self.id = chat

    def say(self, *tokens: str) -> str:
        """Lets the model say this, and returns it as one text."""
        self.site.call("POST", f"/test/chats/{self.id}/say", {"tokens": tokens})
        return "".join(tokens)

    def end(self) -> None:
        """Lets the model come to its end."""
        self.site.call("POST", f"/test/chats/{self.id}/say", {"tokens": [None]})

    def fail(self, error: str) -> None:
        """Lets the model raise an error."""
        self.site.call("POST", f"/test/chats/{self.id}/say", {"tokens": [], "error": error})

    @property
    def stored(self) -> list[dict[str, Any]]:
        """The messages in the database."""
        messages: list[dict[str, Any]] = self._look()["messages"]
        return messages

    @property
    def asked(self) -> int:
        """How often the model was asked for an answer."""
        return int(self._look()["asked"])

    def wait_until_left(self) -> None:
        """Returns once nobody watches anything on the site."""
        until(lambda: self._look()["watchers"] == 0)

    def wait_for(self, status: str) -> None:
        """Returns once the last message is in this state."""
        until(lambda: self.stored[-1]["status"] == status)

    def _look(self) -> dict[str, Any]:
        found: dict[str, Any] = self.site.call("GET", f"/test/chats/{self.id}")
        return found


def is_question(request: Request) -> bool:
    """Whether it sends a question."""
    return request.method == "POST" and request.url.endswith("/api/chat")


class Tab:
    """A tab that shows a chat."""

    def __init__(self, page: Page, talk: Talk, address: str) -> None:
        self.page = page
        self.talk = talk
        self.address = f"{address}/?chat={talk.id}"
        self.main = page.locator("main")
        self.messages = page.locator("li")
        self.questions = page.locator("li[data-role=user]")
        self.answers = page.locator("li[data-role=assistant]")
        self.answer = self.answers.last
        self.text = self.answer.locator("p")
        self.metadata = self.answer.locator("code")
        self.error = page.get_by_role("alert")
        self.question = page.get_by_label("Question")
        self.send = page.get_by_role("button", name="Send")
        self.stop = page.get_by_role("button", name="Stop")
        self.again = page.get_by_role("button", name="Again")
        self.requests: list[str] = []
        page.on("request", self._note)
        page.add_init_script(NOTE_RESUMED)

    def _note(self, request: Request) -> None:
        path = request.url.partition("://")[2].partition("/")[2]
        if path.startswith("api/"):
            self.requests.append(f"{request.method} /{path}".replace(self.talk.id, "ID"))

    def open(self) -> Self:
        """Shows the chat, and returns once the page knows whether an answer is being written."""
        self.page.goto(self.address)
        return self._wait_until_loaded()

    def reload(self) -> Self:
        """Loads the page again, and returns as :meth:`open` does."""
        self.page.reload()
        return self._wait_until_loaded()

    def _wait_until_loaded(self) -> Self:
        expect(self.main).to_be_visible()
        expect(self.page.locator("body")).to_have_attribute("data-resumed", "")
        return self

    def ask(self, question: str) -> None:
        """Types a question as soon as one can be sent, and returns once the page has sent it."""
        expect(self.send).to_be_enabled()
        before = self.questions.count()
        self.question.fill(question)
        with self.page.expect_request(is_question):
            self.question.press("Enter")
        expect(self.question).to_have_value("")
        expect(self.questions).to_have_count(before + 1)
        expect(self.questions.last.locator("p")).to_have_text(question)

    def asked_for(self, request: str) -> int:
        """How often the page has made a request, such as ``POST /api/chat``."""
        return self.requests.count(request)

    def expect_status(self, status: str) -> None:
        """Waits until ``useChat`` says this."""
        expect(self.main).to_have_attribute("data-status", status)

    def expect_text(self, text: str) -> None:
        """Waits until the last answer is this, up to blanks at its end."""
        expect(self.text).to_have_text(re.compile(rf"^\s*{re.escape(text.strip())}\s*$"))

    def expect_no_open_part(self) -> None:
        """Waits until the SDK takes no part of a message for one that is still to grow."""
        expect(self.page.locator("p[data-state=streaming]")).to_have_count(0)

    def expect_metadata(self, **metadata: Any) -> None:
        """Waits until this is the metadata of the last answer, in whatever order."""

        def shown() -> Any:
            texts = self.metadata.all_text_contents()
            return [json.loads(text) for text in texts]

        until_is(shown, [metadata])

    def shown(self) -> list[tuple[str, str, str]]:
        """The messages of the page, each with its role, its id and its text."""
        found: list[list[str]] = self.messages.evaluate_all(
            "(all) => all.map((each) => [each.dataset.role, each.dataset.id,"
            " [...each.querySelectorAll('p')].map((part) => part.textContent).join('|')])"
        )
        return [(role, name, text) for role, name, text in found]

    def expect_stored(self, *texts: str) -> None:
        """Waits until page and store have these messages; answers must have their own ids."""
        until_is(lambda: [text for _, _, text in self.shown()], list(texts))
        until_is(lambda: [each["content"] for each in self.talk.stored], list(texts))
        shown, stored = self.shown(), self.talk.stored
        assert [role for role, _, _ in shown] == [each["role"] for each in stored]
        for (role, name, _), each in zip(shown, stored, strict=True):
            if role == "assistant":  # before a reload a question has the id that the SDK made up
                assert name == each["id"]
