"""The description of the routes is true: it names each of them, and what they answer fits it."""

import re
from typing import Any

import jsonschema
import pytest
from starlette.routing import Route

from converse_mongo import Converse
from converse_mongo.web import openapi_paths, routes
from tests.web.conftest import Site
from tests.web.test_conversations import say, wait_for_end

NAMED = re.compile(r"{(\w+)}")


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
            if "text/event-stream" in described.get("200", {}).get("content", {}):
                continue  # what streams is tested event by event
            sent = {"json": bodies.get(path, {})} if method == "post" else {}
            response = await site.http.request(method, path.format(**values), **sent)
            assert (response.status_code == 404) == absent
            schema = described[str(response.status_code)]["content"]["application/json"]["schema"]
            jsonschema.validate(response.json(), schema)
