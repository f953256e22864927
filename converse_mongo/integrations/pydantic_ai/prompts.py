"""Messages for an agent: a conversation as what Pydantic AI calls a message history."""

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Any, TypeAlias
from urllib.parse import unquote_to_bytes

from pydantic_ai.messages import (
    INTERRUPTED_TOOL_RETURN_CONTENT,
    ModelMessage,
    ModelMessagesTypeAdapter,
)

from converse_mongo.documents.listings import History
from converse_mongo.domain.parts import (
    CustomPart,
    FilePart,
    Part,
    ReasoningPart,
    StepPart,
    TextPart,
    ToolCallPart,
)
from converse_mongo.domain.types import MessageRole
from converse_mongo.integrations.histories import (
    NO_VALUES,
    FileUrl,
    Told,
    Turn,
    Values,
    arguments_of,
    as_json,
    is_callable,
    loaded,
    readable_url,
    turns_of,
)
from converse_mongo.integrations.pydantic_ai.events import PYDANTIC_AI, REQUEST, index_of
from converse_mongo.integrations.streams import data_of

Item: TypeAlias = dict[str, Any]
NOT_RUN = "The tool was not run."
DENIED = "The tool call was denied."

_FROM_STORE: Mapping[str, str] = MappingProxyType({"tool_calls": "tool_call"})
_REASONS = frozenset({"stop", "length", "content_filter", "tool_call", "error"})
_URLS = {"image": "image-url", "audio": "audio-url", "video": "video-url"}


def messages_for_pydantic_ai(
    history: History | Iterable[Told],
    *,
    answer: Told | None = None,
    file_url: FileUrl | None = None,
    values: Values = NO_VALUES,
) -> list[ModelMessage]:
    """Returns the ``message_history`` of a run for a conversation.

    It ends with what the user said, if that is the last message: then the run takes no prompt.

    What a model has put out in a run goes back as the agent itself would have it, if all of it is
    there; Pydantic AI gives signatures and ids to the provider that they came from. Else its texts
    and its calls go back, as if any model had written them.

    Args:
        history: The messages, the oldest first: what ``await conversation.history()`` returns.
        answer: The answer that is being written, as far as it is: it comes last. Others that are
            being written are left out.
        file_url: Returns the URL of a file; by default that of the part if it is ``https:``,
            ``http:`` or ``data:``.
        values: Large values, of ``load_values``; the others are told as their size.
    """
    return Telling(file_url, values).tell(turns_of(history, answer)).messages()


@dataclass
class Account:
    """Messages in JSON types.

    Attributes:
        items: The messages.
    """

    items: list[Item] = field(default_factory=list)

    def messages(self) -> list[ModelMessage]:
        """Returns the messages as those of Pydantic AI."""
        return ModelMessagesTypeAdapter.validate_json(as_json(self.items))


class Telling:
    """Tells an agent the turns of a conversation.

    Args:
        file_url: See :func:`messages_for_pydantic_ai`.
        values: See there.
        left_out: Calls, by their numbers, whose results are not told.
    """

    def __init__(
        self, file_url: FileUrl | None, values: Values, left_out: Iterable[int | None] = ()
    ) -> None:
        self._file_url = file_url
        self._values = values
        self._left_out = set(left_out)

    def tell(self, turns: Iterable[Turn]) -> Account:
        """Returns what an agent is told."""
        told = Account()
        for turn in turns:
            if turn.role is MessageRole.ASSISTANT:
                made = self._as_it_came(turn)
                told.items += self._as_any_model(turn) if made is None else made
            elif turn.role is MessageRole.SYSTEM:
                text = "".join(p.text for p in turn.parts if _is_text(p))
                if text:
                    part: Item = {"part_kind": "system-prompt", "content": text, **_at(turn)}
                    told.items.append(_request([part]))
            elif content := self._content(turn.parts):
                part = {"part_kind": "user-prompt", "content": content, **_at(turn)}
                told.items.append(_request([part]))
        return told

    # What users say

    def _content(self, parts: Iterable[Part]) -> str | list[Any]:
        found: list[Any] = []
        for part in parts:
            if isinstance(part, FilePart):
                found += self._file(part)
            elif _is_text(part) and part.text:
                found.append(part.text)
        return found[0] if len(found) == 1 and isinstance(found[0], str) else found

    def _file(self, file: FilePart) -> list[Item]:
        data = data_of(file.provider, PYDANTIC_AI)
        if data.get("file_id") and data.get("provider_name"):
            named = {name: data[name] for name in ("file_id", "provider_name")}
            return [{"kind": "uploaded-file", **named, "media_type": file.media_type}]
        url = readable_url(file, file_url=self._file_url, values=self._values)
        if url is None:
            return []
        if url.startswith("data:"):
            return [_binary(url)]
        kind = _URLS.get(file.media_type.partition("/")[0], "document-url")
        return [{"kind": kind, "url": url, "media_type": file.media_type}]

    # What models said

    def _as_it_came(self, turn: Turn) -> list[Item] | None:
        """Returns a response, and the results of its calls; ``None`` if some of it is lost."""
        step = turn.step
        if step is None or not turn.is_whole:
            return None
        data = data_of(loaded(step.fields.get("provider"), self._values), PYDANTIC_AI)
        if data.get("done") is not True:
            return None  # of another framework, or cut
        found: dict[float, Item] = {}
        late, calls = data.get("items") or {}, list[ToolCallPart]()
        requests: list[Item] | None = None
        for part in turn.parts:
            own = data_of(loaded(part.fields.get("provider"), self._values), PYDANTIC_AI)
            key = own.get("key")
            if part.kind in ("source_url", "source_document", "data"):
                continue  # for viewers
            if part.kind == REQUEST:
                requests = own.get("request")
                continue
            if not isinstance(key, str) or index_of(key) < 0:
                if isinstance(part, CustomPart) or not (
                    part.text or isinstance(part, ToolCallPart)
                ):
                    continue
                return None  # of somebody else
            index = index_of(key)
            made = self._part(part, own, late.get(str(index)))
            if made is None:
                return None
            if index in found and isinstance(part, TextPart):
                found[index]["content"] += part.text  # it went on behind another part
                continue
            found[index] = made
            if own.get("native") is True:
                self._add_native_result(found, part, key)
            elif isinstance(part, ToolCallPart):
                calls.append(part)
        response = {**(data.get("response") or {}), **_said(step)}
        parts = [found[index] for index in sorted(found)]
        at = response.get("timestamp")
        return [
            {"kind": "response", **response, "parts": parts},
            *self._results(calls, at if isinstance(at, str) else None, requests),
        ]

    def _part(self, part: Part, data: Mapping[str, Any], late: Any) -> Item | None:
        item = dict(late if isinstance(late, Mapping) else data.get("item") or {})
        if isinstance(part, ReasoningPart):
            return {"part_kind": "thinking", "content": part.text, **item}
        if isinstance(part, TextPart):
            return {"part_kind": "text", "content": part.text, **item}
        if isinstance(part, ToolCallPart):
            if not is_callable(part):
                return None
            kind = "builtin-tool-call" if data.get("native") is True else "tool-call"
            named = {"tool_name": part.name, "tool_call_id": part.call_id}
            args = data["args"] if "args" in data else self._args(part)
            return {"part_kind": kind, **named, "args": args, **item}
        if isinstance(part, FilePart):
            url = readable_url(part, file_url=self._file_url, values=self._values)
            if url is None or not url.startswith("data:"):
                return None
            return {"part_kind": "file", "content": _binary(url), **item}
        whole = data.get("part")
        return dict(whole) if isinstance(whole, Mapping) else None

    def _args(self, part: ToolCallPart) -> Any:
        if part.text:
            return part.text
        found = loaded(part.input, self._values)
        return found if isinstance(found, Mapping) else {"value": found}

    def _add_native_result(self, found: dict[float, Item], part: Part, called: str) -> None:
        data = self._result_data(part)
        if not isinstance(part, ToolCallPart) or "output" not in part.fields:
            return
        key, content = data.get("key"), loaded(part.output, self._values)
        is_here = isinstance(key, str) and key.rpartition("/")[0] == called.rpartition("/")[0]
        place = index_of(key) if is_here and isinstance(key, str) else index_of(called) + 0.5
        found[place] = {
            "part_kind": "builtin-tool-return",
            "tool_name": part.name,
            "tool_call_id": part.call_id,
            "content": content,
            **(data.get("result") or {}),
        }

    def _as_any_model(self, turn: Turn) -> list[Item]:
        items: list[Item] = []
        said: list[Item] = []
        calls: list[ToolCallPart] = []

        def close() -> None:
            nonlocal said, calls
            if said:
                items.append({"kind": "response", "parts": said, **_at(turn)})
                items.extend(self._results(calls, _at(turn).get("timestamp"), None))
            said, calls = [], []

        for part in turn.parts:
            if _is_text(part) and part.text:
                if calls:
                    close()  # what follows the results of calls is another response
                said.append({"part_kind": "text", "content": part.text})
            elif (
                isinstance(part, ToolCallPart) and part.executor != "provider" and is_callable(part)
            ):
                named = {"tool_name": part.name, "tool_call_id": part.call_id}
                args = arguments_of(part, self._values)
                said.append({"part_kind": "tool-call", **named, "args": args})
                calls.append(part)
        close()
        return items

    # Results

    def _results(
        self, calls: Iterable[ToolCallPart], at: str | None, request: list[Item] | None
    ) -> list[Item]:
        found = {
            call.call_id: self._result(call, at)
            for call in calls
            if call.number is None or call.number not in self._left_out
        }
        parts: list[Item] = []
        users: list[Item] = []
        if request is not None:
            for each in request:
                if "part_kind" in each:
                    parts.append(dict(each))
                elif (result := found.pop(each.get("tool_call_id", ""), None)) is not None:
                    parts.append(result)
        else:
            for call in calls:
                user = self._result_data(call).get("user")
                if isinstance(user, Mapping):
                    users.append(dict(user))
        parts = [*found.values(), *parts, *users]
        return [_request(parts)] if parts else []

    def _result_data(self, call: Part) -> Mapping[str, Any]:
        return data_of(loaded(call.fields.get("result_provider"), self._values), PYDANTIC_AI)

    def _result(self, call: ToolCallPart, at: str | None) -> Item:
        rest = self._result_data(call).get("result") or {}
        stamp = {"timestamp": at} if at else {}
        named = {"tool_name": call.name, "tool_call_id": call.call_id}
        return {"part_kind": "tool-return", **named, **stamp, **self._outcome(call), **rest}

    def _outcome(self, call: ToolCallPart) -> Item:
        match call.state:
            case "output-available":
                return {"content": loaded(call.output, self._values)}
            case "output-error":
                return {"content": call.error or "error", "outcome": "failed"}
            case "output-denied":
                reason = call.approval.reason if call.approval is not None else None
                return {"content": reason or DENIED, "outcome": "denied"}
        return {"content": INTERRUPTED_TOOL_RETURN_CONTENT, "outcome": "interrupted"}


def _is_text(part: Part) -> bool:
    return isinstance(part, TextPart) and not isinstance(part, ReasoningPart)


def _request(parts: list[Item]) -> Item:
    return {"kind": "request", "parts": parts}


def _at(turn: Turn) -> dict[str, str]:
    """Returns when a turn was: the same in each prompt, for caches of providers."""
    created = getattr(turn.message, "created_at", None)
    return {"timestamp": created.isoformat()} if isinstance(created, datetime) else {}


def _said(step: StepPart) -> Item:
    reason = step.finish_reason
    reason = _FROM_STORE.get(reason, reason) if reason is not None else None
    said = {
        "model_name": step.model,
        "provider_response_id": step.response_id,
        "usage": dict(step.usage) if step.usage else None,
        "finish_reason": reason if reason in _REASONS else None,
    }
    return {name: value for name, value in said.items() if value is not None}


def _binary(url: str) -> Item:
    """Returns the bytes of a ``data:`` URL."""
    head, _, body = url.removeprefix("data:").partition(",")
    media_type, *options = head.split(";")
    if "base64" not in options:
        body = base64.b64encode(unquote_to_bytes(body)).decode()
    return {"kind": "binary", "data": body, "media_type": media_type or "text/plain"}
