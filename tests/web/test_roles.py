"""Whose messages browsers are shown, and that nobody asks the database for that."""

import httpx
from starlette.applications import Starlette

from converse_mongo import MessageRole
from converse_mongo.web import routes
from tests.conftest import Commands, Facade
from tests.web.conftest import OWNER, owner, read_events, serving


async def test_roles__that_are_not_shown_are_left_out_without_asking_the_database(
    facade: Facade, commands: Commands
) -> None:
    """Also of messages that were there before the stream began, whose creation it does not tell."""
    converse = await facade(client_options={"event_listeners": [commands]})
    app = Starlette(routes=routes(converse, authorize=lambda *_: True, owner=owner))
    conversation = await converse.start_conversation(owner=("user", "ada"))
    hidden = await conversation.start_streaming_message(MessageRole.TOOL_RESULT)
    prompt = await conversation.create_system_message("Be kind.")
    shown = await conversation.start_streaming_assistant()
    async with (
        serving(app) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=OWNER, timeout=20) as http,
    ):
        paths = (f"/conversations/{conversation.id}/events?after=now", "/events")
        async with http.stream("GET", paths[0]) as one, http.stream("GET", paths[1]) as all_of_them:
            events, news = read_events(one), read_events(all_of_them)
            assert (await anext(news)).event == "stream.opened"
            await hidden.append_chunk("a secret")
            prompt.metadata["x"] = 1
            await prompt.save()
            await hidden.complete_streaming()
            await shown.append_chunk("Hi")
            await shown.complete_streaming()
            sent = [await anext(events) for _ in range(2)] + [await anext(news)]
    assert [each.event for each in sent] == ["chunk.received", *["message.completed"] * 2]
    assert {(each.data["message_id"], each.data["role"]) for each in sent} == {
        (str(shown.id), "assistant")
    }
    asked = [each for each in commands.named("find") if each.get("projection") == {"role": 1}]
    assert asked == []
