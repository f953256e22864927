"""The ``generation_id``: one name, one message, one text."""

import asyncio
import itertools
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from beanie import Document, Insert, before_event
from pymongo.errors import DuplicateKeyError

from converse_mongo import (
    Conversation,
    Converse,
    FilePart,
    GenerationConflictError,
    InvalidInputError,
    Message,
    MessageRole,
    ToolCallPart,
)
from converse_mongo.store.positions import Added, Positions
from tests.conftest import Facade


async def test_same_id__with_the_same_text_is_the_same_message(converse: Converse) -> None:
    conversation = await converse.start_conversation()
    first = await conversation.create_user_message("Hi", generation_id="a")
    again = await conversation.create_user_message("Hi", {"more": 1}, generation_id="a")
    assert (again.id, again.metadata) == (first.id, {})
    assert len(await conversation.messages()) == 1


@pytest.mark.parametrize("role", [MessageRole.USER, MessageRole.ASSISTANT])
async def test_same_id__with_another_text_or_role_is_refused(
    converse: Converse, role: MessageRole
) -> None:
    conversation = await converse.start_conversation()
    first = await conversation.create_user_message("Hi", generation_id="a")
    text = "Hi" if role is MessageRole.ASSISTANT else "Bye"
    with pytest.raises(GenerationConflictError, match="Nothing was written") as caught:
        await conversation.create_message(role, text, generation_id="a")
    assert (caught.value.generation_id, caught.value.message_id) == ("a", first.id)
    assert isinstance(caught.value, InvalidInputError)
    assert [each.content for each in await conversation.messages()] == ["Hi"]


async def test_same_id__with_other_texts_at_once_stores_one(facade: Facade) -> None:
    first: Converse = await facade()
    second: Converse = await facade(database=first.database_name)
    conversation = await first.start_conversation()
    elsewhere: Conversation = await second.get_conversation(conversation.id)
    found = await asyncio.gather(
        *(
            each.create_user_message(f"{number}", generation_id="a")
            for number, each in enumerate([conversation, elsewhere] * 2)
        ),
        return_exceptions=True,
    )
    (stored,) = await conversation.messages()
    for number, each in enumerate(found):
        if str(number) == stored.content:
            assert not isinstance(each, BaseException)
        else:
            assert isinstance(each, GenerationConflictError)


async def test_same_id__of_a_message_that_is_deleted_meanwhile_is_added(
    facade: Facade, monkeypatch: pytest.MonkeyPatch
) -> None:
    first: Converse = await facade()
    conversation = await first.start_conversation()
    second: Converse = await facade(database=first.database_name)
    elsewhere = await second.get_conversation(conversation.id)
    add, insert, gone = Positions.add_message, Document.insert, list[Message]()

    async def later(self: Positions, *arguments: Any) -> Added:
        if not gone:  # it was looked for, and did not exist
            gone.append(elsewhere._make("user", None, {}, generation_id="a"))
            await gone[0].insert()
        return await add(self, *arguments)

    async def collide(self: Any, **options: Any) -> Any:
        try:
            return await insert(self, **options)
        except DuplicateKeyError:
            await gone[0].delete()
            raise

    monkeypatch.setattr(Positions, "add_message", later)
    monkeypatch.setattr(Document, "insert", collide)
    message = await conversation.create_user_message("Hi", generation_id="a")
    assert (gone[0].position, message.position) == (0, 1)
    assert [each.id for each in await conversation.messages()] == [message.id]


async def test_same_id__of_a_stream_finds_it_with_any_text(converse: Converse) -> None:
    conversation = await converse.start_conversation()
    message = await conversation.start_streaming_assistant(generation_id="a")
    await message.append_chunk("so far")
    assert (await conversation.start_streaming_assistant(generation_id="a")).content == "so far"
    with pytest.raises(GenerationConflictError):
        await conversation.create_assistant_message("so", generation_id="a")
    await message.complete_streaming()
    assert (await conversation.start_streaming_assistant(generation_id="a")).content == "so far"


async def test_same_id__with_other_parts_is_refused(converse: Converse) -> None:
    conversation = await converse.start_conversation()
    large = "x" * 300_000  # is stored apart
    file = FilePart("https://a/a.png", "image/png")
    call = ToolCallPart("f", "c", input={"$a": [1, None], "b": large}, output=large)
    first = await conversation.create_user_message("a", generation_id="a", parts=[file, call])
    again = await conversation.create_user_message("a", generation_id="a", parts=[file, call])
    assert again.id == first.id
    other = ToolCallPart("f", "c", input={"$a": [1, None], "b": large}, output="y" + large[1:])
    for parts in ([], [file], [call, file], [file, other]):
        with pytest.raises(GenerationConflictError, match="other parts"):
            await conversation.create_user_message("a", generation_id="a", parts=parts)
    assert len(await conversation.messages()) == 1


class Redacted(Message):
    """Is stored without numbers."""

    @before_event(Insert)
    def redact(self) -> None:
        self.content = self.content.replace("4711", "****")
        self.metadata["redacted"] = self.metadata.get("redacted", 0) + 1


async def test_same_id__of_a_text_that_a_hook_changes_is_the_same_message(facade: Facade) -> None:
    converse: Converse = await facade(message_model=Redacted)
    conversation = await converse.start_conversation()
    first = await conversation.create_user_message("My PIN is 4711", generation_id="a")
    assert first.content == "My PIN is ****"
    for text in ("My PIN is 4711", "My PIN is ****"):
        again = await conversation.create_user_message(text, generation_id="a")
        assert (again.id, again.content) == (first.id, "My PIN is ****")
    with pytest.raises(GenerationConflictError, match="another text"):
        await conversation.create_user_message("My PIN is 4712", generation_id="a")
    (stored,) = await conversation.messages()
    assert stored.metadata == {"redacted": 1}


class Numbered(Message):
    """Is stored with another text each time."""

    numbers: ClassVar[Iterator[int]] = itertools.count()

    @before_event(Insert)
    def number(self) -> None:
        self.content += f" {next(self.numbers)}"


async def test_new_id__of_a_text_that_a_hook_changes_is_no_conflict(facade: Facade) -> None:
    converse: Converse = await facade(message_model=Numbered)
    conversation = await converse.start_conversation()
    for name in ("a", "b"):
        message = await conversation.create_user_message("Hi", generation_id=name)
        assert message.content.startswith("Hi ")
    assert len(await conversation.messages()) == 2
