"""What the calls of the library cost: commands, and bytes of their BSON, of each kind of call.

These are the figures of the cost model. They do not depend on how fast the server is.
"""

from benchmarks.figures import Figure, single
from benchmarks.meters import Cost, Meter, Traffic
from benchmarks.settings import Setting
from converse_mongo import Conversation, Converse, Message
from converse_mongo.domain.headers import message_key
from converse_mongo.domain.validation import PAGE_CHUNKS

__all__ = ["run"]

TEXT = " token."
MORE = 100
"""Chunks in one append, to tell what each further one costs."""


async def run(setting: Setting) -> list[Figure]:
    """Measures it."""
    traffic = Traffic()
    async with (
        setting.database() as database,
        Converse(
            setting.server.uri,
            database=database,
            change_streams=False,
            poll_interval=3600,
            # With another, what is due is merged in the background.
            retention="keep",
            client_options={"event_listeners": [traffic]},
        ) as converse,
    ):
        conversation = await converse.start_conversation()
        calls = Calls(Meter(setting.server, traffic), converse, conversation)
        await calls.start()
        await calls.append()
        await calls.write()
        await calls.merge()
        await calls.stop()
    return [figure for name, cost in calls.costs.items() for figure in _figures(name, cost)]


def _figures(name: str, cost: Cost) -> list[Figure]:
    return [
        single(f"{name}: commands", "commands", cost.commands),
        single(f"{name}: sent", "bytes", cost.sent),
        single(f"{name}: received", "bytes", cost.received),
    ]


class Calls:
    """Makes calls of each kind, and keeps what each cost."""

    def __init__(self, meter: Meter, converse: Converse, conversation: Conversation) -> None:
        self.costs: dict[str, Cost] = {}
        self._meter = meter
        self._converse = converse
        self._conversation = conversation

    def _new(self, name: str) -> Cost:
        self.costs[name] = Cost()
        return self.costs[name]

    async def _stream(self) -> Message:
        return await self._conversation.start_streaming_assistant()

    async def start(self) -> None:
        """Adds a message whole, and starts streaming ones."""
        await self._conversation.add_user_message(TEXT)  # the first one is not typical
        with self._meter.measure(self._new("a message added whole")):
            await self._conversation.add_user_message(TEXT)
        with self._meter.measure(self._new("a streaming message is started")):
            await self._stream()
        with self._meter.measure(self._new("the same with a generation_id")):
            await self._conversation.start_streaming_assistant(generation_id="benchmark")

    async def append(self) -> None:
        """Appends by hand: one chunk, many, and enough of them for a page."""
        message = await self._stream()
        await message.append_chunk(TEXT)
        with self._meter.measure(self._new("an append by hand")):
            await message.append_chunk(TEXT)
        with self._meter.measure(self._new(f"an append by hand of {MORE + 1} chunks")):
            await message.append_chunks([TEXT] * (MORE + 1))
        message = await self._stream()
        await message.append_chunks([TEXT] * (PAGE_CHUNKS - 1))
        with self._meter.measure(self._new("an append by hand that fills a page")):
            await message.append_chunk(TEXT)

    async def write(self) -> None:
        """Enters with a writer, appends, and ends."""
        message = await self._stream()
        writer = message.writer()
        with self._meter.measure(self._new("a writer enters")):
            await writer.__aenter__()
        key = message_key(message.id, message.conversation_id, message.log_id)
        store, lease = message.store(), (await self._converse.get_message(message.id)).lease
        assert lease is not None  # noqa: S101
        with self._meter.measure(self._new("a heartbeat of a silent writer")):
            await store.leases.renew(key, lease)
        await writer.write(TEXT)
        await writer.flush()
        with self._meter.measure(self._new("an append by a writer")):
            await writer.write(TEXT)
            await writer.flush()
        with self._meter.measure(self._new("the end")):
            await writer.__aexit__(None, None, None)

    async def merge(self) -> None:
        """Ends a message whose chunks are merged."""
        message = await self._conversation.start_streaming_assistant(retention="compact")
        await message.append_chunk(TEXT)
        with self._meter.measure(self._new("the end by hand, merging the chunks")):
            await message.complete_streaming()

    async def stop(self) -> None:
        """Stops a message, by its id, that a writer has."""
        message = await self._stream()
        async with message.writer() as writer:
            await writer.write(TEXT)
            await writer.flush()
            with self._meter.measure(self._new("a stop by the id of the message")):
                await self._converse.request_stop(message.id)
