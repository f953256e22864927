"""The service that the pages on FastAPI and on browsers build together."""

from tests.docs.blocks import DOCS, FENCE, Runner, read_blocks

CHAT_SERVICE = "chat_service.py"
FASTAPI, BROWSER = DOCS / "howto" / "fastapi.md", DOCS / "howto" / "browser.md"

PAGE = next(
    fence["body"]
    for fence in FENCE.finditer(BROWSER.read_text(encoding="utf-8"))
    if fence["body"].startswith("<!doctype html>")
)


def paste_service(runner: Runner) -> None:
    """Pastes all Python blocks of the pages into one file, in order, and the page beside it."""
    first, *others = [*read_blocks(FASTAPI), *read_blocks(BROWSER)]
    assert first.name == CHAT_SERVICE
    path = runner.write(first)
    code = [path.read_text(encoding="utf-8"), *(block.code for block in others)]
    path.write_text("\n\n".join(code), encoding="utf-8")
    (runner.directory / "page.html").write_text(PAGE, encoding="utf-8")
