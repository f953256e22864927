from converse_mongo import Converse


async def test_smoke(converse: Converse) -> None:
    conversation = await converse.start_conversation()
    message = await conversation.start_streaming_assistant()
    await message.append_chunk("x")
    await message.complete_streaming()
    assert [event.type async for event in converse.watch_message(message.id)] == [
        "chunk.received",
        "message.completed",
    ]
