"""Prompts for OpenAI: our messages as input of Responses, and as messages of Chat Completions."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

from converse_mongo.documents.listings import History
from converse_mongo.domain.parts import FilePart, Part, ReasoningPart, TextPart, ToolCallPart
from converse_mongo.domain.stored_values import StoredValue
from converse_mongo.domain.types import MessageRole
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
from converse_mongo.integrations.openai.chat import REASONING_FIELDS
from converse_mongo.integrations.openai.responses import OPENAI
from converse_mongo.integrations.streams import data_of

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionMessageParam
    from openai.types.responses import ResponseInputItemParam

Item: TypeAlias = dict[str, Any]

# Responses


def messages_for_openai(
    history: History | Iterable[Told],
    *,
    answer: Told | None = None,
    provider: str = OPENAI,
    file_url: FileUrl | None = None,
    values: Values = NO_VALUES,
) -> "list[ResponseInputItemParam]":
    """Returns the input of ``client.responses.create`` for a conversation.

    What a call of the model has put out goes back as it came, with its ids and its encrypted
    reasoning, if all of it is there and is of this provider. Else its texts and the calls of
    functions go back, as if any model had written them.

    Args:
        history: The messages, the oldest first: what ``await conversation.history()`` returns.
        answer: The answer that is being written, as far as it is: it comes last. Others that are
            being written are left out.
        provider: The name under which data for the provider were stored.
        file_url: Returns the URL of a file; by default that of the part if it is ``https:``,
            ``http:`` or ``data:``.
        values: Large values, of ``load_values``; the others are told as their size.
    """
    items: list[Item] = []
    reads = partial(readable_url, file_url=file_url, values=values)
    told_file = partial(_input_file, provider=provider, url_of=reads)
    for turn in turns_of(history, answer):
        if turn.role is MessageRole.ASSISTANT:
            made = _as_it_came(turn, provider, values)
            items += _as_any_model(turn, provider, values) if made is None else made
        elif content := _content(turn.parts, "input_text", told_file):
            items.append({"role": turn.role.value, "content": content})
    return items  # type: ignore[return-value]


def _content(
    parts: Iterable[Part], kind: str, told_file: Callable[[FilePart], list[Item]]
) -> str | list[Item]:
    """Returns what a user or the application says: its text alone, if there is no more.

    Args:
        parts: The parts of the message.
        kind: The type of a text in a list.
        told_file: Returns how a file is told, if it is.
    """
    found: list[Item] = []
    for part in parts:
        if isinstance(part, FilePart):
            found += told_file(part)
        elif isinstance(part, TextPart) and not isinstance(part, ReasoningPart) and part.text:
            found.append({"type": kind, "text": part.text})
    if len(found) == 1 and found[0]["type"] == kind:
        text: str = found[0]["text"]
        return text
    return found


def _input_file(file: FilePart, provider: str, url_of: FileUrl) -> list[Item]:
    file_id, url = data_of(file.provider, provider).get("file_id"), url_of(file)
    is_image = file.media_type.startswith("image/")
    if file_id:
        given: Item = {"file_id": file_id}
    elif url is None:
        return []
    elif is_image:
        given = {"image_url": url}
    elif url.startswith("data:"):
        given = {"file_data": url, "filename": file.name or "file"}
    else:
        given = {"file_url": url}
    if is_image:
        return [{"type": "input_image", "detail": "auto", **given}]
    return [{"type": "input_file", **given}]


def _as_any_model(turn: Turn, provider: str, values: Values) -> list[Item]:
    items: list[Item] = []
    results: list[Item] = []
    for part in turn.parts:
        if isinstance(part, ReasoningPart):
            continue
        if isinstance(part, TextPart) and part.text:
            items += results
            results = []
            item: Item = {"role": "assistant", "content": part.text}
            phase = _item_of(part, provider).get("phase")
            items.append({**item, "phase": phase} if phase else item)
        elif isinstance(part, ToolCallPart) and _is_function(part, provider):
            called = {"call_id": part.call_id, "name": part.name}
            called["arguments"] = arguments_of(part, values)
            items.append({"type": "function_call", **called})
            results.append(_function_output(part, values))
    return items + results


def _is_function(call: ToolCallPart, provider: str) -> bool:
    """Returns whether a call can be told as that of a function, to any model."""
    kind = _item_of(call, provider).get("type", "function_call")
    is_own = kind in ("function_call", "custom_tool_call")
    return is_own and call.executor != "provider" and is_callable(call)


def _function_output(call: ToolCallPart, values: Values) -> Item:
    output = result_of(call, values)
    return {"type": "function_call_output", "call_id": call.call_id, "output": output}


def _item_of(part: Part, provider: str) -> Mapping[str, Any]:
    item = data_of(part.provider, provider).get("item")
    return item if isinstance(item, Mapping) else {}


def _as_it_came(turn: Turn, provider: str, values: Values) -> list[Item] | None:
    """Returns the items of a response, and the results of its calls; ``None`` if some are lost."""
    if turn.step is None or not turn.is_whole:
        return None
    if data_of(turn.step.provider, provider).get("done") is not True:
        return None  # of another provider or API, or cut
    items: dict[str, Item] = {}  # by their keys, in order
    thoughts: dict[str, list[tuple[str, str]]] = {}
    results: list[Item] = []
    for part in turn.parts:
        data = data_of(loaded(part.fields.get("provider"), values), provider)
        item, key = data.get("item"), data.get("key")
        if part.kind in ("source_url", "source_document", "data", "file"):
            continue  # for viewers
        if isinstance(part, ReasoningPart):
            of, letter = data.get("of"), data.get("as")
            if not isinstance(of, str) or not isinstance(letter, str):
                return None
            thoughts.setdefault(of, []).append((letter, part.text))
            items.setdefault(of, {})
            if isinstance(item, Mapping):
                items[of] = {**item, "has_content": data.get("has_content") is True}
            continue
        if not isinstance(item, Mapping) or not isinstance(key, str):
            if isinstance(part, TextPart) and not part.text:
                continue
            return None
        if isinstance(part, TextPart):
            _add_text(items, part, item, data.get("content"))
        elif isinstance(part, ToolCallPart):
            made = _call_as_it_came(part, dict(item), provider, values)
            if made is None:
                return None
            items[key], result = made
            results += result
        else:
            items[key] = dict(item)
    for of, texts in thoughts.items():
        thought = items[of]
        if not thought.get("encrypted_content"):
            return None  # only the server that made it could look it up, and only for some time
        shown = {"s": [t for letter, t in texts if letter == "s"]}
        thought["summary"] = [{"type": "summary_text", "text": text} for text in shown["s"]]
        told = [{"type": "reasoning_text", "text": t} for letter, t in texts if letter == "c"]
        if thought.pop("has_content", False) or told:
            thought["content"] = told
    return [*items.values(), *results]


def _add_text(
    items: dict[str, Item], part: TextPart, item: Mapping[str, Any], content: object
) -> None:
    found = content if isinstance(content, Mapping) else {}
    if found.get("type") == "refusal":
        told: Item = {"type": "refusal", "refusal": part.text}
    else:
        annotations = found.get("annotations") or []
        told = {"type": "output_text", "text": part.text, "annotations": annotations}
    name = str(item.get("id"))
    message = items.setdefault(name, {**item, "role": "assistant", "content": []})
    message["status"] = item.get("status", "completed")
    message["content"].append(told)


def _call_as_it_came(
    call: ToolCallPart, item: Item, provider: str, values: Values
) -> tuple[Item, list[Item]] | None:
    kind, of_call = item.get("type"), {"call_id": call.call_id}
    if not is_callable(call):
        return None
    match kind:
        case "function_call":
            item |= {**of_call, "name": call.name, "arguments": call.text}
            return item, [_function_output(call, values)]
        case "custom_tool_call":
            item |= {**of_call, "name": call.name, "input": call.text}
            output = result_of(call, values)
            return item, [{"type": "custom_tool_call_output", **of_call, "output": output}]
        case "image_generation_call":
            output = loaded(call.output, values)
            if isinstance(call.output, StoredValue) and call.output not in values:
                return None
            result = output.get("result") if isinstance(output, Mapping) else None
            return {**item, "result": result}, []
        case "mcp_approval_request":
            approval = call.approval
            approves = approval is not None and approval.approved is True
            answer: Item = {"type": "mcp_approval_response", "approval_request_id": call.call_id}
            reason = None if approval is None else approval.reason
            if approval is None or approval.approved is None:
                reason = "interrupted"
            return item, [{**answer, "approve": approves, **({"reason": reason} if reason else {})}]
    own = data_of(call.result_provider, provider).get("item")
    if isinstance(own, Mapping):
        return item, [dict(own)]
    if call.executor == "provider":
        return item, []
    result = _built_in_output(call, kind, of_call, values)
    return None if result is None else (item, [result])


def _built_in_output(
    call: ToolCallPart, kind: object, of_call: Item, values: Values
) -> Item | None:
    """Returns the output of a tool of OpenAI's that the application runs, if it has its form."""
    output, text = loaded(call.output, values), result_of(call, values)
    has_output = call.state == "output-available"
    match kind:
        case "computer_call" if has_output and isinstance(output, Mapping):
            checks = call.input.get("pending_safety_checks") if _is_mapping(call.input) else None
            told: Item = {"type": "computer_call_output", **of_call, "output": dict(output)}
            return {**told, "acknowledged_safety_checks": checks} if checks else told
        case "local_shell_call":
            # Its type has the id of the call as "id".
            return {"type": "local_shell_call_output", "id": call.call_id, "output": text}
        case "apply_patch_call":
            status = "completed" if has_output else "failed"
            return {"type": "apply_patch_call_output", **of_call, "status": status, "output": text}
        case "shell_call":
            is_own = has_output and isinstance(output, list) and all(map(_is_mapping, output))
            said = output if is_own else [_shell_output(text, has_output)]
            return {"type": "shell_call_output", **of_call, "output": said}
    return None


def _is_mapping(value: object) -> bool:
    return isinstance(value, Mapping)


def _shell_output(text: str, worked: bool) -> Item:
    outcome = {"type": "exit", "exit_code": 0 if worked else 1}
    shown = {"stdout": text, "stderr": ""} if worked else {"stdout": "", "stderr": text}
    return {**shown, "outcome": outcome}


# Chat Completions


def messages_for_openai_chat(
    history: History | Iterable[Told],
    *,
    answer: Told | None = None,
    provider: str = OPENAI,
    file_url: FileUrl | None = None,
    values: Values = NO_VALUES,
) -> "list[ChatCompletionMessageParam]":
    """Returns the messages of ``client.chat.completions.create`` for a conversation.

    Thoughts go back to their provider in the field in which they came, as DeepSeek demands.

    Args:
        history: As for :func:`messages_for_openai`, like the others.
        answer: See there.
        provider: See there.
        file_url: See there. Files other than images go only as ``data:`` URLs.
        values: See there.
    """
    messages: list[Item] = []
    reads = partial(readable_url, file_url=file_url, values=values)
    told_file = partial(_chat_file, provider=provider, url_of=reads)
    for turn in turns_of(history, answer):
        if turn.role is MessageRole.ASSISTANT:
            messages += _chat_turn(turn, provider, values)
        elif content := _content(turn.parts, "text", told_file):
            messages.append({"role": turn.role.value, "content": content})
    return messages  # type: ignore[return-value]


def _chat_file(file: FilePart, provider: str, url_of: FileUrl) -> list[Item]:
    file_id, url = data_of(file.provider, provider).get("file_id"), url_of(file)
    if file.media_type.startswith("image/"):
        return [] if url is None else [{"type": "image_url", "image_url": {"url": url}}]
    if file_id:
        return [{"type": "file", "file": {"file_id": file_id}}]
    if url is None or not url.startswith("data:"):
        return []
    return [{"type": "file", "file": {"file_data": url, "filename": file.name or "file"}}]


def _chat_turn(turn: Turn, provider: str, values: Values) -> list[Item]:
    messages: list[Item] = []
    said: Item = {}
    results: list[Item] = []

    def close() -> None:
        nonlocal said, results
        if said.get("content") or said.get("refusal") or said.get("tool_calls"):
            messages.append({"role": "assistant", **({} if "content" in said else NO_TEXT), **said})
            messages.extend(results)
        said, results = {}, []

    for part in turn.parts:
        data = data_of(part.provider, provider)
        if isinstance(part, TextPart):
            if results:
                close()  # what follows the results of calls is another message
            name = _chat_field(part, data)
            if name is not None and part.text:
                said[name] = said.get(name, "") + part.text
        elif isinstance(part, ToolCallPart) and _is_function(part, provider):
            function = {"name": part.name, "arguments": arguments_of(part, values)}
            call = {"id": part.call_id, "type": "function", "function": function}
            said.setdefault("tool_calls", []).append(call)
            results.append(
                {"role": "tool", "tool_call_id": part.call_id, "content": result_of(part, values)}
            )
    close()
    return messages


NO_TEXT: Mapping[str, None] = MappingProxyType({"content": None})
"""Some servers demand the field, also beside calls."""


def _chat_field(part: TextPart, data: Mapping[str, Any]) -> str | None:
    """Returns the field of a message that a text belongs to."""
    if isinstance(part, ReasoningPart):
        name = data.get("field")
        return name if name in REASONING_FIELDS else None
    return "refusal" if data.get("refusal") is True else "content"
