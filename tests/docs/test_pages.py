"""The documentation names what there is, and all that there is."""

import ast
import os
import re
import subprocess
import sys

import pytest

import converse_mongo
from converse_mongo import Conversation, Converse, Message
from tests.docs.blocks import BLOCKS, DOCS, PAGES, TIMEOUT, Block


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_block__compiles_and_imports_what_there_is(block: Block) -> None:
    tree = compile(
        block.code,
        str(block),
        "exec",
        flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST,
        dont_inherit=True,
    )
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "converse_mongo":
            missing = [each.name for each in node.names if not hasattr(converse_mongo, each.name)]
            assert not missing, f"{block} imports {missing}"


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_block__writes_no_reasoning_into_an_answer(block: Block) -> None:
    """The metadata of a chunk do not keep its text out of the answer."""
    writes = [
        node
        for node in ast.walk(ast.parse(block.code))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in {"append_chunk", "append_chunks", "pipe", "write"}
    ]
    assert not [each for each in writes if "reasoning" in ast.dump(each)]


def test_reference__names_everything_public() -> None:
    pages = "\n".join(
        page.read_text(encoding="utf-8") for page in (DOCS / "reference").glob("*.md")
    )
    missing = [
        name
        for name in converse_mongo.__all__
        if not re.search(rf":: converse_mongo\.{re.escape(name)}\b", pages)
    ]
    assert not missing


def test_reference__has_the_values_of_the_limits() -> None:
    page = (DOCS / "reference" / "types.md").read_text(encoding="utf-8")
    found = dict(
        re.findall(r":: converse_mongo\.(MAX_\w+)\n   :type: int\n   :value: (\d+)\n", page)
    )
    limits = [name for name in converse_mongo.__all__ if name.startswith("MAX_")]
    assert found == {name: str(getattr(converse_mongo, name)) for name in limits}


async def test_reference__describes_every_field_and_index(converse: Converse) -> None:
    conversation = await converse.start_conversation("title", {"a": 1}, ("user", 1), {"b": 2})
    message = await conversation.start_streaming_assistant()
    await message.append_chunk("x", {"c": 3})
    await message.complete_streaming()
    message.metadata["d"] = 4
    await message.save()

    page = (DOCS / "reference" / "collections.md").read_text(encoding="utf-8")
    described, chunk_fields = (
        set(re.findall(r"^\| `(\w+)` \| [a-zA-Z]", part, re.M))
        for part in page.split("A chunk in `chunks`:")
    )
    stored = await converse.message_model.find_one(converse.message_model.id == message.id)
    assert stored is not None
    store = converse.message_model.store()
    raw = await store.messages.find_one({"_id": message.id})
    assert raw is not None
    assert set(raw) <= described
    assert set(raw["chunks"][0]) <= chunk_fields
    assert set(await store.conversations.find_one({"_id": conversation.id}) or ()) <= described
    for model in (Conversation, Message):
        for index in model.Settings.indexes:
            assert f"`{index.document['name']}`" in page


@pytest.mark.parametrize(
    "command",
    [
        *("", "demo", "serve", "server", "worker", "tail", "doctor"),
        *("queue", "queue list", "queue retry", "queue cancel"),
    ],
)
def test_reference__shows_the_help_of_the_command_line(command: str) -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "converse_mongo", *command.split(), "--help"],
        env={**os.environ, "COLUMNS": "80", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=TIMEOUT,
    )
    page = (DOCS / "reference" / "cli.md").read_text(encoding="utf-8")
    assert " ".join(shown.stdout.split()) in " ".join(page.split())


def test_pages__name_no_path_of_a_machine() -> None:
    for page in PAGES:
        found = re.search(r"(?<![\w/])/(home|root|work|tmp|Users)/", page.read_text("utf-8"))
        assert found is None, f"{page}: {found}"
