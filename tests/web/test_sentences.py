"""Sentences that browsers show speak to users, not to developers: all of them, from the source."""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import converse_mongo.tools.chat as chat_package
import converse_mongo.web as web_package
from converse_mongo.documents.presentation import PRIVATE_ERROR
from converse_mongo.tools.chat.refusals import SENTENCES
from converse_mongo.web import errors

FOLDERS = [Path(inspect.getfile(each)).parent for each in (web_package, chat_package)]
RAISED = {
    name
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, errors.RequestError)
} | {"Refusal", "AnswerError", "_response"}
ANSWERS = {"canned.py", "settings.py"}
"""What has the texts of answers and of prompts."""
FOR_DEVELOPERS = re.compile(
    r"[_`{}<>=]|^\w+:|\b(body|bytes?|content type|cursor|fields?|headers?|input|integer|JSON|lease|"
    r"log|Mongo\w*|null|object|parameter|pass|query|string|UTF-8|array|valid)\b",
    re.IGNORECASE,
)


def texts(node: ast.expr) -> Iterator[str]:
    """The texts that an expression may be; of one with values in it, with dots for those."""
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.IfExp():
            yield from texts(node.body)
            yield from texts(node.orelse)
        case ast.JoinedStr():
            parts = (each.value if isinstance(each, ast.Constant) else "…" for each in node.values)
            yield "".join(map(str, parts))


def sentences() -> Iterator[str]:
    for name in RAISED & vars(errors).keys():
        yield (vars(errors)[name].__doc__ or "").partition("\n")[0]
    yield from SENTENCES.values()
    yield PRIVATE_ERROR
    for path in (each for folder in FOLDERS for each in sorted(folder.rglob("*.py"))):
        if path.name in ANSWERS:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(func=ast.Name(id=name)) if name in RAISED:
                    found = [each for argument in node.args for each in texts(argument)]
                    yield from (each for each in found if " " in each)
                case ast.Assign(value=ast.Constant(value=str(text))) if text.endswith("."):
                    [target] = node.targets
                    if isinstance(target, ast.Name) and target.id.isupper() and target.id[0] != "_":
                        yield text
                case ast.FunctionDef(name="sentence_for"):
                    yield from (
                        text
                        for each in ast.walk(node)
                        if isinstance(each, ast.Return) and each.value is not None
                        for text in texts(each.value)
                    )
    for path in sorted((FOLDERS[0] / "client").glob("*.js")):
        source = path.read_text(encoding="utf-8")
        yield from re.findall(r'^const [A-Z_]+ = "([^"]+\.)";', source, re.MULTILINE)


ALL = sorted(set(sentences()))


def test_sentences__are_found() -> None:
    assert {
        "This does not exist, or it is not yours.",
        "The message is empty.",
        "The model is overloaded. Try again in a minute.",
        "The service could not be reached. Try again.",
        "Only the last answer can be retried.",
        "The request comes from another site.",
    } <= set(ALL)


@pytest.mark.parametrize("sentence", ALL)
def test_sentence__speaks_to_a_user(sentence: str) -> None:
    assert FOR_DEVELOPERS.search(sentence) is None
    assert sentence[0].isupper()
    assert sentence.endswith(".")
