"""Files of questions: what is stored, what is refused, and which requests are the same."""

from typing import Any

import httpx
import pytest

from converse_mongo import Conversation, FilePart
from converse_mongo.web import Limits
from tests.web.ai_sdk.test_files import LARGE, PNG, URL, data_url
from tests.web.conftest import MakeSite, Site
from tests.web.helpers import wait_for_end


def file(url: Any, **more: Any) -> dict[str, Any]:
    return {"media_type": "image/png", "name": "a.png", "url": url, **more}


async def ask(
    site: Site, conversation: Conversation, *files: dict[str, Any], **more: Any
) -> httpx.Response:
    body = {"content": "What is this?", "files": list(files), **more}
    return await site.http.post(f"/conversations/{conversation.id}/messages", json=body)


def error_of(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("url", "size"),
    [(URL, None), ("/files/1", None), (data_url(PNG), len(PNG)), (data_url(b""), 0)],
)
async def test_file__is_stored_as_it_was_sent(site: Site, url: str, size: int | None) -> None:
    conversation = await site.conversation()
    response = await ask(site, conversation, file(url))
    assert response.status_code == 201
    [text, record] = response.json()["message"]["parts"]
    assert (text["text"], record["fields"]["url"]) == ("What is this?", url)
    [question, _] = await conversation.messages()
    [_, part] = question.parts
    assert isinstance(part, FilePart)
    assert (part.url, part.media_type, part.name, part.size) == (url, "image/png", "a.png", size)


async def test_file__needs_neither_a_text_nor_a_name(site: Site) -> None:
    conversation = await site.conversation()
    path = f"/conversations/{conversation.id}/messages"
    files = [{"url": URL, "media_type": "image/png"}]
    response = await site.http.post(path, json={"files": files})
    assert response.status_code == 201
    assert response.json()["message"]["content"] == ""
    bodies: list[Any] = [{}, {"content": " "}, {"files": []}, {"content": "", "files": []}]
    for empty in bodies:
        refused = await site.http.post(path, json=empty)
        assert error_of(refused) == (400, "The message is empty.")


async def test_files__that_cannot_be_stored_are_named_and_nothing_is(make_site: MakeSite) -> None:
    site = await make_site(limits=Limits(file_bytes=100))
    conversation = await site.conversation()
    good = file(URL)
    for files, status, words in (
        ([file(data_url(b"x" * 101))], 413, "This file is too large: a.png image/png."),
        ([good, file("javascript:alert(1)")], 400, "This file cannot be sent: a.png image/png."),
        ([good, file(URL, media_type="text/html\r\n")], 400, "This file cannot be sent: a.png"),
        ([{}], 400, "This file cannot be sent: without a name."),
        ([good] * 33, 413, "There are too many files."),
        (["x"], 400, "The request is invalid."),
        ("x", 400, "The request is invalid."),
    ):
        response = await ask(site, conversation, files=files)
        assert response.status_code == status, response.text
        assert words in response.json()["error"]["message"], response.text
    detail = (await ask(site, conversation, file(URL, media_type=7))).json()["error"]["detail"]
    assert detail == "media_type must be a media type, such as image/png."
    assert await conversation.messages() == []


async def test_files__of_one_message_that_are_too_large_together_are_refused(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("converse_mongo.domain.composing.MAX_CONTENT_BYTES", 5000)
    conversation = await site.conversation()
    response = await ask(site, conversation, *[file(data_url(b"x" * 1000))] * 5)
    assert (response.status_code, response.json()["error"]["code"]) == (413, "too_large")
    assert await conversation.messages() == []


@pytest.mark.parametrize("data", [PNG, LARGE])
async def test_repeat__with_other_files_is_refused(site: Site, data: bytes) -> None:
    conversation = await site.conversation()
    site.model.say("A picture", None)
    files = [file(data_url(data)), file(URL, name=None)]
    first = await ask(site, conversation, *files, request_id="r")
    assert first.status_code == 201
    await wait_for_end(site, first.json()["answer"]["id"])
    again = await ask(site, conversation, *files, request_id="r")
    assert again.json()["message"]["id"] == first.json()["message"]["id"]
    others: list[list[dict[str, Any]]] = [
        [],
        files[:1],
        files[::-1],
        [*files, file(URL)],
        [file(data_url(data[:-1] + b"x")), files[1]],
        [files[0], file(URL)],
        [files[0], file(URL + "x", name=None)],
        [files[0], file(URL, name=None, media_type="image/gif")],
    ]
    for other in others:
        refused = await ask(site, conversation, *other, request_id="r")
        assert error_of(refused)[1].startswith("This message was already sent with"), other
        assert refused.status_code == 409
    assert len(await conversation.messages()) == 2


async def test_repeat__of_what_was_redacted_since_is_the_same(site: Site) -> None:
    conversation = await site.conversation()
    site.model.say("A picture", None)
    first = (await ask(site, conversation, file(data_url(PNG)), request_id="r")).json()
    await wait_for_end(site, first["answer"]["id"])
    question = await conversation.get_message(first["message"]["id"])
    await question.redact_part(1)
    again = await ask(site, conversation, file(data_url(PNG)), request_id="r")
    assert again.status_code == 201, again.text
    assert again.json()["message"]["id"] == first["message"]["id"]
