"""A chat with FastAPI: login, conversations, answers that stream, and a page that shows them.

    python -m pip install ".[motor,demo,web]" fastapi uvicorn
    python examples/fastapi_chat.py

Then open http://127.0.0.1:8000. Without MONGODB_URI, an embedded server keeps the data in memory.
"""

import asyncio
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import uvicorn
from fastapi import APIRouter, Body, Depends, FastAPI, HTTPException, Response
from fastapi.responses import HTMLResponse
from fastapi.security import APIKeyCookie
from starlette.staticfiles import StaticFiles

from converse_mongo import Conversation, Converse, Message
from converse_mongo.embedded import EmbeddedServer
from converse_mongo.web import Generations, prompt_messages
from converse_mongo.web.fastapi import api_router

# Who the user is

sessions: dict[str, str] = {}  # token to name; keep these in your database


def current_user(session: Annotated[str, Depends(APIKeyCookie(name="session"))]) -> str:
    """Returns the name of the user who has logged in."""
    if session not in sessions:
        raise HTTPException(401, "Please log in.")
    return sessions[session]


User = Annotated[str, Depends(current_user)]


def authorize(user: str, conversation: Conversation) -> bool:
    """Lets a user see their own conversations only."""
    return conversation.owner is not None and conversation.owner.pair == ("user", user)


# What answers


async def respond(conversation: Conversation, message: Message) -> None:
    """Writes an answer. Call your language model here."""
    async with message.writer(interrupt=True) as writer:
        said = await prompt_messages(conversation, message, limit=50)
        for word in f"You said: {said[-1].content}".split(" "):
            await writer.write(f"{word} ")
            await asyncio.sleep(0.1)


# The application


def create_app(uri: str) -> FastAPI:
    """Creates the application on a database."""
    converse = Converse(uri, database="fastapi_chat")
    generations = Generations(respond)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with converse, generations:
            yield

    own = APIRouter()

    @own.post("/login", status_code=204)
    def login(name: Annotated[str, Body(embed=True, min_length=1)], response: Response) -> None:
        token = secrets.token_urlsafe()
        sessions[token] = name  # check a password before this
        # With HTTPS, also secure=True.
        response.set_cookie("session", token, httponly=True, samesite="lax")

    @own.get("/conversations")
    async def list_conversations(user: User) -> list[Conversation]:
        return [each async for each in converse.conversations(("user", user), limit=50)]

    @own.post("/conversations", status_code=201)
    async def start_conversation(
        title: Annotated[str, Body(embed=True)], user: User
    ) -> Conversation:
        return await converse.start_conversation(title=title, owner=("user", user))

    app = FastAPI(title="Chat", lifespan=lifespan)
    app.include_router(own, prefix="/api")
    app.include_router(
        api_router(converse, user=current_user, authorize=authorize, generations=generations),
        prefix="/api",
    )
    app.mount("/client", StaticFiles(packages=[("converse_mongo.web", "client")]))

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def page() -> str:
        return PAGE

    return app


PAGE = """<!doctype html>
<html lang="en">
  <head><meta charset="utf-8"><title>Chat</title><link rel="icon" href="data:,"></head>
  <body>
    <form id="login"><input name="text" aria-label="Name" required> <button>Log in</button></form>
    <main id="main" hidden>
      <ul id="list"></ul>
      <ol id="messages"></ol>
      <form id="ask"><input name="text" aria-label="Message" required> <button>Send</button></form>
    </main>
    <p id="status" role="status"></p>

    <script type="module">
      import { openConversation } from "/client/index.js";

      const byId = (id) => document.getElementById(id);
      let chat = null;

      async function request(path, init) {
        const response = await fetch(path, init);
        byId("login").hidden = response.status !== 401;
        return response;
      }

      async function api(path, body) {
        const init = { headers: { "content-type": "application/json" } };
        if (body) Object.assign(init, { method: "POST", body: JSON.stringify(body) });
        const response = await request("/api" + path, init);
        return response.status < 300 && response.status !== 204 ? response.json() : null;
      }

      function fill(list, items) {
        list.replaceChildren(...items.map((item) => {
          const entry = document.createElement("li");
          entry.append(item);
          return entry;
        }));
      }

      function open(id) {
        chat?.close();
        chat = openConversation({ url: "/api", conversationId: id, fetch: request });
        chat.subscribe(draw);
        draw();
      }

      function draw() {
        const { messages, error } = chat.getSnapshot();
        fill(byId("messages"), messages.map((each) => {
          return `${each.role}: ${each.content}` + (each.error ? ` (${each.error})` : "");
        }));
        byId("status").textContent = error?.message ?? "";
      }

      async function show() {
        const found = await api("/conversations");
        byId("main").hidden = !found;
        fill(byId("list"), (found ?? []).map(({ id, title }) => {
          const link = document.createElement("a");
          link.href = `#${id}`;
          link.textContent = title;
          return link;
        }));
        if (found && location.hash) open(location.hash.slice(1));
      }

      function onSubmit(id, handle) {
        byId(id).addEventListener("submit", (event) => {
          event.preventDefault();
          handle(event.target.elements.text.value);
          event.target.reset();
        });
      }

      onSubmit("login", async (name) => {
        await api("/login", { name });
        show();
      });
      onSubmit("ask", async (text) => {
        if (!chat) {
          const begun = await api("/conversations", { title: text.slice(0, 100) });
          if (!begun) return;
          history.replaceState(null, "", `#${begun.id}`);
          await show();
        }
        chat.send(text);
      });
      addEventListener("hashchange", show);
      show();
    </script>
  </body>
</html>
"""


def serve(uri: str) -> None:
    """Serves the chat on a database."""
    uvicorn.run(create_app(uri), host="127.0.0.1", port=8000, timeout_graceful_shutdown=5)


if __name__ == "__main__":
    if given := os.environ.get("MONGODB_URI"):
        serve(given)
    else:
        with EmbeddedServer() as server:
            serve(server.uri)
