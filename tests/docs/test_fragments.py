"""The fragments of the documentation run, in the order of their page, in this process.

A fragment is a Python block that is no program. It follows the classes and functions of the
programs before it on its page; ``SAID`` has what the text of the page says beside that.
"""

import ast
import inspect
import types
from collections.abc import AsyncIterator
from typing import Any

import fastapi
import pytest
from pymongo import IndexModel
from starlette.requests import HTTPConnection
from starlette.routing import Router

import converse_mongo
from converse_mongo import Converse, web
from converse_mongo.driver.collections import collection_of
from tests.docs.blocks import BLOCKS, ROOT, Block

PAGES = sorted({block.page for block in BLOCKS if not block.is_program})


async def tokens() -> AsyncIterator[str]:
    yield "Use open()."


async def respond(*_: object) -> None:
    """Writes nothing."""


async def said(converse: Converse) -> dict[str, Any]:
    """The names that pages use, and the text around a fragment explains."""
    conversation = await converse.start_conversation(owner=("user", "42"))
    return {
        **{name: getattr(converse_mongo, name) for name in converse_mongo.__all__},
        **{name: getattr(web, name) for name in web.__all__},
        "HTTPConnection": HTTPConnection,
        "IndexModel": IndexModel,
        "Router": Router,
        "URI": "mongodb://localhost:27017/?replicaSet=rs0",
        "app": fastapi.FastAPI(),
        "authorize": lambda *_: True,
        "conversation_id": conversation.id,
        "converse": converse,
        "database": collection_of(converse.message_model).database,
        "generations": web.Generations(respond),
        "history": [("user", "How do I read a file?"), ("assistant", "Use open().")],
        "may_read": lambda *_: True,
        "message": await conversation.start_streaming_assistant(),
        "respond": respond,
        "tokens": tokens(),
    }


def definitions(block: Block) -> ast.Module:
    """The imports, classes and functions of a program."""
    kinds = ast.Import, ast.ImportFrom, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef
    body = [node for node in ast.parse(block.code).body if isinstance(node, kinds)]
    return ast.Module([node for node in body if not needs_motor(node)], [])


def needs_motor(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and (node.module or "").startswith("motor")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
async def test_fragments__run_in_the_order_of_their_page(page: Any, converse: Converse) -> None:
    # Annotations and classes look their module up.
    module = types.ModuleType("page")
    module.__dict__.update(await said(converse))
    for block in BLOCKS:
        if block.page != page:
            continue
        tree = definitions(block) if block.is_program else ast.parse(block.code)
        code = compile(tree, str(block), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        running = eval(code, module.__dict__)  # noqa: S307
        if inspect.iscoroutine(running):
            await running
