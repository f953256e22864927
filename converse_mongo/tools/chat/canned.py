"""A built-in text that answers instead of a model, when there is no API key."""

import asyncio
import random
import re
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Any, TypeAlias

from converse_mongo import (
    Part,
    PartDelta,
    PartEnd,
    PartEvent,
    PartSet,
    PartStart,
    ReasoningPart,
    SourceUrlPart,
    StepPart,
    ToolCallPart,
)
from converse_mongo.tools.chat.errors import AnswerError
from converse_mongo.tools.chat.prompts import Said

WELCOME = """\
You wrote: "{question}"

No language model is connected, so a built-in text answers. Everything around it is real: each \
word you see was **stored in MongoDB first** and came to this page through a change stream.

Some things to try while an answer streams:

- Press **Stop**. The text so far is kept, and you can ask for another answer.
- Reload the page. The answer does not depend on it, and continues where it was.
- Open this address in a second tab, or on two screens. Both show the same words.
- Type `/tools` to see an answer that calls tools, `/ask` for one that waits for your approval, \
`/fail` to see one fail, `/code` for a piece of code, or `/long` for a long answer.

To talk to a real model, start the chat with a key:

```sh
export OPENAI_API_KEY=...
converse-mongo serve
```

This was question {number} of our conversation."""

CODE = """\
This code writes an answer to the database, token by token:

```python
async def respond(conversation, message):
    async with message.writer(interrupt=True) as writer:
        async for token in model.stream(conversation):
            await writer.write(token)
        writer.metadata["finish_reason"] = "stop"
```

1. Opening the writer claims the message: no second process can write the same answer.
2. `write` returns at once. A background task stores the tokens that have collected.
3. Leaving the block stores the rest, and ends the message as completed, failed or cancelled.

A stop, requested in this process or another, ends the block by itself."""

THOUGHT = """\
The user wants to see tools at work. I have none that do anything, so I show two calls with fixed \
results: a search and a look at the clock. They do not depend on each other and run at once."""

TOOLS = """\
Two tools ran at once. Unfold them above to see what they were asked and what they found, and \
unfold the thought to read it. Each step was **stored before it was shown**: reload the page while \
a tool runs, and it still runs."""

SENT = """\
You agreed, so the tool ran. It has no effect: no mail was sent. While the answer waited for you, \
no process held it. **It waited in MongoDB**, and would have waited through a restart of the \
server, too."""

NOT_SENT = """\
You declined, so the tool did not run. The answer was told so, and came to its end."""

FAILING = """\
This answer is about to be cut off, as if the model went away in the middle of a sentence. \
The text so far is kept, and the button below requests"""

WORK = 25
"""How much longer a tool works than the model at a token."""

PARAGRAPH = """\
Part {number}. Each token costs the same, however long the answer is: a writer collects the \
tokens of some milliseconds and appends them with one small update. One change stream per process \
notifies the readers, and a reader that was away reads the missing text from the document. If you \
scroll up while this answer grows, the page stays where you are. Scroll down again, or press the \
button, to follow it."""


Written: TypeAlias = str | Part | PartEvent
"""What an answer is made of: tokens, parts, and events of parts."""


class CannedModel:
    """Answers with built-in texts.

    Args:
        delay: The mean number of seconds between two tokens.
    """

    name = "built-in text"

    def __init__(self, delay: float) -> None:
        self._delay = delay

    async def stream(
        self, said: Sequence[Said], metadata: dict[str, Any], asked: Sequence[ToolCallPart], /
    ) -> AsyncGenerator[Written, None]:
        """Yields an answer, or how it goes on, and counts its tokens in ``metadata``."""
        question = said[-1].content if said else ""
        usage = {"prompt_tokens": sum(len(_tokens(each.content)) for each in said)}
        command = question.strip().lower()
        number = sum(each.role == "user" for each in said)
        count = 0
        files = [each.name for each in said[-1].files] if said else []
        call = asked[0] if asked else None
        for written in _written(command, question or ", ".join(files), number, call):
            works = isinstance(written, PartSet) and "output" in written.fields
            await asyncio.sleep(random.uniform(0.2, 1.8) * self._delay * (WORK if works else 1))
            yield written
            count += isinstance(written, str | PartDelta)
            metadata["usage"] = usage | {"completion_tokens": count}
        if command == "/fail":
            raise AnswerError("The model's answer was cut off, as you asked. Try again.")
        metadata["finish_reason"] = "stop"

    async def aclose(self) -> None:
        """Does nothing."""


def _written(
    command: str, question: str, number: int, call: ToolCallPart | None
) -> Iterator[Written]:
    if command == "/ask":
        yield from _mail(call)
        return
    if command == "/tools":
        yield from _tool_calls()
    yield from _tokens(_text(command, question, number))
    if command == "/tools":
        yield SourceUrlPart(
            "https://www.mongodb.com/docs/manual/changeStreams/", title="Change Streams"
        )


def _tool_calls() -> Iterator[Written]:
    """Yields a step with a thought and two tool calls, which then run at once."""
    yield PartStart(StepPart(), "step")
    yield PartStart(ReasoningPart(""), "thought")
    yield from (PartDelta("thought", token) for token in _tokens(THOUGHT))
    yield PartEnd("thought")
    yield PartStart(
        ToolCallPart("search_documentation", "call_1", title="Search the documentation"), "search"
    )
    yield from (PartDelta("search", piece) for piece in ('{"query": ', '"change ', 'streams"}'))
    yield PartSet("search", {"input": {"query": "change streams"}})
    yield PartStart(ToolCallPart("get_time", "call_2", title="Look at the clock"), "clock")
    yield PartSet("clock", {"input": {"zone": "UTC"}})
    yield PartEnd("step", {"finish_reason": "tool_calls"})
    yield PartSet("search", {"started": True})
    yield PartSet("clock", {"started": True})
    yield PartSet("clock", {"output": "12:00"})
    found = {"title": "Change Streams", "about": "Changes of a collection, as they happen"}
    yield PartSet("search", {"output": {"hits": 1, "pages": [found]}})


def _mail(call: ToolCallPart | None) -> Iterator[Written]:
    """Yields a tool call that needs an approval; once that is given or not, what comes of it."""
    if call is None:
        yield PartStart(StepPart(), "step")
        yield PartStart(ToolCallPart("send_mail", "call_1", title="Send a mail"), "mail")
        mail = {"to": "ann@example.com", "subject": "Lunch", "text": "Shall we meet at noon?"}
        yield PartSet("mail", {"input": mail})
        yield PartEnd("step", {"finish_reason": "tool_calls"})
        yield PartSet("mail", {"approval": {"id": "approval_1"}})
    elif call.number is not None and call.state != "approval-requested":
        if not call.is_finished:
            yield PartSet(call.number, {"started": True})
            yield PartSet(call.number, {"output": "sent"})
        yield from _tokens(NOT_SENT if call.state == "output-denied" else SENT)


def _text(command: str, question: str, number: int) -> str:
    if command == "/fail":
        return FAILING
    if command == "/code":
        return CODE
    if command == "/tools":
        return TOOLS
    if command == "/long":
        return "\n\n".join(PARAGRAPH.format(number=number) for number in range(1, 13))
    quoted = " ".join(question.replace("`", "'").replace("*", "").split())
    if len(quoted) > 200:
        quoted = quoted[:200].rstrip() + "…"
    return WELCOME.format(question=quoted, number=number)


def _tokens(text: str) -> list[str]:
    """Splits a text into words with the space before them, similar to tokens of a model."""
    return re.findall(r"\s*\S{1,12}|\s+$", text)
