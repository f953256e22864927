"""Prompts for Anthropic: our messages as its messages, and as its system prompt."""

import json
import re
from collections.abc import Iterable, Mapping
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

from converse_mongo.documents.listings import History
from converse_mongo.domain.jsonable import jsonable
from converse_mongo.domain.parts import FilePart, Part, ReasoningPart, TextPart, ToolCallPart
from converse_mongo.domain.stored_values import StoredValue
from converse_mongo.domain.surrogates import mend_all
from converse_mongo.domain.types import MessageRole
from converse_mongo.integrations.anthropic.blocks import THOUGHTS, TOOL_USE, is_result, is_use
from converse_mongo.integrations.anthropic.files import file_block
from converse_mongo.integrations.anthropic.messages import ANTHROPIC
from converse_mongo.integrations.histories import (
    NO_VALUES,
    FileUrl,
    Told,
    Turn,
    Values,
    arguments_of,
    is_callable,
    loaded,
    readable_url,
    result_of,
    turns_of,
)
from converse_mongo.integrations.streams import data_of, text_at, units

if TYPE_CHECKING:
    from anthropic.types import MessageParam

BlockParam: TypeAlias = dict[str, Any]
Said: TypeAlias = list[tuple[str, list[BlockParam]]]
"""Roles, each with what it says."""
Placed: TypeAlias = tuple[int, BlockParam | None]
"""A block with its place in a response; ``None`` for one that is lost."""


def system_for_anthropic(history: History | Iterable[Told], *, answer: Told | None = None) -> str:
    """Returns the system prompt of a conversation, which the API takes apart from the messages.

    Args:
        history: As for :func:`messages_for_anthropic`.
        answer: See there.

    Returns:
        The texts of its system messages; an empty one if there are none. Pass it as
        ``system=system_for_anthropic(history) or omit``.
    """
    texts = [
        part.text
        for turn in turns_of(history, answer)
        if turn.role is MessageRole.SYSTEM
        for part in turn.parts
        if _is_text(part)
    ]
    return "\n\n".join(texts)


def messages_for_anthropic(
    history: History | Iterable[Told],
    *,
    answer: Told | None = None,
    provider: str = ANTHROPIC,
    file_url: FileUrl | None = None,
    values: Values = NO_VALUES,
) -> "list[MessageParam]":
    """Returns the ``messages`` of ``client.messages.create`` for a conversation.

    What a call of the model has put out goes back as it came, with the signatures of its thoughts
    and what tools of Anthropic found, if all of it is there and is of this provider. Else its texts
    and its calls of tools that the application runs go back, as if any model had written them.

    Args:
        history: The messages, the oldest first: what ``await conversation.history()`` returns.
            System messages are left out: see :func:`system_for_anthropic`.
        answer: The answer that is being written, as far as it is: it comes last. Others that are
            being written are left out.
        provider: The name under which data for the provider were stored.
        file_url: Returns the URL of a file; by default that of the part if it is ``https:``,
            ``http:`` or ``data:``.
        values: Large values, of ``load_values``. Without it, an output of the application is told
            as its size, and a response with a large outcome of a tool of Anthropic as that of any
            model.
    """
    turns = [turn for turn in turns_of(history, answer) if turn.role is not MessageRole.SYSTEM]
    outcomes = _outcomes(turns, provider, values)
    reads = partial(readable_url, file_url=file_url, values=values)
    came: list[Said | None] = []
    others: list[Said] = []
    for turn in turns:
        if turn.role is MessageRole.USER:
            came.append(None)
            others.append([("user", _said_by_user(turn, provider, reads))])
        elif _was_refused(turn, provider):
            came.append(None)
            others.append([])
        else:
            came.append(_as_it_came(turn, outcomes, provider, values))
            others.append(_as_any_model(turn, provider, values))
    _drop_unpaired(came, others)
    told = [other if made is None else made for made, other in zip(came, others, strict=True)]
    return _joined([each for said in told for each in said])  # type: ignore[return-value]


def _is_text(part: Part) -> bool:
    # The API refuses blocks without a visible character.
    is_text = isinstance(part, TextPart) and not isinstance(part, ReasoningPart)
    return is_text and bool(part.text.strip())


def _said_by_user(turn: Turn, provider: str, url_of: FileUrl) -> list[BlockParam]:
    blocks: list[BlockParam] = []
    for part in turn.parts:
        if isinstance(part, FilePart):
            file = file_block(part, provider, url_of)
            blocks += [] if file is None else [file]
        elif _is_text(part):
            blocks.append({"type": "text", "text": part.text})
    return blocks


def _was_refused(turn: Turn, provider: str) -> bool:
    """Returns whether the model was stopped: with what it had said it would be stopped again."""
    step = turn.step
    return (
        step is not None
        and step.finish_reason == "refusal"
        and bool(data_of(step.provider, provider))
    )


# As any model


def _as_any_model(turn: Turn, provider: str, values: Values) -> Said:
    said: Said = []
    blocks: list[BlockParam] = []
    results: list[BlockParam] = []
    for part in turn.parts:
        if _is_text(part):
            if results:  # what follows the results of calls is another message
                said += [("assistant", blocks), ("user", results)]
                blocks, results = [], []
            blocks.append({"type": "text", "text": part.text})
        elif isinstance(part, ToolCallPart) and part.executor != "provider" and is_callable(part):
            name = _ODD.sub("_", part.name)[:128]
            called: BlockParam = {"type": TOOL_USE, "id": part.call_id, "name": name}
            blocks.append({**called, "input": _input(part, values)})
            results.append(_result(part, provider, values))
    return [("assistant", blocks), ("user", results)] if results else [*said, ("assistant", blocks)]


_ODD = re.compile(r"[^a-zA-Z0-9_-]")
"""What the API takes neither in the name nor in the id of a call."""


def _input(call: ToolCallPart, values: Values) -> dict[str, Any]:
    """Returns the input of a call: the API takes only objects."""
    value = mend_all(json.loads(arguments_of(call, values)))
    return value if isinstance(value, dict) else {"input": value}


_BLOCKS: Mapping[str, tuple[str, type]] = MappingProxyType(
    {
        "browser_state": ("tabs", list),
        "document": ("source", dict),
        "image": ("source", dict),
        "search_result": ("content", list),
        "text": ("text", str),
        "tool_reference": ("tool_name", str),
    }
)
"""The types of blocks in the result of a call, each with a field that tells them from others."""


def _result(call: ToolCallPart, provider: str, values: Values) -> BlockParam:
    has_output = call.state == "output-available"
    output = jsonable(loaded(call.output, values)) if has_output else None
    if isinstance(output, list) and output and all(map(_is_block, output)):
        content: Any = [each for each in output if each.get("text", "x").strip()]
    else:
        content = result_of(call, values)
        content = content if content.strip() else "" if has_output else "error"
    block = data_of(loaded(call.fields.get("provider"), values), provider).get("block")
    toolset = text_at(block, "toolset_name")
    return {
        "type": "tool_result",
        "tool_use_id": call.call_id,
        **({"content": content} if content else {}),
        **({} if has_output else {"is_error": True}),
        **({"toolset_name": toolset} if toolset else {}),
    }


def _is_block(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    name, kind = _BLOCKS.get(text_at(value, "type"), ("", object))
    return bool(name) and isinstance(value.get(name), kind)


# As it came


def _outcomes(turns: Iterable[Turn], provider: str, values: Values) -> dict[str, list[Placed]]:
    """Returns what tools of Anthropic have found, by the response in which it came."""
    found: dict[str, list[Placed]] = {}
    for turn in turns:
        for part in turn.parts:
            if not isinstance(part, ToolCallPart):
                continue
            data = data_of(loaded(part.fields.get("result_provider"), values), provider)
            of, block, place = data.get("of"), data.get("block"), _place(data)
            if isinstance(of, str) and isinstance(block, Mapping) and place is not None:
                made = _outcome(part, text_at(data, "type"), block, values)
                found.setdefault(of, []).append((place, made))
    return found


def _place(data: Mapping[str, Any]) -> int | None:
    key = text_at(data, "key")
    return int(key) if key.isdecimal() else None


def _outcome(
    call: ToolCallPart, kind: str, block: Mapping[str, Any], values: Values
) -> BlockParam | None:
    told = {"type": kind, "tool_use_id": call.call_id, **block}
    if "content" in block:
        return told
    if isinstance(call.output, StoredValue) and call.output not in values:
        return None
    return {**told, "content": jsonable(loaded(call.output, values))}


def _as_it_came(
    turn: Turn, outcomes: Mapping[str, list[Placed]], provider: str, values: Values
) -> Said | None:
    """Returns the blocks of a response, and the results of its calls; ``None`` if some are lost."""
    step = turn.step
    if step is None or not turn.is_whole:
        return None
    if data_of(step.provider, provider).get("done") is not True:
        return None  # of another provider or API, or cut
    placed = list(outcomes.get(step.response_id or "", ()))
    results: dict[int, BlockParam] = {}
    for part in turn.parts:
        if part.kind in ("source_url", "source_document", "data", "file"):
            continue  # for viewers
        data = data_of(loaded(part.fields.get("provider"), values), provider)
        place, kind, block = _place(data), text_at(data, "type"), data.get("block")
        if place is None or not kind:
            if isinstance(part, TextPart) and not part.text.strip():
                continue
            return None  # of somebody else
        if kind == "text":
            texts = _texts(part.text, data.get("blocks"))
            if texts is None:
                return None
            placed += [(place + number, each) for number, each in enumerate(texts)]
            continue
        told: BlockParam = {"type": kind, **(block if isinstance(block, Mapping) else {})}
        if kind == "thinking":
            told["thinking"] = part.text
        elif isinstance(part, ToolCallPart):
            if not is_callable(part):
                return None
            told |= {"id": part.call_id, "name": part.name, "input": _input(part, values)}
            if kind == TOOL_USE:
                results[place] = _result(part, provider, values)
        placed.append((place, told))
    return _said_in(placed, results)


def _texts(text: str, blocks: Any) -> list[BlockParam] | None:
    """Returns the blocks whose texts a part has; ``None`` if it has others."""
    if not isinstance(blocks, list) or sum(each["units"] for each in blocks) != units(text):
        return None
    rest, found = text.encode("utf-16-le", "surrogatepass"), list[BlockParam]()
    for block in blocks:
        end = 2 * block["units"]
        said = rest[:end].decode("utf-16-le", "replace")
        rest = rest[end:]
        told = {name: value for name, value in block.items() if name != "units"}
        found.append({"type": "text", **told, "text": said})
    return found


def _said_in(placed: list[Placed], results: dict[int, BlockParam]) -> Said | None:
    blocks: list[BlockParam] = []
    handed_over = max([n for n, each in placed if each and each["type"] == "fallback"], default=-1)
    for place, block in sorted(placed, key=lambda each: each[0]):
        if block is None:
            return None
        if block["type"] == "text" and not block["text"].strip():
            continue
        if block["type"] == "thinking" and not block.get("signature"):
            continue  # its end was cut
        if block["type"] == TOOL_USE and place < handed_over:
            results.pop(place)  # of a model that another one took over from
            continue
        blocks.append(block)
    return [("assistant", blocks), ("user", [results[place] for place in sorted(results)])]


def _drop_unpaired(came: list[Said | None], others: list[Said]) -> None:
    """Tells as any model's the responses with a call of Anthropic's tools without its outcome.

    The API refuses them, and outcomes without their call. Only those of the last response may lack
    it: Anthropic runs the tools then.
    """
    while True:
        told = [other if made is None else made for made, other in zip(came, others, strict=True)]
        last = max([n for n, said in enumerate(told) if any(each for _, each in said)], default=-1)
        unpaired, calls = set[int](), dict[str, int]()
        for number, said in enumerate(came):
            for block in [block for _, blocks in said or () for block in blocks]:
                kind = block["type"]
                if is_use(kind) and kind != TOOL_USE:
                    calls[block["id"]] = number
                elif is_result(kind) and calls.pop(block["tool_use_id"], None) is None:
                    unpaired.add(number)
        unpaired |= {number for number in calls.values() if number != last}
        if not unpaired:
            return
        for number in unpaired:
            came[number] = None


# As the API wants it


def _joined(said: Said) -> list[dict[str, Any]]:
    """Returns messages of roles that alternate."""
    _tell_apart(said)
    messages = _merged(said)
    for role, blocks in messages:
        while role == "assistant" and blocks and blocks[-1]["type"] in THOUGHTS:
            blocks.pop()  # the API refuses a message that ends with one
    messages = _merged(messages)
    if messages and messages[-1][0] == "assistant" and messages[-1][1][-1]["type"] == "text":
        # The API refuses an answer to go on with that ends with a space.
        messages[-1][1][-1]["text"] = messages[-1][1][-1]["text"].rstrip()
    return [{"role": role, "content": _content(role, blocks)} for role, blocks in messages]


def _merged(said: Said) -> Said:
    messages: Said = []
    for role, blocks in said:
        if blocks and messages and messages[-1][0] == role:
            messages[-1][1].extend(blocks)
        elif blocks:
            messages.append((role, list(blocks)))
    return messages


def _content(role: str, blocks: list[BlockParam]) -> str | list[BlockParam]:
    if role == "user" and len(blocks) == 1 and blocks[0]["type"] == "text":
        text: str = blocks[0]["text"]
        return text
    return blocks


def _tell_apart(said: Said) -> None:
    """Gives calls other ids where those of another provider are odd or not their own."""
    seen: set[str] = set()
    renamed: dict[str, list[str]] = {}
    for role, blocks in said:
        for block in blocks:
            if role == "assistant" and block["type"] == TOOL_USE:
                name, number = block["id"], len(seen)
                while block["id"] in seen or not block["id"] or _ODD.search(block["id"]):
                    block["id"], number = f"call_{number}", number + 1
                seen.add(block["id"])
                renamed.setdefault(name, []).append(block["id"])
            elif block["type"] == "tool_result":
                block["tool_use_id"] = renamed[block["tool_use_id"]].pop(0)
