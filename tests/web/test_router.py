"""The routes as a router of FastAPI: what its users expect of one, and the JSON of documents."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Annotated, Any

import httpx
import jsonschema
import pytest
import pytest_asyncio
from fastapi import BackgroundTasks, Body, Depends, FastAPI, HTTPException, Request, Response
from fastapi.security import APIKeyCookie
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException as RefusedError
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from converse_mongo import ConfigurationError, Conversation, Converse, Message
from converse_mongo.web import Generations, Streams, openapi_paths, routes
from converse_mongo.web.fastapi import RouteOptions, api_router
from tests.conftest import Facade
from tests.web.conftest import Model, Site, read_events, serving
from tests.web.helpers import say

COOKIE = APIKeyCookie(name="session")
ADA, EVE = {"cookie": "session=ada"}, {"cookie": "session=eve"}


class Users:
    """The sessions of an application, and what happens to them."""

    def __init__(self) -> None:
        self.sessions = {"ada", "eve"}
        self.left = asyncio.Event()
        self.broken: Exception | None = None

    def current(
        self,
        request: Request,
        response: Response,
        background: BackgroundTasks,
        session: Annotated[str, Depends(COOKIE)],
    ) -> str:
        if self.broken is not None:
            raise self.broken
        if session not in self.sessions:
            raise HTTPException(401, "Log in.")
        response.set_cookie("seen", "1")
        background.add_task(self.leave)
        return session

    async def leave(self) -> None:
        self.left.set()


def is_owner(user: str, conversation: Conversation) -> bool:
    return conversation.owner is not None and conversation.owner.pair == ("user", user)


class Place:
    """An application with the router, which serves it."""

    def __init__(self, converse: Converse, **options: Any) -> None:
        self.users, self.model = Users(), Model()
        self.generations = Generations(self.model.respond, grace=0.05)
        self.app = FastAPI()
        self.router = api_router(
            converse,
            user=self.users.current,
            authorize=is_owner,
            owner=lambda user: ("user", user),
            generations=self.generations,
            **options,
        )
        self.converse = converse

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[Site]:
        async with self.generations, serving(self.app) as port:
            address = f"http://127.0.0.1:{port}/api"
            async with httpx.AsyncClient(base_url=address, headers=ADA, timeout=20) as http:
                yield Site(self.converse, self.model, self.generations, http, port)


@pytest.fixture
def place(converse: Converse) -> Place:
    return Place(converse, reauthorize=0.05)


@pytest_asyncio.fixture
async def site(place: Place) -> AsyncIterator[Site]:
    place.app.include_router(place.router, prefix="/api", tags=["chat"])
    async with AsyncExitStack() as stack:
        yield await stack.enter_async_context(place.serve())


async def test_router__serves_streams_and_sockets_to_who_may_see_them(
    site: Site, place: Place
) -> None:
    conversation = await site.conversation()
    path = f"/conversations/{conversation.id}"
    assert (await site.http.get(path)).json()["title"] == "A talk"
    assert (await site.http.get(path, headers=EVE)).status_code == 404
    nobody = await site.http.get(path, headers={"cookie": ""})
    assert (nobody.status_code, nobody.json()) == (401, {"detail": "Not authenticated"})

    site.model.say("Hi", None)
    answer = (await say(site, conversation))["answer"]
    async with site.http.stream("GET", f"{path}/messages/{answer['id']}/events") as stream:
        names = [each.event async for each in read_events(stream)]
    assert names == ["chunk.received", "message.completed"]
    address = f"ws://127.0.0.1:{site.port}/api{path}/socket"
    async with connect(address, additional_headers=ADA) as socket:
        assert "message.created" in str(await socket.recv())
    for headers in (EVE, {}):
        with pytest.raises(InvalidStatus) as refused:
            await connect(address, additional_headers=headers)
        assert refused.value.response.status_code == 404


@pytest.mark.parametrize("kind", ["conversation", "owner", "socket"])
async def test_open_stream__ends_when_the_dependency_refuses_its_user(
    site: Site, place: Place, kind: str
) -> None:
    conversation = await site.conversation()

    async def follow(opened: asyncio.Event) -> None:
        path = f"/conversations/{conversation.id}"
        if kind == "socket":
            address = f"ws://127.0.0.1:{site.port}/api{path}/socket"
            async with connect(address, additional_headers=ADA) as socket:
                opened.set()
                await socket.wait_closed()
                assert socket.close_code == 1008
            return
        events = "/events" if kind == "owner" else f"{path}/events"
        async with site.http.stream("GET", events) as stream:
            assert stream.status_code == 200
            opened.set()
            assert all([each.event == "stream.opened" async for each in read_events(stream)])

    async with asyncio.timeout(20):
        opened = asyncio.Event()
        following = asyncio.create_task(follow(opened))
        await opened.wait()
        # It goes on while nobody can tell.
        place.users.broken = HTTPException(503, "The sessions are away.")
        await asyncio.sleep(0.2)
        assert not following.done()
        place.users.broken = None
        place.users.sessions.discard("ada")
        await following


async def test_dependencies__have_their_cookies_and_tasks_and_overrides(
    site: Site, place: Place
) -> None:
    conversation = await site.conversation()
    found = await site.http.get(f"/conversations/{conversation.id}")
    assert found.cookies["seen"] == "1"
    async with asyncio.timeout(20):
        await place.users.left.wait()
    place.app.dependency_overrides[place.users.current] = lambda: "eve"
    assert (await site.http.get(f"/conversations/{conversation.id}")).status_code == 404
    other = await site.conversation("eve")
    async with site.http.stream("GET", f"/conversations/{other.id}/events") as stream:
        await say(site, other)
        events = read_events(stream)
        assert (await anext(events)).event == "message.created"
    address = f"ws://127.0.0.1:{site.port}/api/conversations/{other.id}/socket"
    async with connect(address) as socket:
        assert "message.created" in str(await socket.recv())


async def test_body__is_not_read_before_the_user_is_known(site: Site) -> None:
    conversation = await site.conversation()
    path = f"/api/conversations/{conversation.id}/messages"
    for cookie, status in (("nobody", b"401"), ("eve", b"404")):
        reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncookie: session={cookie}\r\n"
        head += "content-type: application/json\r\ncontent-length: 1000\r\n\r\n{"
        writer.write(head.encode())
        async with asyncio.timeout(15):  # the rest never comes, and the connection ends
            answer = await reader.read()
        assert answer.split()[1] == status
        assert b"connection: close" in answer.lower()
        writer.close()


async def test_include__adds_a_prefix_tags_and_dependencies(place: Place) -> None:
    def refuse() -> None:
        raise RefusedError(429, "Slow down.")

    place.app.include_router(
        place.router, prefix="/v1/chat", tags=["chat"], dependencies=[Depends(refuse)]
    )
    async with place.serve() as site:
        found = await site.http.get(f"http://127.0.0.1:{site.port}/v1/chat/conversations/1")
        assert (found.status_code, found.json()) == (429, {"detail": "Slow down."})
    document = place.app.openapi()
    assert set(document["paths"]) == set(openapi_paths("/v1/chat", owner=True))
    tags = [each["tags"] for path in document["paths"].values() for each in path.values()]
    assert all(each == ["chat"] for each in tags)


async def test_openapi__has_the_models_and_says_what_the_description_says(
    site: Site, place: Place
) -> None:
    document = place.app.openapi()
    described = openapi_paths("/api", owner=True)
    ids = set()
    for path, operations in described.items():
        for method, wanted in operations.items():
            found = document["paths"][path][method]
            ids.add(found["operationId"])
            for key in ("summary", "description", "parameters", "requestBody"):
                assert found.get(key) == wanted.get(key), (path, method, key)
            assert found["security"] == [{"APIKeyCookie": []}]
            for status, response in wanted["responses"].items():
                mine = found["responses"][status]
                assert mine["description"] == response["description"]
                assert mine.get("headers") == response.get("headers")
                assert set(mine.get("content", {})) == set(response.get("content", {}))
            events = wanted["responses"].get("200", {}).get("content", {}).get("text/event-stream")
            if events is not None:
                assert found["responses"]["200"]["content"]["text/event-stream"] == events
    assert len(ids) == sum(map(len, described.values()))  # as many functions of a client
    answer = document["paths"]["/api/conversations/{conversation}"]["get"]["responses"]
    [schema] = [each["schema"] for each in answer["200"]["content"].values()]
    assert schema == {"$ref": "#/components/schemas/ConversationView"}
    conversation = await site.conversation()
    sent = (await site.http.get(f"/conversations/{conversation.id}")).json()
    jsonschema.validate(sent, document["components"]["schemas"]["ConversationView"])


def test_options__are_those_of_the_routes_and_are_checked(converse: Converse) -> None:
    options: Any = RouteOptions.__annotations__
    wanted: Any = dict(routes.__annotations__)
    for name in ("converse", "authorize", "owner", "return"):
        del wanted[name]
    assert options == wanted
    with pytest.raises(ConfigurationError, match="user="):
        api_router(converse, user=None, authorize=is_owner)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="reads the body"):
        api_router(converse, user=lambda name=Body(): name, authorize=is_owner)
    with pytest.raises(ConfigurationError, match="heartbeat"):
        api_router(converse, user=lambda: 1, authorize=is_owner, heartbeat=-1)
    with pytest.raises(ConfigurationError, match="authorize="):
        api_router(converse, user=lambda: 1, authorize=None, streams=Streams())  # type: ignore[arg-type]


# The JSON of documents


class Tagged(Conversation):
    """A conversation of an application, which has a field of its own and hides one."""

    tags: list[str] = Field(default_factory=list)
    secret: str = Field(default="", exclude=True)
    metadata: dict[str, Any] = Field(default_factory=dict, exclude=True)


class Listed(BaseModel):
    """A model of an application."""

    items: list[Conversation]


async def test_documents__have_the_json_of_the_routes(site: Site, place: Place) -> None:
    app, conversation = (
        place.app,
        await site.converse.start_conversation(
            "A talk", {"shown": 1}, ("user", "ada"), {"prompt": "secret"}
        ),
    )
    site.model.say("Hi", RuntimeError("secret"))
    answer = (await say(site, conversation, request_id="secret"))["answer"]
    async with asyncio.timeout(20):
        async for _ in site.converse.watch_message(answer["id"]):
            pass
    message = await site.converse.get_message(answer["id"])
    await conversation.refresh()

    @app.get("/own/conversation")
    def one() -> Conversation:
        return conversation

    @app.get("/own/conversations")
    def several() -> Listed:
        return Listed(items=[conversation])

    @app.get("/own/anything", response_model=None)
    def anything() -> Any:
        return {"conversation": conversation, "message": message}

    @app.get("/own/part", response_model_include={"id", "title"})
    def part() -> Conversation:
        return conversation

    @app.get("/own/message")
    def text() -> Message:
        return message

    async def get(path: str) -> Any:
        found = await site.http.get(f"http://127.0.0.1:{site.port}{path}")
        assert found.status_code == 200
        return found.json()

    wanted = await get(f"/api/conversations/{conversation.id}")
    said = await get(f"/api/conversations/{conversation.id}/messages/{message.id}")
    assert said["status"] == "failed"
    assert await get("/own/conversation") == wanted
    assert await get("/own/conversations") == {"items": [wanted]}
    assert await get("/own/anything") == {"conversation": wanted, "message": said}
    assert await get("/own/part") == {"id": str(conversation.id), "title": "A talk"}
    assert await get("/own/message") == said
    assert "secret" not in message.model_dump_json() + conversation.model_dump_json()
    schemas = place.app.openapi()["components"]["schemas"]
    for name, sent in (("Conversation", wanted), ("Message", said)):
        properties = schemas[name]["properties"]
        optional = {"parts", "open_part", "work"} if name == "Message" else set[str]()
        assert set(properties) - optional == set(sent) == set(schemas[name]["required"])
        assert properties == schemas[f"{name}View"]["properties"]


async def test_documents_of_an_application__show_the_fields_that_it_adds(facade: Facade) -> None:
    converse: Converse = await facade(conversation_model=Tagged)
    begun = await converse.start_conversation("A", {"a": 1}, ("user", 1), {"prompt": "secret"})
    assert isinstance(begun, Tagged)
    begun.tags, begun.secret = ["x"], "secret"
    found = begun.model_dump(mode="json")
    assert set(found) == {"id", "title", "created_at", "updated_at", "tags"}
    assert found["tags"] == ["x"]
    schema = Tagged.model_json_schema(mode="serialization")
    assert set(schema["properties"]) == set(schema["required"]) == set(found)
    jsonschema.validate(found, schema)
    assert begun.model_dump()["context"] == {"prompt": "secret"}  # only JSON is for clients
