"""The description of the routes is true: it names each of them, and what they answer fits it."""

import json
import re
from typing import Any

import jsonschema
import pytest
from starlette.routing import Route

from converse_mongo import (
    Converse,
    DataPart,
    FilePart,
    PartDelta,
    PartEnd,
    PartStart,
    ToolCallPart,
)
from converse_mongo.domain.validation import now
from converse_mongo.web import Limits, openapi_paths, routes
from tests.web.conftest import MakeSite, Site, owner, read_all, read_events
from tests.web.helpers import say, wait_for_end

NAMED = re.compile(r"{(\w+)}")
JSON = "application/json"


@pytest.mark.parametrize("owner", [False, True])
async def test_description__names_every_route(converse: Converse, owner: bool) -> None:
    options: Any = {"owner": lambda request: None} if owner else {}
    made = routes(converse, authorize=lambda request, conversation: True, **options)
    wanted = {
        (f"/api{route.path}", method.lower())
        for route in made
        if isinstance(route, Route)
        for method in route.methods or ()
        if method != "HEAD"
    }
    described = openapi_paths("/api", owner=owner)
    assert {(path, method) for path, each in described.items() for method in each} == wanted
    for path, operations in described.items():
        for operation in operations.values():
            named = {each["name"] for each in operation["parameters"] if each["in"] == "path"}
            assert named == set(NAMED.findall(path))


async def test_events__fit_their_description(make_site: MakeSite) -> None:
    site = await make_site(owner=owner, limits=Limits(answers_per_conversation=None))
    paths = openapi_paths(owner=True)
    assert "$ref" not in json.dumps(paths)  # it becomes part of another document
    schemas = {
        path: operations["get"]["responses"]["200"]["content"]["text/event-stream"]["schema"]
        for path, operations in paths.items()
        if path.endswith("events")
    }
    conversation = await site.conversation()
    one = "/conversations/{conversation}"
    message, found = f"{one}/messages/{{message}}/events", set()
    async with site.http.stream("GET", "/events") as stream:
        news = read_events(stream)
        assert (await anext(news)).event == "stream.opened"
        answers = [(await say(site, conversation))["answer"]["id"] for _ in range(3)]
        await site.http.post(
            f"/conversations/{conversation.id}/messages/{answers[0]}/stop", json={}
        )
        await wait_for_end(site, answers[0])
        site.model.say("Hi", None, RuntimeError("secret"))
        sent = [("/events", await anext(news)) for _ in range(9)]
    for answer in answers:
        await wait_for_end(site, answer)
        values = {"conversation": str(conversation.id), "message": answer}
        async with site.http.stream("GET", message.format(**values)) as stream:
            sent += [(message, each) for each in await read_all(stream)]
    async with site.http.stream("GET", f"/conversations/{conversation.id}/events") as stream:
        events = read_events(stream)
        sent += [(f"{one}/events", await anext(events)) for _ in range(len(answers) * 3 + 1)]
    for path, each in sent:
        jsonschema.validate(each.data, schemas[path]["contentSchema"])
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(
                {**each.data, "conversation_id": "x"}, schemas[path]["contentSchema"]
            )
        found.add((path, each.event))
    ends = {"message.completed", "message.failed", "message.cancelled"}
    assert found == {
        *(("/events", name) for name in {"message.created", *ends}),
        *((message, name) for name in {"chunk.received", *ends}),
        *((f"{one}/events", name) for name in {"message.created", "chunk.received", *ends}),
    }


async def test_parts__fit_their_description(site: Site) -> None:
    paths, one = openapi_paths(), "/conversations/{conversation}"
    conversation = await site.conversation()
    values = {"conversation": str(conversation.id)}
    async with site.http.stream("GET", f"{one}/events".format(**values)) as stream:
        events = read_events(stream)
        await conversation.create_user_message("Look", parts=[FilePart("x", "image/png", size=1)])
        message = await conversation.start_streaming_assistant()
        call = ToolCallPart("search", "c1", input={"q": 1}, output=b"bytes", error="no")
        await message.append_chunks(["a", PartStart(call, "c"), PartDelta("c", "{"), PartEnd("c")])
        await message.append_chunks([DataPart("weather", {"at": now()}, id="w")])
        sent = [(f"{one}/events", (await anext(events)).data) for _ in range(7)]
    values["message"], path = str(message.id), f"{one}/messages/{{message}}"
    read = [(path, (await site.http.get(path.format(**values))).json())]
    await message.complete_streaming()
    read.append((path, (await site.http.get(path.format(**values))).json()))
    url = f"{path}/events".format(**values)
    async with site.http.stream("GET", url, params={"snapshot": True}) as stream:
        sent += [(f"{path}/events", each.data) for each in await read_all(stream)]
    kinds = [each["type"] for _, each in sent]
    assert (kinds.count("chunk.received"), kinds.count("message.snapshot")) == (5, 1)
    assert all(each["parts"] for _, each in read)
    for where, each in read:
        content = paths[where]["get"]["responses"]["200"]["content"]
        jsonschema.validate(each, content[JSON]["schema"])
        each["parts"][0]["provider"] = {}
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(each, content[JSON]["schema"])
    for where, each in sent:
        content = paths[where]["get"]["responses"]["200"]["content"]
        jsonschema.validate(each, content["text/event-stream"]["schema"]["contentSchema"])


@pytest.mark.parametrize("absent", [False, True])
async def test_answers__fit_their_description(site: Site, absent: bool) -> None:
    conversation = await site.conversation()
    answer = (await say(site, conversation))["answer"]
    site.model.say("Hi", None)
    await wait_for_end(site, answer["id"])
    values = {"conversation": str(conversation.id), "message": answer["id"]}
    if absent:
        values |= {"conversation": "0" * 24}
    bodies: dict[str, Any] = {"/conversations/{conversation}/messages": {"content": "Hello"}}
    for path, operations in openapi_paths().items():
        for method, operation in operations.items():
            described = operation["responses"]
            content = described.get("200", {}).get("content", {})
            if not content.keys().isdisjoint(("text/event-stream", "application/octet-stream")):
                continue  # what streams is tested event by event, and files by themselves
            sent = {"json": bodies.get(path, {})} if method == "post" else {}
            response = await site.http.request(method, path.format(**values), **sent)
            assert (response.status_code == 404) == absent
            schema = described[str(response.status_code)]["content"]["application/json"]["schema"]
            jsonschema.validate(response.json(), schema)


async def test_streams_of_the_ai_sdk__fit_their_description(site: Site) -> None:
    paths = openapi_paths()
    conversation = await site.conversation()
    asked = {"id": "q", "role": "user", "parts": [{"type": "text", "text": "Hello"}]}
    body = {"id": str(conversation.id), "messages": [asked]}
    site.model.say("Hi", None)
    async with site.http.stream("POST", "/chat", json=body) as stream:
        sent, headers = await read_all(stream), stream.headers
    run = headers["x-workflow-run-id"]
    resume = "/chat/{conversation}/stream"
    async with site.http.stream("GET", f"/chat/{run}/stream", params={"startIndex": -99}) as stream:
        again, tail = await read_all(stream), stream.headers
    for path, method, parts, told in (
        ("/chat", "post", sent, headers),
        (resume, "get", again, tail),
    ):
        described = paths[path][method]["responses"]["200"]
        schema = described["content"]["text/event-stream"]["schema"]
        assert len(parts) > 3
        for part in parts[:-1]:
            jsonschema.validate(part.data, schema["contentSchema"])
        assert parts[-1].data == "[DONE]"
        assert "The data of the last one is [DONE], which is not JSON." in schema["description"]
        assert set(described["headers"]) <= set(told)
    jsonschema.validate(body, paths["/chat"]["post"]["requestBody"]["content"][JSON]["schema"])
    [named] = [each for each in paths[resume]["get"]["parameters"] if each["in"] == "path"]
    for name in (run, str(conversation.id)):
        jsonschema.validate(name, named["schema"])
    page = paths["/chat/{conversation}"]["get"]["responses"]["200"]["headers"]
    assert set(page) == {"x-converse-before", "x-converse-resume"}
    stop = paths["/chat/{conversation}/stop"]["post"]["requestBody"]["content"][JSON]["schema"]
    assert set(stop["properties"]) == {"messageId", "reason"}
