"""The endpoints of a conversation: history, streams, saying, stopping and trying again."""

import asyncio
from typing import Any

import pytest

from converse_mongo import ConfigurationError, MessageStatus
from tests.web.conftest import MakeSite, Sent, Site, read_all, read_events
from tests.web.helpers import say, wait_for_end


async def test_say__is_answered_in_the_background(site: Site) -> None:
    conversation = await site.conversation()
    found = await say(site, conversation)
    assert found["message"]["content"] == "Hello"
    assert found["answer"]["status"] == "streaming"
    assert site.generations.running == 1
    site.model.say("Good ", "day", None)
    message = await wait_for_end(site, found["answer"]["id"])
    assert (message.status, message.content) == (MessageStatus.COMPLETED, "Good day")
    history = (await site.http.get(f"/conversations/{conversation.id}/messages")).json()
    assert [(each["role"], each["content"]) for each in history["messages"]] == [
        ("user", "Hello"),
        ("assistant", "Good day"),
    ]


async def test_say__twice_with_one_request_id_is_once(site: Site) -> None:
    conversation = await site.conversation()
    first, second = await asyncio.gather(
        *(say(site, conversation, request_id="r1") for _ in range(2))
    )
    assert first["message"]["id"] == second["message"]["id"]
    assert first["answer"]["id"] == second["answer"]["id"]
    site.model.say("Once", None)
    await wait_for_end(site, first["answer"]["id"])
    again = await say(site, conversation, request_id="r1")
    assert again["answer"]["content"] == "Once"
    assert len(site.model.asked) == 1
    assert len(await conversation.messages()) == 2


async def test_say__without_somebody_who_answers_is_stored(make_site: MakeSite) -> None:
    site = await make_site(generations=None)
    conversation = await site.conversation()
    found = await say(site, conversation)
    assert found["answer"] is None
    assert [each.content for each in await conversation.messages()] == ["Hello"]


async def test_say__beyond_the_limit_of_answers_writes_nothing(make_site: MakeSite) -> None:
    site = await make_site(limit=1)
    conversation = await site.conversation()
    await say(site, conversation)
    refused = await site.http.post(
        f"/conversations/{conversation.id}/messages", json={"content": "Another"}
    )
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "2")
    assert len(await conversation.messages()) == 2


async def test_message_stream__is_exact_and_resumes(site: Site) -> None:
    conversation = await site.conversation()
    answer = (await say(site, conversation))["answer"]
    path = f"/conversations/{conversation.id}/messages/{answer['id']}/events"
    site.model.say("one ")
    async with site.http.stream("GET", path) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert stream.headers["cache-control"] == "no-store, no-transform"
        assert stream.headers["x-accel-buffering"] == "no"
        first = await anext(read_events(stream))
    assert (first.event, first.data["chunk"]["content"]) == ("chunk.received", "one ")
    site.model.say("two ", "three", None)
    await wait_for_end(site, answer["id"])

    async with site.http.stream("GET", path, headers={"last-event-id": first.id or ""}) as stream:
        rest = await read_all(stream)
    assert "".join(each.data["chunk"]["content"] for each in rest[:-1]) == "two three"
    assert rest[-1].event == "message.completed"
    async with site.http.stream("GET", path, params={"after": first.id}) as stream:
        assert await read_all(stream) == rest

    over = await site.http.get(path, headers={"last-event-id": rest[-1].id or ""})
    assert (over.status_code, over.content) == (204, b"")


async def test_message__comes_with_the_cursor_of_its_stream(site: Site) -> None:
    conversation = await site.conversation()
    message = await conversation.start_streaming_assistant()
    path = f"/conversations/{conversation.id}/messages"

    async def cursor() -> str | None:
        alone = (await site.http.get(f"{path}/{message.id}")).json()
        assert (await site.http.get(path)).json()["messages"] == [alone]
        found: str | None = alone["cursor"]
        return found

    assert await cursor() is None
    await message.append_chunks(["one ", "two "])
    params = {"after": await cursor()}
    await message.append_chunk("three")
    await message.complete_streaming()
    async with site.http.stream("GET", f"{path}/{message.id}/events", params=params) as stream:
        sent = await read_all(stream)
    assert [each.data.get("chunk", {}).get("content") for each in sent] == ["three", None]
    assert await cursor() == sent[-1].id
    over = await site.http.get(f"{path}/{message.id}/events", params={"after": sent[-1].id})
    assert over.status_code == 204


async def test_cursors__of_earlier_versions_are_read(site: Site) -> None:
    """An open page sends them as Last-Event-ID while a deploy rolls."""
    conversation = await site.conversation()
    message = await conversation.start_streaming_assistant()
    await message.append_chunks(["one ", "two"])
    base = f"/conversations/{conversation.id}"
    for path, cursor in (
        (f"{base}/messages/{message.id}/events", f"{message.id}.0"),
        (f"{base}/events", f"{conversation.id}.1.0-1"),
    ):
        async with site.http.stream("GET", path, headers={"last-event-id": cursor}) as stream:
            sent = await anext(read_events(stream))
        assert (sent.event, sent.data["chunk"]["content"]) == ("chunk.received", "two")


async def test_conversation_stream__goes_on_from_the_history(site: Site) -> None:
    conversation = await site.conversation()
    answer = (await say(site, conversation))["answer"]
    site.model.say("one ")
    async for _ in site.converse.watch_message(answer["id"]):
        break
    history = (await site.http.get(f"/conversations/{conversation.id}/messages")).json()
    assert history["messages"][1]["content"] == "one "
    assert history["messages"][1]["chunk_count"] == 1
    site.model.say("two", None)

    path = f"/conversations/{conversation.id}/events"
    found: list[Sent] = []
    async with site.http.stream("GET", path, params={"after": history["cursor"]}) as stream:
        async for sent in read_events(stream):
            found.append(sent)
            if sent.event == "message.completed":
                break
    assert [each.event for each in found] == ["chunk.received"] * (len(found) - 1) + [
        "message.completed"
    ]
    assert "".join(each.data["chunk"]["content"] for each in found[:-1]) == "two"
    # From the id of any event the rest comes again, and nothing else.
    async with site.http.stream("GET", path, headers={"last-event-id": found[0].id or ""}) as again:
        assert await anext(read_events(again)) == found[1]


async def test_conversation_stream__without_a_cursor_begins_at_the_beginning(site: Site) -> None:
    conversation = await site.conversation()
    await conversation.create_user_message("early")
    async with site.http.stream("GET", f"/conversations/{conversation.id}/events") as stream:
        sent = await anext(read_events(stream))
    assert (sent.event, sent.data["content"]) == ("message.created", "early")
    assert sent.data["message_id"]
    assert "cursor" not in sent.data


async def test_stream__has_heartbeats_and_an_end(make_site: MakeSite) -> None:
    site = await make_site(heartbeat=0.02, lifetime=0.3, retry=1.5)
    conversation = await site.conversation()
    async with site.http.stream("GET", f"/conversations/{conversation.id}/events") as stream:
        text = (await stream.aread()).decode()
    assert text.startswith("retry: 1500\n\n")
    assert text.count(": ping\n\n") > 2
    assert site.converse.statistics().watchers == 0


async def test_stop__from_another_request_keeps_the_text(site: Site) -> None:
    conversation = await site.conversation()
    answer = (await say(site, conversation))["answer"]
    site.model.say("partial")
    async for _ in site.converse.watch_message(answer["id"]):
        break
    stopped = await site.http.post(
        f"/conversations/{conversation.id}/messages/{answer['id']}/stop", json={"reason": "enough"}
    )
    assert stopped.status_code == 200
    message = await wait_for_end(site, answer["id"])
    assert (message.status, message.content) == (MessageStatus.CANCELLED, "partial")
    assert message.stop_reason == "enough"
    again = await site.http.post(f"/conversations/{conversation.id}/stop", json={})
    assert again.json() == {"stopped": []}


async def test_stop__of_all_answers(site: Site) -> None:
    conversation = await site.conversation()
    answer = (await say(site, conversation))["answer"]
    stopped = await site.http.post(f"/conversations/{conversation.id}/stop", json={})
    assert [each["id"] for each in stopped.json()["stopped"]] == [answer["id"]]
    assert (await wait_for_end(site, answer["id"])).status is MessageStatus.CANCELLED


async def test_failure__is_safe_and_tried_again(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    conversation = await site.conversation()
    answer = (await say(site, conversation))["answer"]
    site.model.say("part", ValueError("secret key sk-123"))
    await wait_for_end(site, answer["id"])
    path = f"/conversations/{conversation.id}/messages/{answer['id']}"
    shown = (await site.http.get(path)).json()
    assert (shown["status"], shown["content"]) == ("failed", "part")
    assert shown["error"] == "The answer could not be completed."
    async with site.http.stream("GET", f"{path}/events") as stream:
        assert "sk-123" not in (await stream.aread()).decode()
    assert "sk-123" in caplog.text

    tried = await asyncio.gather(*(site.http.post(f"{path}/retry", json={}) for _ in range(3)))
    assert {each.status_code for each in tried} == {201}
    (second_id,) = {each.json()["answer"]["id"] for each in tried}
    assert tried[0].json()["answer"]["replaces"] == answer["id"]
    site.model.say("whole", None)
    assert (await wait_for_end(site, second_id)).content == "whole"
    assert len(site.model.asked) == 2


async def test_errors__are_shown_where_the_application_says_so(make_site: MakeSite) -> None:
    site = await make_site(show_errors=True)
    conversation = await site.conversation()
    answer = (await say(site, conversation))["answer"]
    site.model.say(ValueError("The model is tired."))
    await wait_for_end(site, answer["id"])
    shown = await site.http.get(f"/conversations/{conversation.id}/messages/{answer['id']}")
    assert shown.json()["error"] == "The model is tired."


async def test_retry__only_of_the_last_answer_that_has_ended(site: Site) -> None:
    conversation = await site.conversation()
    found = await say(site, conversation)
    base = f"/conversations/{conversation.id}/messages"

    async def refused(message_id: str) -> str:
        answer = await site.http.post(f"{base}/{message_id}/retry", json={})
        assert answer.status_code == 409
        message: str = answer.json()["error"]["message"]
        return message

    assert "being written" in await refused(found["answer"]["id"])
    assert "Only an answer" in await refused(found["message"]["id"])
    site.model.say("one", None)
    await wait_for_end(site, found["answer"]["id"])
    await say(site, conversation, "And then?")
    assert "last answer" in await refused(found["answer"]["id"])


async def test_history__comes_in_pages(site: Site) -> None:
    conversation = await site.conversation()
    for number in range(5):
        await conversation.create_user_message(str(number))
    path, before, found = f"/conversations/{conversation.id}/messages", None, []
    while True:
        params = {"limit": 2} | ({} if before is None else {"before": before})
        page = (await site.http.get(path, params=params)).json()
        found.append([each["content"] for each in page["messages"]])
        before = page["before"]
        if before is None:
            break
    assert found == [["3", "4"], ["1", "2"], ["0"]]


async def test_roles__of_the_system_and_of_tools_are_not_shown(make_site: MakeSite) -> None:
    site, open_site = await make_site(), await make_site(roles=["system", "user"])
    conversation = await site.conversation()
    hidden = await conversation.start_streaming_message("system")
    await hidden.append_chunk("Our ")
    shown = await conversation.create_user_message("Hello")
    path = f"/conversations/{conversation.id}"
    history = (await site.http.get(f"{path}/messages")).json()
    assert [each["id"] for each in history["messages"]] == [str(shown.id)]
    # Events of a message that was created before the stream began are hidden, too.
    async with site.http.stream("GET", f"{path}/events", params={"after": history["cursor"]}) as s:
        await hidden.append_chunk("secret")
        await hidden.complete_streaming()
        await conversation.create_user_message("Anybody?")
        sent = await anext(read_events(s))
        assert (sent.event, sent.data["content"]) == ("message.created", "Anybody?")
    assert (await site.http.get(f"{path}/messages/{hidden.id}")).status_code == 404
    assert (await site.http.get(f"{path}/messages/{hidden.id}/events")).status_code == 404
    seen = (await open_site.http.get(f"{path}/messages/{hidden.id}")).json()
    assert seen["content"] == "Our secret"


async def test_metadata__is_what_the_application_shows(make_site: MakeSite) -> None:
    site = await make_site(show_metadata=lambda metadata: {"model": metadata.get("model")})
    conversation = await site.conversation()
    message = await conversation.create_user_message("Hi", {"model": "m", "cost": float("nan")})
    path = f"/conversations/{conversation.id}"
    shown = (await site.http.get(f"{path}/messages/{message.id}")).json()
    assert shown["metadata"] == {"model": "m"}


@pytest.mark.parametrize("shown", [False, True])
async def test_metadata__names_no_class_where_errors_are_not_shown(
    make_site: MakeSite, shown: bool
) -> None:
    site = await make_site(show_errors=shown)
    conversation = await site.conversation()
    message = await conversation.start_streaming_assistant()
    whole = {"error_type": "KeyError", "unstored": {"key": "object"}, "model": "m", "chunks": 0}
    await message.fail_streaming("secret", whole)
    path = f"/conversations/{conversation.id}/messages/{message.id}"
    async with site.http.stream("GET", f"{path}/events") as stream:
        end = (await read_all(stream))[-1]
    metadata = (await site.http.get(path)).json()["metadata"]
    assert metadata == end.data["metadata"]
    assert metadata == (whole if shown else {"model": "m", "chunks": 0})


@pytest.mark.parametrize("shown", [False, True])
async def test_stop__has_its_reason_where_errors_are_shown(
    make_site: MakeSite, shown: bool
) -> None:
    site = await make_site(show_errors=shown)
    conversation = await site.conversation()
    message = await conversation.start_streaming_assistant()
    await message.append_chunk("part")
    await message.cancel_streaming("flagged by a rule")
    path = f"/conversations/{conversation.id}/messages"
    run = f"run_{conversation.id}_{message.id}"
    told = [
        (await site.http.get(each)).text
        for each in (path, f"{path}/{message.id}", f"{path}/{message.id}/events")
    ]
    told.append((await site.http.get(f"/chat/{run}/stream")).text)
    assert ["flagged by a rule" in each for each in told] == [shown] * len(told)


async def test_numbers__that_json_lacks_become_null(site: Site) -> None:
    conversation = await site.conversation()
    await conversation.create_user_message("Hi", {"cost": float("nan")})
    path = f"/conversations/{conversation.id}"
    async with site.http.stream("GET", f"{path}/events") as stream:
        sent = await anext(read_events(stream))
    assert sent.data["metadata"] == {"cost": None}
    history = await site.http.get(f"{path}/messages")
    assert history.json()["messages"][0]["metadata"] == {"cost": None}


async def test_disconnect__never_ends_a_generation(site: Site) -> None:
    conversation = await site.conversation()
    answer = (await say(site, conversation))["answer"]
    path = f"/conversations/{conversation.id}/messages/{answer['id']}/events"
    site.model.say("a")
    async with site.http.stream("GET", path) as stream:
        await anext(read_events(stream))
    site.model.say("b", None)
    assert (await wait_for_end(site, answer["id"])).content == "ab"


async def test_html__in_the_text_of_a_model_is_data(site: Site) -> None:
    conversation = await site.conversation()
    answer = (await say(site, conversation))["answer"]
    nasty = "</script><script>alert(1)</script>\r\ndata: x\n\nevent: y\n\u2028"
    site.model.say(nasty, None)
    await wait_for_end(site, answer["id"])
    path = f"/conversations/{conversation.id}/messages/{answer['id']}"
    async with site.http.stream("GET", f"{path}/events") as stream:
        sent = await read_all(stream)
    assert [each.event for each in sent] == ["chunk.received", "message.completed"]
    assert sent[0].data["chunk"]["content"] == nasty
    for response in (await site.http.get(path), await site.http.get(f"{path}/events")):
        assert response.headers["content-type"].split(";")[0] in (
            "application/json",
            "text/event-stream",
        )


async def test_stream__of_a_conversation_that_is_deleted_ends(site: Site) -> None:
    conversation = await site.conversation()
    path = f"/conversations/{conversation.id}/events"
    async with site.http.stream("GET", path) as stream:
        await conversation.delete()
        async with asyncio.timeout(20):
            assert await read_all(stream) == []
    assert (await site.http.get(path)).status_code == 404


async def test_stream__is_authorized_again_after_its_lifetime(make_site: MakeSite) -> None:
    allowed = [True]
    site = await make_site(lifetime=0.1, authorize=lambda request, conversation: allowed[0])
    conversation = await site.conversation()
    path = f"/conversations/{conversation.id}/events"
    async with site.http.stream("GET", path) as stream:
        assert stream.status_code == 200
        allowed[0] = False
        await read_all(stream)
    assert (await site.http.get(path)).status_code == 404


async def test_head__of_a_stream_answers_at_once(site: Site) -> None:
    conversation = await site.conversation()
    answer = await site.http.head(f"/conversations/{conversation.id}/events")
    assert (answer.status_code, answer.content) == (200, b"")
    assert site.converse.statistics().watchers == 0


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"authorize": None}, "authorize"),
        ({"generations": 7}, "generations"),
        ({"roles": ["boss"]}, r"roles=\['boss'\].*'user'"),
        ({"roles": "user"}, "roles='user'.*a list of"),
        ({"show_metadata": ["model"]}, "show_metadata"),
        ({"show_parts": {"tool_call"}}, "show_parts"),
        ({"origins": ["chat.example.com"]}, "origins.*https://"),
        ({"origins": ["*"]}, "origins"),
        ({"origins": ["https://*.example.com"]}, "origins"),
        ({"origins": ["https://chat.example.com/page"]}, "origins"),
        ({"heartbeat": 0}, "heartbeat"),
        ({"max_body_bytes": 0}, "max_body_bytes"),
    ],
)
async def test_options__that_make_no_sense_are_refused(
    make_site: MakeSite, options: dict[str, Any], word: str
) -> None:
    with pytest.raises(ConfigurationError, match=word):
        await make_site(**options)


async def test_closed__facade_is_a_service_that_is_away(site: Site) -> None:
    conversation = await site.conversation()
    await site.converse.aclose()
    answer = await site.http.get(f"/conversations/{conversation.id}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")


async def test_history__passes_over_hidden_messages_and_what_was_replaced(site: Site) -> None:
    conversation = await site.conversation()
    await conversation.add_user_message("question")
    for number in range(60):
        await conversation.add_tool_call_message(f"call {number}")
        await conversation.add_tool_result_message(f"result {number}")
    instead: dict[str, str] = {}
    for number in range(4):
        answer = await conversation.create_assistant_message(f"answer {number}", instead)
        await conversation.add_tool_result_message("again")
        instead = {"replaces": str(answer.id)}
    path = f"/conversations/{conversation.id}/messages"
    whole = (await site.http.get(path)).json()
    assert whole["before"] is None
    assert [each["content"] for each in whole["messages"]] == [
        "question",
        *(f"answer {number}" for number in range(4)),
    ]
    newest = (await site.http.get(path, params={"limit": 1})).json()
    assert [each["content"] for each in newest["messages"]] == [
        f"answer {number}" for number in range(4)
    ]
    oldest = (await site.http.get(path, params={"limit": 1, "before": newest["before"]})).json()
    assert [each["content"] for each in oldest["messages"]] == ["question"]
    assert oldest["before"] is None


async def test_history__has_pages_with_exact_ends(site: Site) -> None:
    conversation = await site.conversation()
    for number in range(9):
        await conversation.add_user_message(str(number))
        answer = await conversation.create_assistant_message("old")
        await conversation.add_assistant_message(f"new {number}", {"replaces": str(answer.id)})
    path, before = f"/conversations/{conversation.id}/messages", None
    seen: list[str] = []
    while True:
        query = {"limit": 5} | ({} if before is None else {"before": before})
        page = (await site.http.get(path, params=query)).json()
        shown = [each["content"] for each in page["messages"] if each["content"] != "old"]
        assert len(shown) == 5 or page["before"] is None
        seen[:0] = shown
        before = page["before"]
        if before is None:
            break
    assert seen == [each for number in range(9) for each in (str(number), f"new {number}")]
