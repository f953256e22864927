"""What ``append_chunk`` costs beside the same ``update_one``, written by hand with the same driver.

Both use one client. Each round fills new messages, one for each way, in turns, up to the last chunk
before a page is moved: these are plain appends at all lengths that the embedded array ever has. The
next append of the library moves the page; the figures "with the move" have it in, spread over the
appends of a page. By hand nothing is ever moved. Nobody listens to the commands that are timed:
traffic is counted apart.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from benchmarks.figures import Figure, compare
from benchmarks.meters import Cost, Meter, Traffic
from benchmarks.raw import RawMessage, check_equal, open_raw_client
from benchmarks.settings import Setting
from converse_mongo import Conversation, Converse, Message
from converse_mongo.domain.validation import PAGE_CHUNKS
from converse_mongo.driver.clients import Client

__all__ = ["run"]

Append: TypeAlias = Callable[[str], Awaitable[Any]]

TURNS = 15
APPENDS_PER_TURN = 17
PLAIN_APPENDS = TURNS * APPENDS_PER_TURN  # with one more there are PAGE_CHUNKS
PAGES_PER_ROUND = 2
TEXT = " token."
LIBRARY = "append_chunk"
BY_HAND = "by hand"
LEAST = "by hand, no more than the order"
WAYS = LIBRARY, BY_HAND, LEAST
CLIENT_TARGET = 1.15
TIME_TARGET = 1.05


@dataclass(slots=True)
class Costs:
    """What the ways took in a round: the plain appends, and the one more that fills a page."""

    plain: dict[str, Cost] = field(default_factory=lambda: {way: Cost() for way in WAYS})
    last: dict[str, Cost] = field(default_factory=lambda: {way: Cost() for way in WAYS})


async def run(setting: Setting) -> list[Figure]:
    """Measures it."""
    assert PLAIN_APPENDS == PAGE_CHUNKS - 1  # noqa: S101 - else a page moves too early, or not
    timed, counted = [], []
    async with setting.database() as database:
        async with open_raw_client(setting.server) as client:
            setting.note("warming up")
            meter = Meter(setting.server, Traffic())
            await _round(client, database, meter, 0)
            for number in range(setting.rounds):
                setting.note(f"round {number + 1} of {setting.rounds}")
                timed.append(await _round(client, database, meter, number))
        traffic = Traffic()
        async with open_raw_client(setting.server, traffic) as client:
            setting.note("counting commands and bytes")
            counted.append(await _round(client, database, Meter(setting.server, traffic), 0))
    return [*_traffic_figures(counted), *_time_figures(timed)]


async def _round(client: Client, database: str, meter: Meter, number: int) -> Costs:
    costs = Costs()
    async with Converse(client, database=database, sweep_interval=None) as converse:
        conversation = await converse.start_conversation()
        for page in range(PAGES_PER_ROUND):
            await _fill(client[database].messages, conversation, meter, costs, number + page)
    return costs


async def _fill(
    collection: Any, conversation: Conversation, meter: Meter, costs: Costs, number: int
) -> None:
    """Fills a message in each way, in turns."""
    messages: dict[str, Message] = {
        way: await conversation.start_streaming_assistant() for way in WAYS
    }
    appends: Mapping[str, Append] = {
        LIBRARY: messages[LIBRARY].append_chunk,
        BY_HAND: RawMessage(collection, messages[BY_HAND]).append,
        LEAST: RawMessage(collection, messages[LEAST]).append_plainly,
    }
    for turn in range(TURNS):
        for way in _order(number + turn):
            append = appends[way]
            with meter.measure(costs.plain[way]):
                for _ in range(APPENDS_PER_TURN):
                    await append(TEXT)
    for way in _order(number):
        with meter.measure(costs.last[way]):
            await appends[way](TEXT)
    for way, message in messages.items():
        await check_equal(message, way, TEXT * PAGE_CHUNKS, PAGE_CHUNKS)


def _order(number: int) -> tuple[str, ...]:
    """The ways in an order in which nobody always comes behind the same one."""
    shift = number % len(WAYS)
    return WAYS[shift:] + WAYS[:shift]


def _traffic_figures(rounds: list[Costs]) -> list[Figure]:
    found = []
    for name, unit, attribute in (
        ("commands", "per append", "commands"),
        ("bytes sent", "bytes", "sent"),
        ("bytes received", "bytes", "received"),
    ):
        found += _figures(rounds, name, unit, attribute, 1.0, None)
    return found


def _time_figures(rounds: list[Costs]) -> list[Figure]:
    found = []
    for name, attribute, target in (
        ("server time", "server_seconds", None),
        ("client time", "client_seconds", CLIENT_TARGET),
        ("time", "seconds", TIME_TARGET),
    ):
        if any(getattr(cost, attribute) is None for costs in rounds for cost in _all(costs)):
            continue  # the server does not tell
        found += _figures(rounds, name, "µs", attribute, 1e6, target)
    return found


def _all(costs: Costs) -> list[Cost]:
    return [*costs.plain.values(), *costs.last.values()]


def _figures(
    rounds: list[Costs], name: str, unit: str, attribute: str, scale: float, target: float | None
) -> list[Figure]:
    """The figures of plain appends, and of all, each of them for one append."""
    plain = {
        way: [
            getattr(costs.plain[way], attribute) * scale / (PAGES_PER_ROUND * PLAIN_APPENDS)
            for costs in rounds
        ]
        for way in WAYS
    }
    all_of_page = {
        way: [
            (getattr(costs.plain[way], attribute) + getattr(costs.last[way], attribute))
            * (scale / (PAGES_PER_ROUND * PAGE_CHUNKS))
            for costs in rounds
        ]
        for way in WAYS
    }
    moved = f"{LIBRARY} with the move of a page"
    return [
        compare(name, unit, plain, of=LIBRARY, against=BY_HAND, target=target),
        compare(name, unit, plain, of=LIBRARY, against=LEAST),
        compare(
            name,
            unit,
            {moved: all_of_page[LIBRARY], BY_HAND: all_of_page[BY_HAND]},
            of=moved,
            against=BY_HAND,
        ),
    ]
