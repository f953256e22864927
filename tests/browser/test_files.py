"""Files in the chat: chosen, seen, taken back and sent, with the mouse and by keyboard alone."""

import zlib
from base64 import b64decode
from struct import pack
from typing import Any

from playwright.sync_api import FilePayload, expect

from tests.browser.conftest import OpenTab, Shoot
from tests.browser.site import Complaints, Model, Tab
from tests.browser.test_accessibility import PHONE, TOO_WIDE, Keyboard, check
from tests.chat.fake_openai import ANSWER

__all__ = ["check"]

TEXT = "".join(ANSWER)
ATTACH = "Attach images or PDFs"


def png(width: int, height: int) -> bytes:
    """A picture with a slope of color."""
    rows = b"".join(
        b"\0"
        + b"".join(bytes((40, 90 + y * 120 // height, 60 + x * 160 // width)) for x in range(width))
        for y in range(height)
    )

    def chunk(kind: bytes, data: bytes) -> bytes:
        return pack(">I", len(data)) + kind + data + pack(">I", zlib.crc32(kind + data))

    head = pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


PICTURE = FilePayload(name="slope.png", mimeType="image/png", buffer=png(240, 160))
LARGE = FilePayload(name="large.png", mimeType="image/png", buffer=png(20, 20) + bytes(400_000))
PAPER = FilePayload(
    name="a-paper-with-a-name-that-is-rather-long.pdf",
    mimeType="application/pdf",
    buffer=b"%PDF-1.4\n",
)
SCRIPT = FilePayload(name="page.html", mimeType="text/html", buffer=b"<script>alert(1)</script>")
HUGE = FilePayload(name="huge.png", mimeType="image/png", buffer=bytes(5 * 1024 * 1024))


def choose(tab: Tab, *files: FilePayload) -> None:
    """Presses the button with the keyboard, and chooses files."""
    with tab.page.expect_file_chooser() as chooser:
        tab.page.get_by_role("button", name=ATTACH).press("Enter")
    chooser.value.set_files(list(files))


def names(tab: Tab) -> Any:
    return tab.page.locator("#attached .attached-name")


def expect_previews(tab: Tab, count: int) -> None:
    """The last question has so many pictures, and all of them are there."""
    previews = tab.questions.last.locator("img.preview")
    expect(previews).to_have_count(count)
    for place in range(count):
        expect(previews.nth(place)).to_have_js_property("complete", value=True)
        assert previews.nth(place).evaluate("(image) => image.naturalWidth") > 0


def test_files__are_sent_with_a_question_and_are_there_after_a_reload(
    tab: Tab, open_tab: OpenTab, model: Model, shoot: Shoot
) -> None:
    choose(tab, PICTURE, PAPER)
    choose(tab, LARGE)
    expect(names(tab)).to_have_text([str(each["name"]) for each in (PICTURE, PAPER, LARGE)])
    for thumb in tab.page.locator("#attached img").all():
        assert thumb.evaluate("(image) => image.decode().then(() => image.naturalWidth)") > 0
    shoot(tab, "files-attached")
    tab.ask("What is this?")
    expect(names(tab)).to_have_count(0)
    tab.expect_end("completed", TEXT)
    expect(tab.questions.last).to_contain_text("What is this?")
    expect_previews(tab, 2)
    shoot(tab, "files-sent")
    stored = tab.stored()[0]["parts"]
    assert [each["kind"] for each in stored] == ["text", "file", "file", "file"]

    # The model has what was sent.
    text, *told = model.fake.asked[-1]["messages"][-1]["content"]
    assert text == {"type": "text", "text": "What is this?"}
    pictures = [each["image_url"]["url"] for each in told if each["type"] == "image_url"]
    decoded = [b64decode(url.partition(",")[2]) for url in pictures]
    assert decoded == [PICTURE["buffer"], LARGE["buffer"]]
    assert told[1]["file"]["filename"] == PAPER["name"]

    second = open_tab(context=tab.page.context).open(tab.conversation)
    for each in (tab.reload(), second):
        expect_previews(each, 2)
        link = each.questions.last.get_by_role("link", name=str(PAPER["name"]))
        with each.page.expect_download() as download:
            link.click()
        assert download.value.suggested_filename == PAPER["name"]


def test_files__need_no_text(tab: Tab) -> None:
    expect(tab.send).to_be_disabled()
    choose(tab, PICTURE)
    expect(tab.send).to_be_enabled()
    tab.send.click()
    tab.expect_end("completed", TEXT)
    expect_previews(tab, 1)
    expect(tab.titles).to_have_text(["slope.png"])


def test_files__are_taken_back_by_keyboard(tab: Tab) -> None:
    keys, announcer = Keyboard(tab), tab.page.locator("#announcer")
    choose(tab, PICTURE, PAPER)
    expect(announcer).to_have_text(f"Attached: slope.png, {PAPER['name']}.")
    assert keys.go_back_to("Remove slope.png") == [f"Remove {PAPER['name']}"]
    keys.press("Enter")
    expect(announcer).to_have_text("Removed: slope.png.")
    assert keys.focused() == f"Remove {PAPER['name']}"
    keys.press("Space")
    expect(names(tab)).to_have_count(0)
    expect(tab.question).to_be_focused()
    expect(tab.send).to_be_disabled()
    keys.go_back_to(ATTACH)
    choose(tab, PICTURE)  # the same one again
    expect(names(tab)).to_have_text(["slope.png"])


def test_files__that_cannot_be_sent_are_named(tab: Tab) -> None:
    alert = tab.page.get_by_role("alert")
    choose(tab, SCRIPT, PICTURE)
    expect(alert).to_have_text("page.html cannot be attached: only images and PDFs can.")
    expect(names(tab)).to_have_text(["slope.png"])
    choose(tab, HUGE)
    expect(alert).to_have_text("huge.png is too large: a file may have 4.0 MB.")
    choose(tab, PAPER)
    expect(alert).to_be_hidden()
    expect(names(tab)).to_have_text(["slope.png", str(PAPER["name"])])


def test_files__stay_with_a_question_that_could_not_be_sent(
    tab: Tab, complaints: Complaints
) -> None:
    complaints.allow_network_trouble()
    tab.ask("Hello")
    tab.expect_end("completed", TEXT)
    refusal = {"error": {"code": "too_large", "message": "This file is too large: slope.png."}}
    tab.page.route("**/messages", lambda route: route.fulfill(status=413, json=refusal))
    choose(tab, PICTURE)
    tab.question.fill("What is this?")
    tab.question.press("Enter")
    unsent = tab.questions.last
    expect(unsent).to_contain_text("This could not be sent. This file is too large: slope.png.")
    expect(unsent.locator(".file")).to_contain_text("slope.png")
    tab.page.unroute("**/messages")
    tab.page.get_by_role("button", name="Send again").click()
    tab.expect_end("completed", TEXT)
    expect_previews(tab, 1)


def test_files__are_seen_in_each_scheme_and_on_a_narrow_screen(
    open_tab: OpenTab, check: Any, shoot: Shoot
) -> None:
    for scheme in ("light", "dark"):
        tab = open_tab(bypass_csp=True, color_scheme=scheme).open()
        choose(tab, PICTURE, PAPER)
        check(tab)
        shoot(tab, f"{scheme}-files-attached")
        tab.ask("What is this?")
        tab.expect_end("completed", TEXT)
        choose(tab, PAPER, PICTURE)
        check(tab)
        tab.page.set_viewport_size({"width": PHONE["width"], "height": PHONE["height"]})
        check(tab)
        assert tab.page.evaluate(TOO_WIDE) == []
        shoot(tab, f"{scheme}-files-narrow")
