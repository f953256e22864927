"""What people paste works in a browser: the pages of the documentation, and the example."""

import re
import runpy
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

from anyio.from_thread import BlockingPortal
from playwright.sync_api import BrowserContext, expect

from examples.fastapi_chat import create_app
from tests.browser.site import Complaints
from tests.docs.blocks import Runner
from tests.docs.service import CHAT_SERVICE, paste_service
from tests.web.conftest import serving

SAID = ["user: Hello", "assistant: You said: Hello"]


def test_pages__pasted_in_order_show_a_chat(
    server_uri: str,
    portal: BlockingPortal,
    tmp_path: Path,
    new_context: Callable[..., BrowserContext],
    complaints: Complaints,
) -> None:
    runner = Runner(tmp_path, server_uri, f"docs_{uuid4().hex[:12]}_")
    paste_service(runner)
    service = runpy.run_path(str(tmp_path / CHAT_SERVICE))
    context = new_context()
    complaints.listen(context)
    page = context.new_page()
    with portal.wrap_async_context_manager(serving(service["app"])) as port:
        page.goto(f"http://127.0.0.1:{port}")
        page.get_by_role("button", name="Send").click()  # the browser asks for a text
        page.get_by_label("Message").fill("Hello")
        page.get_by_label("Message").press("Enter")
        said = page.locator("#messages li")
        expect(said).to_have_text(SAID)
        page.reload()
        expect(said).to_have_text(SAID)

        complaints.allow_network_trouble()
        service["sessions"].clear()  # as a new process has none
        page.get_by_label("Message").fill("Again")
        page.get_by_label("Message").press("Enter")
        expect(said).to_have_text([*SAID, "user: Again", "assistant: You said: Again"])
        service["sessions"].clear()
        page.reload()
        expect(said).to_have_count(4)
        expect(page.get_by_role("status")).to_have_text("")

        page.goto("about:blank")
        page.goto(f"http://127.0.0.1:{port}#{'0' * 24}")
        expect(page.get_by_role("status")).to_have_text("This does not exist, or it is not yours.")
        page.get_by_role("link", name="New conversation").click()
        expect(page).to_have_url(re.compile("#(?!0{24})"))
        page.get_by_label("Message").fill("Hello")
        page.get_by_label("Message").press("Enter")
        expect(said).to_have_text(SAID)
        page.goto("about:blank")


def test_example__logs_in_and_answers(
    server_uri: str,
    portal: BlockingPortal,
    new_context: Callable[..., BrowserContext],
    complaints: Complaints,
) -> None:
    context = new_context()
    complaints.listen(context)
    complaints.allow_network_trouble()  # the page finds out that nobody has logged in
    page = context.new_page()
    with portal.wrap_async_context_manager(serving(create_app(server_uri))) as port:
        page.goto(f"http://127.0.0.1:{port}")
        page.get_by_label("Name").fill("ada")
        page.get_by_label("Name").press("Enter")
        page.get_by_label("Message").fill("Hello")
        page.get_by_label("Message").press("Enter")
        said = page.locator("#messages li")
        expect(said).to_have_text(SAID)
        expect(page.locator("#list a").first).to_have_text("Hello")
        expect(page.get_by_label("Name")).to_be_hidden()
        page.reload()
        expect(said).to_have_text(SAID)

        context.clear_cookies()
        page.get_by_label("Message").fill("Again")
        page.get_by_label("Message").press("Enter")
        expect(said.last).to_have_text(
            "user: Again (You are not signed in. Sign in, then try again.)"
        )
        page.get_by_label("Name").fill("ada")
        page.get_by_label("Name").press("Enter")
        expect(said).to_have_text(SAID)
        expect(page.get_by_label("Name")).to_be_hidden()
        page.goto("about:blank")
