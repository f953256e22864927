"""Prompts: what a model is told, and what was replaced it is never told."""

from collections.abc import Sequence

import pytest

from converse_mongo import Conversation, Converse, InvalidInputError, Message
from converse_mongo.web import prompt_messages, without_replaced


async def answer(
    conversation: Conversation, text: str, *, instead: Message | None = None, ends: str = "complete"
) -> Message:
    metadata = {} if instead is None else {"replaces": str(instead.id)}
    message = await conversation.start_streaming_assistant(metadata)
    if text:
        await message.append_chunk(text)
    if ends == "complete":
        return await message.complete_streaming()
    return await (message.fail_streaming("no") if ends == "fail" else message.cancel_streaming())


def said(messages: Sequence[Message]) -> list[str]:
    return [message.content for message in messages]


async def test_prompt__of_a_retry_ends_with_the_question(converse: Converse) -> None:
    conversation = await converse.start_conversation()
    await conversation.create_user_message("one")
    first = await answer(conversation, "bad")
    retried = await conversation.start_streaming_assistant({"replaces": str(first.id)})
    assert said(await prompt_messages(conversation, retried)) == ["one"]
    # Those before it do not say that the first one was replaced.
    before = await conversation.messages(before=retried.position)
    assert said(without_replaced(before)) == ["one", "bad"]
    assert said(without_replaced([*before, retried])) == ["one", ""]


@pytest.mark.parametrize("ends", ["complete", "fail", "cancel"])
@pytest.mark.parametrize("text", ["", "worse"])
async def test_prompt__has_nothing_that_was_replaced_whatever_replaced_it(
    converse: Converse, ends: str, text: str
) -> None:
    conversation = await converse.start_conversation()
    await conversation.create_user_message("one")
    first = await answer(conversation, "bad")
    second = await answer(conversation, text, instead=first, ends=ends)
    third = await answer(conversation, text, instead=second, ends=ends)
    now = await conversation.start_streaming_assistant({"replaces": str(third.id)})
    assert said(await prompt_messages(conversation, now)) == ["one"]
    await now.cancel_streaming()
    await conversation.create_user_message("two")
    now = await conversation.start_streaming_assistant()
    assert said(await prompt_messages(conversation, now)) == ["one", "two"]


async def test_prompt__leaves_out_what_failed_what_is_empty_and_tools(converse: Converse) -> None:
    conversation = await converse.start_conversation()
    await conversation.create_system_message("Be kind.")
    await conversation.create_user_message("one")
    await answer(conversation, "half a ", ends="cancel")
    await conversation.create_user_message("two")
    await answer(conversation, "broken", ends="fail")
    await answer(conversation, " \n", ends="complete")
    await conversation.create_tool_call_message("weather()")
    await conversation.create_tool_result_message("rain")
    await conversation.start_streaming_assistant()
    now = await conversation.start_streaming_assistant()
    await now.append_chunk("I ")
    await conversation.create_user_message("later")
    told = await prompt_messages(conversation, now)
    assert said(told) == ["Be kind.", "one", "half a ", "two"]
    told = await prompt_messages(conversation, now, roles=["user", "tool_result"])
    assert said(told) == ["one", "two", "rain"]


async def test_prompt__keeps_the_newest(converse: Converse) -> None:
    conversation = await converse.start_conversation()
    for number in range(120):
        await conversation.create_user_message(str(number))
    now = await conversation.start_streaming_assistant()
    assert said(await prompt_messages(conversation, now, 3)) == ["117", "118", "119"]
    assert len(await prompt_messages(conversation, now, limit=110)) == 110
    assert len(await prompt_messages(conversation, now)) == 120
    assert await prompt_messages(conversation, now, 0) == []
    with pytest.raises(InvalidInputError, match="limit"):
        await prompt_messages(conversation, now, -1)
    with pytest.raises(InvalidInputError, match="boss"):
        await prompt_messages(conversation, now, roles=["boss"])
