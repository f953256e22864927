"""What an append costs at chunk 100, 10,000 and 100,000 of a message: it is to be flat.

Three messages, one of each length, are appended to in turns, one chunk at a time. A round is two
pages of appends to each, so that it has two moves of chunks to a page in it.
"""

from collections.abc import Mapping

from benchmarks.figures import Figure, compare
from benchmarks.meters import Cost, Meter, Traffic
from benchmarks.settings import Setting
from converse_mongo import Conversation, Converse, Message
from converse_mongo.domain.validation import PAGE_CHUNKS

__all__ = ["run"]

LENGTHS = 100, 10_000, 100_000
APPENDS_PER_TURN = 32
APPENDS_PER_ROUND = 2 * PAGE_CHUNKS
TEXT = " token."
TARGET = 1.2


async def run(setting: Setting) -> list[Figure]:
    """Measures it."""
    traffic = Traffic()
    async with (
        setting.database() as database,
        Converse(
            setting.server.uri,
            database=database,
            client_options={"event_listeners": [traffic]},
        ) as converse,
    ):
        conversation = await converse.start_conversation()
        grown: dict[int, Message] = {}
        for length in LENGTHS[1:]:
            setting.note(f"a message of {length:,} chunks")
            grown[length] = await _message(conversation, _in_step(length))
        meter = Meter(setting.server, traffic)
        rounds = []
        for number in range(setting.rounds):
            setting.note(f"round {number + 1} of {setting.rounds}")
            # A short message would not be one any more after a few rounds; the others stay long.
            short = {LENGTHS[0]: await _message(conversation, LENGTHS[0])}
            rounds.append(await _round(meter, short | grown, number))
    return figures(rounds)


def _in_step(length: int) -> int:
    """The length from ``length`` on at which as much of a page is full as in the short message.

    What the turn of one costs is then what that of another costs at the same time.
    """
    return length + (LENGTHS[0] - length) % PAGE_CHUNKS


async def _message(conversation: Conversation, length: int) -> Message:
    message = await conversation.start_streaming_assistant()
    rest = length % PAGE_CHUNKS
    await message.append_chunks([TEXT] * (length - rest))
    for _ in range(rest):  # each has an append id, as what is embedded later has
        await message.append_chunk(TEXT)
    return message


async def _round(meter: Meter, messages: Mapping[int, Message], number: int) -> dict[int, Cost]:
    costs = {length: Cost() for length in messages}
    for turn in range(APPENDS_PER_ROUND // APPENDS_PER_TURN):
        shift = (number + turn) % len(messages)  # nobody always comes behind the same one
        order = list(messages)[shift:] + list(messages)[:shift]
        for length in order:
            message = messages[length]
            with meter.measure(costs[length]):
                for _ in range(APPENDS_PER_TURN):
                    await message.append_chunk(TEXT)
    return costs


def figures(rounds: list[dict[int, Cost]]) -> list[Figure]:
    """The figures of an append, each length against the shortest."""
    found = []
    for name, unit, attribute, scale in (
        ("commands", "per append", "commands", 1.0),
        ("bytes sent", "bytes", "sent", 1.0),
        ("bytes received", "bytes", "received", 1.0),
        ("server time", "µs", "server_seconds", 1e6),
        ("client time", "µs", "client_seconds", 1e6),
        ("time", "µs", "seconds", 1e6),
    ):
        if any(getattr(cost, attribute) is None for costs in rounds for cost in costs.values()):
            continue  # the server does not tell
        scale /= APPENDS_PER_ROUND
        series = {
            _label(length): [getattr(costs[length], attribute) * scale for costs in rounds]
            for length in LENGTHS
        }
        short = _label(LENGTHS[0])
        found += [
            compare(name, unit, series, of=_label(length), against=short, target=TARGET)
            for length in LENGTHS[1:]
        ]
    return found


def _label(length: int) -> str:
    return f"at chunk {length:,}"
