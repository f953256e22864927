"""A server that speaks like the API of OpenAI, and says and breaks what a test asks it to.

What it does depends on the model that is asked for, and on words in the last question:

- a model "status-N" answers with that HTTP status;
- "break off" sends an error in the middle of the stream, "hang up" ends it there;
- "decline" ends it as filtered;
- "slowly" waits before each token until ``Fake.go_on`` lets one more through.

Run as a program it serves on a port of the loopback interface, and "slowly" waits for a moment.
"""

import argparse
import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

ANSWER = ("It ", "is ", "a ", "database ", "for ", "documents.")
KEY = "sk-secret-0123456789"


@dataclass
class Fake:
    """The server, and what it was asked."""

    statuses: list[int] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    go_on: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    left: asyncio.Event = field(default_factory=asyncio.Event)
    pace: float | None = None

    @property
    def app(self) -> Starlette:
        return Starlette(routes=[Route("/v1/chat/completions", self.complete, methods=["POST"])])

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

    async def chunks(self, asked: dict[str, Any], key: str) -> AsyncIterator[str]:
        question = asked["messages"][-1]["content"]
        ended = False
        try:
            yield chunk(asked, {"role": "assistant", "content": ""})
            for count, token in enumerate(ANSWER):
                if "slowly" in question:
                    await self.wait()
                yield chunk(asked, {"content": token})
                if count == 2 and "hang up" in question:
                    return
                if count == 2 and "break off" in question:
                    told = {"message": f"Overloaded: {key}", "type": "server_error", "code": None}
                    yield f"data: {json.dumps({'error': told})}\n\n"
                    return
            yield chunk(asked, {}, "content_filter" if "decline" in question else "stop")
            if asked.get("stream_options", {}).get("include_usage"):
                usage = {"prompt_tokens": 21, "completion_tokens": len(ANSWER), "total_tokens": 27}
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
