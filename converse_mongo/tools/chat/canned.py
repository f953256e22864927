"""A built-in text that answers instead of a model, when there is no API key."""

import asyncio
import random
import re
from collections.abc import AsyncGenerator, Sequence
from typing import Any

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
- Type `/fail` to see an answer fail, `/code` for a piece of code, or `/long` for a long answer.

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

FAILING = """\
This answer is about to be cut off, as if the model went away in the middle of a sentence. \
The text so far is kept, and the button below requests"""

PARAGRAPH = """\
Part {number}. Each token costs the same, however long the answer is: a writer collects the \
tokens of some milliseconds and appends them with one small update. One change stream per process \
notifies the readers, and a reader that was away reads the missing text from the document. If you \
scroll up while this answer grows, the page stays where you are. Scroll down again, or press the \
button, to follow it."""


class CannedModel:
    """Answers with built-in texts.

    Args:
        delay: The mean number of seconds between two tokens.
    """

    name = "built-in text"

    def __init__(self, delay: float) -> None:
        self._delay = delay

    async def stream(
        self, said: Sequence[Said], metadata: dict[str, Any]
    ) -> AsyncGenerator[str, None]:
        """Yields the tokens of an answer, and counts them in ``metadata``."""
        question = said[-1].content if said else ""
        usage = {"prompt_tokens": sum(len(_tokens(each.content)) for each in said)}
        command = question.strip().lower()
        asked = sum(each.role == "user" for each in said)
        for count, token in enumerate(_tokens(_text(command, question, asked)), 1):
            await asyncio.sleep(random.uniform(0.2, 1.8) * self._delay)
            yield token
            metadata["usage"] = usage | {"completion_tokens": count}
        if command == "/fail":
            raise AnswerError("The model's answer was cut off, as you asked. Try again.")
        metadata["finish_reason"] = "stop"

    async def aclose(self) -> None:
        """Does nothing."""


def _text(command: str, question: str, asked: int) -> str:
    if command == "/fail":
        return FAILING
    if command == "/code":
        return CODE
    if command == "/long":
        return "\n\n".join(PARAGRAPH.format(number=number) for number in range(1, 13))
    quoted = " ".join(question.replace("`", "'").replace("*", "").split())
    if len(quoted) > 200:
        quoted = quoted[:200].rstrip() + "…"
    return WELCOME.format(question=quoted, number=asked)


def _tokens(text: str) -> list[str]:
    """Splits a text into words with the space before them, similar to tokens of a model."""
    return re.findall(r"\s*\S{1,12}|\s+$", text)
