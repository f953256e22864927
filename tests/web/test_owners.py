"""The stream of an owner: their conversations, nobody else's, and each of them authorized."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import jsonschema
import pytest
from pymongo.errors import AutoReconnect
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection

from converse_mongo import ConfigurationError, Conversation, Converse, PartIdentity, Queue
from converse_mongo.web import openapi_paths, routes
from tests.streams import until
from tests.web.conftest import OWNER, STRANGER, MakeSite, Sent, Site, is_owner, owner, read_events
from tests.web.helpers import watchers_are_gone
from tests.web.test_queue import PENDING
from tests.web.test_queue import asked as asked_people


@asynccontextmanager
async def stream(
    site: Site, query: str = "", user: dict[str, str] = OWNER
) -> AsyncIterator[AsyncIterator[Sent]]:
    """A stream that has said that it is open, and that no answer waits for people."""
    async with opening(site, query, user) as events:
        data = {"type": "stream.opened", "waiting": []}
        assert await anext(events) == Sent("stream.opened", None, data)
        yield events


@asynccontextmanager
async def opening(
    site: Site, query: str = "", user: dict[str, str] = OWNER
) -> AsyncIterator[AsyncIterator[Sent]]:
    async with site.http.stream("GET", f"/events{query}", headers=user) as response:
        assert response.status_code == 200
        assert response.headers["cache-control"] == "no-store, no-transform"
        yield read_events(response)


async def take(events: AsyncIterator[Sent], count: int) -> list[Sent]:
    async with asyncio.timeout(20):
        return [await anext(events) for _ in range(count)]


async def test_stream__tells_of_all_conversations(make_site: MakeSite) -> None:
    site = await make_site(owner=owner)
    old = await site.conversation()
    async with stream(site) as events:
        new = await site.conversation()
        await new.create_user_message("Hello")
        of_new = await take(events, 2)
        answer = await old.start_streaming_assistant({"model": "small"})
        await answer.append_chunk("Hi")
        await answer.complete_streaming()
        of_old = await take(events, 2)
        new.title = "Greetings"
        await new.save()
        of_new += await take(events, 1)
        found = [*of_new, *of_old]
        assert {each.data["conversation_id"] for each in of_new} == {str(new.id)}
        assert [each.event for each in of_new] == [
            "conversation.created",
            "message.created",
            "conversation.updated",
        ]
        assert {each.data["conversation_id"] for each in of_old} == {str(old.id)}
        assert [each.event for each in of_old] == [
            "message.created",
            "message.completed",
        ]
        assert all(each.id is None and each.data["type"] == each.event for each in found)
        assert of_new[2].data["title"] == "Greetings"
        assert not any(each.data.keys() & {"owner", "cursor"} for each in found)
        await new.delete()
        (deleted,) = await take(events, 1)
        assert (deleted.event, deleted.data["conversation_id"]) == (
            "conversation.deleted",
            str(new.id),
        )
    await watchers_are_gone(site)


async def test_stream__tells_of_shown_roles_only(make_site: MakeSite) -> None:
    site = await make_site(owner=owner, show_metadata=lambda metadata: {})
    conversation = await site.conversation()
    async with stream(site, "?chunks=false") as events:  # as clients of an earlier version ask
        await conversation.create_system_message("Be kind.")
        answer = await conversation.start_streaming_assistant({"secret": 1})
        await answer.append_chunk("Hi")
        await answer.complete_streaming()
        found = await take(events, 2)
    assert [each.event for each in found] == ["message.created", "message.completed"]
    assert [each.data["metadata"] for each in found] == [{}, {}]


async def test_stream__shows_nothing_of_others(make_site: MakeSite) -> None:
    site = await make_site(owner=owner)
    theirs, mine = await site.conversation("eve"), await site.conversation()
    async with stream(site) as events, stream(site, user=STRANGER) as others:
        await theirs.create_user_message("a secret")
        theirs.title = "a secret"
        await theirs.save()
        await mine.create_user_message("Hello")
        (seen,) = await take(events, 1)
        assert seen.data["conversation_id"] == str(mine.id)
        assert {each.data["conversation_id"] for each in await take(others, 2)} == {str(theirs.id)}


async def test_stream__tells_what_waits_for_people(make_site: MakeSite) -> None:
    paths = openapi_paths(owner=True)
    described = paths["/events"]["get"]["responses"]["200"]["content"]["text/event-stream"]
    schema = described["schema"]["contentSchema"]
    site = await make_site(owner=owner, generations=Queue("default"))
    async with stream(site) as events:
        async with asked_people(site) as answer:
            *_, waits = await take(events, 4)  # behind what begins, and the question
            about = {"role": "assistant", "attempt": 1}
            about |= {"conversation_id": answer["conversation_id"], "message_id": answer["id"]}
            suspended = {"type": "message.suspended", **about, "pending": PENDING}
            assert waits == Sent("message.suspended", None, suspended)
            async with opening(site) as others:  # as a page does that comes back
                data = {"type": "stream.opened", "waiting": [suspended]}
                opened = await anext(others)
                assert opened == Sent("stream.opened", None, data)
            path = f"/conversations/{answer['conversation_id']}/messages/{answer['id']}/answers"
            for given in (
                {"call_id": "erase_1", "approved": True},
                {"call_id": "locate_1", "output": 1},
            ):
                response = await site.http.post(path, json={"answers": [given]})
                assert response.status_code == 200
            fewer, went_on, ended = await take(events, 3)
        assert fewer.data == {**suspended, "pending": PENDING[1:]}
        assert went_on.data == {"type": went_on.event, **about}
        assert went_on.event in ("message.queued", "message.started")
        assert ended.event == "message.completed"
    for each in (opened, waits, fewer, went_on):
        jsonschema.validate(each.data, schema)


async def test_stream__hides_calls_that_are_not_shown(make_site: MakeSite) -> None:
    def show_parts(part: PartIdentity) -> bool:
        return part.name != "erase"

    waits: Any = {"owner": owner, "generations": Queue("default"), "show_parts": show_parts}
    site = await make_site(**waits)
    async with stream(site) as events, asked_people(site), opening(site) as others:
        *_, suspended = await take(events, 4)
        assert suspended.data["pending"] == PENDING[1:]
        assert (await anext(others)).data["waiting"] == [suspended.data]


async def test_stream__tells_of_no_waiting_that_is_not_authorized(make_site: MakeSite) -> None:
    def authorize(request: HTTPConnection, conversation: Conversation) -> bool:
        return is_owner(request, conversation) and conversation.title != "locked"

    site = await make_site(owner=owner, authorize=authorize, generations=Queue("default"))
    async with asked_people(site) as answer:
        conversation = await site.converse.get_conversation(answer["conversation_id"])
        conversation.title = "locked"
        await conversation.save()
        async with stream(site):
            pass
        async with opening(site, user=STRANGER) as others:
            assert (await anext(others)).data["waiting"] == []


async def test_stream__shows_only_what_is_authorized(make_site: MakeSite) -> None:
    asked: list[str | None] = []

    def authorize(request: HTTPConnection, conversation: Conversation) -> bool:
        asked.append(conversation.title)
        return is_owner(request, conversation) and conversation.title != "locked"

    site = await make_site(owner=owner, authorize=authorize)
    start = site.converse.start_conversation
    locked = await start("locked", owner=("user", "ada"))
    open_one = await start("open", owner=("user", "ada"))
    async with stream(site) as events:
        await locked.create_user_message("a secret")
        for _ in range(3):
            await open_one.create_user_message("Hello")
        seen = await take(events, 3)
        await until(lambda: "locked" in asked)
        await locked.delete()
        await open_one.delete()
        seen += await take(events, 1)
    assert {each.data["conversation_id"] for each in seen} == {str(open_one.id)}
    assert sorted(asked, key=str) == ["locked", "open"]  # once for a stream


async def test_stream__authorizes_a_conversation_again_that_was_saved(
    make_site: MakeSite,
) -> None:
    refused = asyncio.Event()

    def authorize(request: HTTPConnection, found: Conversation) -> bool:
        if found.title == "locked":
            refused.set()
        return found.title != "locked"

    site = await make_site(owner=owner, authorize=authorize)
    conversation, other = await site.conversation(), await site.conversation()
    async with stream(site) as events:
        await conversation.create_user_message("Hello")
        seen = await take(events, 1)
        conversation.title = "locked"
        await conversation.save()
        async with asyncio.timeout(20):
            await refused.wait()
        await conversation.create_user_message("a secret")
        await other.create_user_message("Hello")
        seen += await take(events, 1)
    assert [each.data["conversation_id"] for each in seen] == [str(conversation.id), str(other.id)]


async def test_stream__does_not_authorize_for_what_it_does_not_show(make_site: MakeSite) -> None:
    asked: list[Conversation] = []

    def authorize(request: HTTPConnection, conversation: Conversation) -> bool:
        asked.append(conversation)
        return True

    site = await make_site(owner=owner, authorize=authorize)
    hidden, shown = await site.conversation(), await site.conversation()
    async with stream(site) as events:
        await hidden.create_system_message("Be kind.")
        await shown.create_user_message("Hello")
        await take(events, 1)
    assert [each.id for each in asked] == [shown.id]


async def test_stream__whose_access_cannot_be_told_is_cut_off(
    make_site: MakeSite, caplog: pytest.LogCaptureFixture
) -> None:
    def authorize(request: HTTPConnection, conversation: Conversation) -> bool:
        if conversation.title == "trouble":
            raise AutoReconnect("the database of rights is away")
        return is_owner(request, conversation)

    site = await make_site(owner=owner, authorize=authorize)
    async with stream(site) as events:
        await site.conversation()
        (created,) = await take(events, 1)
        assert created.event == "conversation.created"
        await site.converse.start_conversation("trouble", owner=("user", "ada"))
        assert [event async for event in events] == []
    assert "A stream to a client was cut off" in caplog.text
    await watchers_are_gone(site)


@pytest.mark.parametrize("how", ["nobody", "refused", "not offered"])
async def test_stream__that_is_for_nobody_is_not_there(make_site: MakeSite, how: str) -> None:
    async def nobody(request: HTTPConnection) -> None:
        await asyncio.sleep(0)

    def refuse(request: HTTPConnection) -> tuple[str, str]:
        raise HTTPException(401)

    owners: dict[str, Any] = {"nobody": nobody, "refused": refuse, "not offered": None}
    site = await make_site(owner=owners[how])
    response = await site.http.get("/events")
    assert response.status_code == 404
    if how != "not offered":
        assert response.json()["error"]["code"] == "not_found"
    assert site.converse.statistics().watchers == 0


@pytest.mark.parametrize("chunks", ["true", "maybe"])
async def test_stream__has_no_chunks(make_site: MakeSite, chunks: str) -> None:
    site = await make_site(owner=owner)
    response = await site.http.get(f"/events?chunks={chunks}")
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_request")


async def test_stream__ends_with_its_lifetime_and_with_its_client(make_site: MakeSite) -> None:
    site = await make_site(owner=owner, lifetime=0.1)
    async with stream(site) as events:
        assert [event async for event in events] == []
    other = await make_site(owner=owner)
    conversation = await other.conversation()
    async with stream(other) as events:
        await conversation.start_streaming_assistant()
        await take(events, 1)
        assert other.converse.statistics().watchers > 0
    await watchers_are_gone(other)


async def test_owner__has_to_be_a_function(converse: Converse) -> None:
    with pytest.raises(ConfigurationError, match="owner"):
        routes(converse, authorize=is_owner, owner=("user", "42"))  # type: ignore[arg-type]
