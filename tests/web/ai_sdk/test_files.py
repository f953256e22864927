"""Files that pages of the AI SDK send: what is stored, what is refused, and how they come back."""

from base64 import b64encode
from typing import Any

import httpx
import pytest

from converse_mongo import Conversation, FilePart, PartIdentity, TextPart
from converse_mongo.web import Limits
from tests.web.conftest import STRANGER, MakeSite, Site

PNG = bytes(range(256))
LARGE = PNG * 2000
"""More than a message has itself: it is stored apart."""


def data_url(data: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{b64encode(data).decode()}"


def file(url: Any, **more: Any) -> dict[str, Any]:
    return {"type": "file", "mediaType": "image/png", "filename": "a.png", "url": url, **more}


async def ask(
    site: Site, conversation: Conversation, *parts: dict[str, Any], **more: Any
) -> httpx.Response:
    message = {"id": "q", "role": "user", "parts": list(parts), **more}
    return await site.http.post("/chat", json={"id": str(conversation.id), "messages": [message]})


async def shown(site: Site, conversation: Conversation) -> Any:
    """The parts of the first message, as pages of the SDK have them."""
    response = await site.http.get(f"/chat/{conversation.id}")
    assert response.status_code == 200
    return response.json()[0]["parts"]


TEXT = {"type": "text", "text": "What is this?"}
URL = "https://files.example.org/a.png?token=1"


@pytest.mark.parametrize(
    ("url", "size"),
    [
        (URL, None),
        ("/files/1", None),
        (data_url(PNG), len(PNG)),
        (data_url(b""), 0),
        ("data:text/plain;x=y;base64,aGk=", 2),
    ],
)
async def test_file__comes_back_as_it_was_sent(site: Site, url: str, size: int | None) -> None:
    conversation = await site.conversation()
    site.model.say("A picture", None)
    assert (await ask(site, conversation, file(url), TEXT)).status_code == 200
    assert await shown(site, conversation) == [file(url), TEXT]
    [question, _] = await conversation.messages()
    assert question.content == "What is this?"
    part = question.parts[-1]
    assert isinstance(part, FilePart)
    assert (part.url, part.media_type, part.name) == (url, "image/png", "a.png")
    assert part.size == size
    history = await site.http.get(f"/conversations/{conversation.id}/messages")
    [_, record] = history.json()["messages"][0]["parts"]
    assert record["fields"]["url"] == url
    asked = site.model.asked[0]
    assert asked.conversation_id == conversation.id


async def test_file__needs_no_text(site: Site) -> None:
    conversation = await site.conversation()
    site.model.say("A picture", None)
    for _ in range(2):
        assert (await ask(site, conversation, file(URL))).status_code == 200
    assert await shown(site, conversation) == [file(URL)]
    assert len(await conversation.messages()) == 2


async def test_file__that_is_large_is_stored_apart_and_can_be_read(site: Site) -> None:
    conversation = await site.conversation()
    site.model.say("A picture", None)
    assert (await ask(site, conversation, TEXT, file(data_url(LARGE)))).status_code == 200
    [question, answer] = await conversation.messages()
    [found, text] = await shown(site, conversation)
    path = f"/conversations/{conversation.id}/messages/{question.id}/files/1"
    assert (found, text) == (file(f"/api{path}"), TEXT)
    response = await site.http.get(path)
    assert (response.status_code, response.content) == (200, LARGE)
    assert response.headers["content-type"] == "image/png"
    assert response.headers["content-security-policy"] == "default-src 'none'; sandbox"
    assert response.headers["x-content-type-options"] == "nosniff"
    history = await site.http.get(f"/conversations/{conversation.id}/messages")
    [_, record] = history.json()["messages"][0]["parts"]
    assert set(record["values"]) == {"url"}
    assert (await site.http.get(path, headers=STRANGER)).status_code == 404
    other = await site.conversation()
    for wrong in (
        path.replace("/files/1", "/files/0"),
        path.replace("/files/1", "/files/2"),
        path.replace("/files/1", "/files/x"),
        path.replace("/files/1", "/files/" + "1" * 100),
        path.replace(str(question.id), str(answer.id)),
        path.replace(str(question.id), "f" * 24),
        path.replace(str(conversation.id), str(other.id)),
    ):
        assert (await site.http.get(wrong)).status_code == 404, wrong


async def test_file__that_runs_is_only_saved(site: Site) -> None:
    conversation = await site.conversation()
    for media_type, given in (
        ("text/html", "text/html"),
        ("image/*", "application/octet-stream"),
        ("text/html\r\nx: y", "application/octet-stream"),
    ):
        url = data_url(b"<script>", "x/y")
        message = await conversation.create_user_message("", parts=[FilePart(url, media_type)])
        number = message.parts[0].number
        path = f"/conversations/{conversation.id}/messages/{message.id}/files/{number}"
        response = await site.http.get(path)
        assert response.headers["content-type"].partition(";")[0] == given
        assert response.headers["content-disposition"] == "attachment"


async def test_file__that_is_hidden_or_an_address_cannot_be_read(make_site: MakeSite) -> None:
    def show_parts(part: PartIdentity) -> bool:
        return part.kind != "file"

    for site, url in (
        (await make_site(show_parts=show_parts), data_url(PNG)),
        (await make_site(), URL),
    ):
        conversation = await site.conversation()
        parts = [FilePart(url, "image/png"), TextPart("b")]
        message = await conversation.create_user_message("a", parts=parts)
        path = f"/conversations/{conversation.id}/messages/{message.id}/files/"
        for number in range(3):
            assert (await site.http.get(f"{path}{number}")).status_code == 404


async def test_files__that_cannot_be_stored_are_named_and_nothing_is(make_site: MakeSite) -> None:
    site = await make_site(limits=Limits(file_bytes=100))
    conversation = await site.conversation()
    good = file(URL)
    for parts, status, words in (
        ([file(data_url(b"x" * 101))], 413, "This file is too large: a.png image/png."),
        ([file(data_url(b"x" * 1_000_000))], 413, "This file is too large: a.png image/png."),
        ([good, file("data:image/png;base64,%%%%")], 400, "a.png image/png"),
        ([good, file("data:image/png,abc")], 400, "a.png image/png"),
        ([good, file("javascript:alert(1)")], 400, "a.png image/png"),
        ([good, file("JavaScript://x/%0aalert(1)")], 400, "a.png image/png"),
        ([good, file(" https://example.org")], 400, "a.png image/png"),
        ([good, file("file:///etc/passwd")], 400, "a.png image/png"),
        ([good, file("")], 400, "a.png image/png"),
        ([good, file(7)], 400, "a.png image/png"),
        ([good, file(URL, mediaType=7)], 400, "a.png"),
        ([good, file(URL, mediaType="text/html\r\n")], 400, "a.png text/html"),
        ([file("/" + "x" * 5000)], 413, "a.png image/png"),
        ([file(URL, filename="x" * 5000)], 413, "x" * 100),
        ([good] * 33, 413, "too many files"),
    ):
        response = await ask(site, conversation, TEXT, *parts)
        assert response.status_code == status, (parts, response.text)
        assert words in response.json()["error"]["message"], response.text
    assert await conversation.messages() == []
    site.model.say("Yes", None)
    at_the_limit = file(data_url(b"x" * 100))
    assert (await ask(site, conversation, TEXT, at_the_limit)).status_code == 200


async def test_files__of_one_message_that_are_too_large_together_are_refused(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("converse_mongo.domain.composing.MAX_CONTENT_BYTES", 5000)
    conversation = await site.conversation()
    response = await ask(site, conversation, TEXT, *[file(data_url(b"x" * 1000))] * 5)
    assert (response.status_code, response.json()["error"]["code"]) == (413, "too_large")
    assert await conversation.messages() == []


@pytest.mark.parametrize("data", [PNG, LARGE])
@pytest.mark.parametrize("trigger", ["submit-message", "regenerate-message"])
async def test_repeat__with_other_files_is_refused(site: Site, trigger: str, data: bytes) -> None:
    conversation = await site.conversation()
    site.model.say("A picture", None, "A picture", None, "A picture", None)
    sent = [file(data_url(data)), TEXT]
    assert (await ask(site, conversation, *sent)).status_code == 200
    reloaded = await shown(site, conversation)
    [question, _] = await conversation.messages()

    async def again(*parts: dict[str, Any], name: str = "q") -> httpx.Response:
        message = {"id": name, "role": "user", "parts": list(parts)}
        body = {"id": str(conversation.id), "messages": [message], "trigger": trigger}
        return await site.http.post("/chat", json=body)

    for parts in ([TEXT], [*sent, file(URL)], [file(data_url(data[:-1] + b"x")), TEXT]):
        refused = await again(*parts)
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "conflict"), parts
    assert (await again(*sent)).status_code == 200
    # A page that was loaded anew has the id of the message, and the path of a large file.
    assert (await again(*reloaded, name=str(question.id))).status_code == 200


async def test_repeat__without_the_files_that_a_page_does_not_see(make_site: MakeSite) -> None:
    site = await make_site(show_parts=lambda part: part.kind != "file")
    conversation = await site.conversation()
    site.model.say("A picture", None)
    assert (await ask(site, conversation, file(URL), TEXT)).status_code == 200
    reloaded = await shown(site, conversation)
    assert reloaded == [TEXT]
    assert (await ask(site, conversation, *reloaded)).status_code == 200
    assert (await ask(site, conversation, file(URL), TEXT)).status_code == 200
    assert (await ask(site, conversation, file(URL + "x"), TEXT)).status_code == 409
