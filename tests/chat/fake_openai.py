"""A server that speaks like the API of OpenAI, and says and breaks what a test asks it to.

What it does is what stands first in ``Fake.plans``. Without a plan it depends on the model that is
asked for, and on words in the last question:

- a model "status-N" answers with that HTTP status;
- "break off" sends an error in the middle of the stream, "hang up" ends it there;
- "decline" ends it as filtered;
- "slowly" waits before each token until ``Fake.go_on`` lets one more through.

Run as a program it serves on a port of the loopback interface, and "slowly" waits for a moment.
"""

import argparse
import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.integrations.openai_events import function_call, message, reasoning, said, stream

ANSWER = ("It ", "is ", "a ", "database ", "for ", "documents.")
KEY = "sk-secret-0123456789"


@dataclass(frozen=True)
class Plan:
    """How one answer goes.

    Attributes:
        tokens: What it says.
        slowly: Whether each token waits until it is let through, or for the pace of the fake.
        pace: Seconds before each token.
        breaks: "break off", "hang up" or "decline"; the first two before the last tokens.
        after: How many tokens come before that.
    """

    tokens: Sequence[str] = ANSWER
    slowly: bool = False
    pace: float = 0.0
    breaks: str | None = None
    after: int = 3

    @classmethod
    def of(cls, question: str) -> "Plan":
        breaks = (each for each in ("hang up", "break off", "decline") if each in question)
        return cls(slowly="slowly" in question, breaks=next(breaks, None))


@dataclass
class Fake:
    """The server, and what it was asked."""

    statuses: list[int] = field(default_factory=list)
    plans: list[Plan] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    go_on: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    left: asyncio.Event = field(default_factory=asyncio.Event)
    pace: float | None = None
    answer: list[dict[str, Any]] = field(default_factory=list)

    @property
    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/chat/completions", self.complete, methods=["POST"]),
                Route("/v1/responses", self.respond, methods=["POST"]),
                Route("/v1/responses/{id}", self.go_on_responding),
            ]
        )

    async def complete(self, request: Request) -> Response:
        asked = await request.json()
        self.asked.append(asked)
        key = request.headers.get("authorization", "").removeprefix("Bearer ")
        self.keys.append(key)
        model = asked["model"]
        status = int(model.removeprefix("status-")) if model.startswith("status-") else 200
        if self.statuses:
            status = self.statuses.pop(0)
        if status != 200:
            # As careless as a server can be: it says the key in its error.
            told = {"message": f"Refused: {key}", "type": "trouble", "code": None}
            return JSONResponse({"error": told}, status)
        return StreamingResponse(self.chunks(asked, key), media_type="text/event-stream")

    async def respond(self, request: Request) -> Response:
        """Calls the first tool, if there is one, once; one in the background is cut."""
        asked = await request.json()
        self.asked.append(asked)
        thought, background = reasoning("Hm."), asked.get("background") is True
        told = [each.get("type") for each in asked["input"]]
        if asked.get("tools") and "function_call_output" not in told:
            name = asked["tools"][0]["name"]
            events = stream(thought, function_call('{"query": "MongoDB"}', name))
        else:
            self.answer = stream(thought, message(said("".join(ANSWER))), background=background)
            events = self.answer[:-6] if background else self.answer
        return sent(events)

    async def go_on_responding(self, request: Request) -> Response:
        """Sends the rest of the last response."""
        after = int(request.query_params["starting_after"])
        return sent([each for each in self.answer if each["sequence_number"] > after])

    async def chunks(self, asked: dict[str, Any], key: str) -> AsyncIterator[str]:
        question = asked["messages"][-1]["content"]
        plan = self.plans.pop(0) if self.plans else Plan.of(question)
        ended = False
        try:
            yield chunk(asked, {"role": "assistant", "content": ""})
            for count, token in enumerate(plan.tokens, 1):
                if plan.slowly:
                    await self.wait()
                if plan.pace:
                    await asyncio.sleep(plan.pace)
                yield chunk(asked, {"content": token})
                if count == plan.after and plan.breaks == "hang up":
                    return
                if count == plan.after and plan.breaks == "break off":
                    told = {"message": f"Overloaded: {key}", "type": "server_error", "code": None}
                    yield f"data: {json.dumps({'error': told})}\n\n"
                    return
            yield chunk(asked, {}, "content_filter" if plan.breaks == "decline" else "stop")
            if asked.get("stream_options", {}).get("include_usage"):
                said = len(plan.tokens)
                usage = {"prompt_tokens": 21, "completion_tokens": said, "total_tokens": 21 + said}
                yield chunk(asked, None, usage=usage)
            yield "data: [DONE]\n\n"
            ended = True
        finally:
            if not ended:
                self.left.set()

    async def wait(self) -> None:
        if self.pace is None:
            await self.go_on.acquire()
        else:
            await asyncio.sleep(self.pace)


def sent(events: Sequence[dict[str, Any]]) -> Response:
    body = "".join(f"event: {each['type']}\ndata: {json.dumps(each)}\n\n" for each in events)
    return Response(body, media_type="text/event-stream")


def chunk(
    asked: dict[str, Any],
    delta: dict[str, Any] | None,
    finished: str | None = None,
    usage: dict[str, int] | None = None,
) -> str:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finished}]
    sent = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": asked["model"],
        "choices": choices,
        "usage": usage,
    }
    return f"data: {json.dumps(sent)}\n\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8010)
    uvicorn.run(Fake(pace=0.3).app, host="127.0.0.1", port=parser.parse_args().port)
