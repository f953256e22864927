"""What happened in a demonstration, as the parent heard of it."""

from dataclasses import dataclass, field

from converse_mongo.tools.demo.reports import Ended, Seen, Watching

__all__ = ["Recording", "StoredMessage", "ViewerLog", "Watch"]


@dataclass(slots=True)
class Watch:
    """One process that watched.

    Attributes:
        beginning: What it said when it began.
        seen: What it received, in the order it said so.
    """

    beginning: Watching
    seen: list[Seen] = field(default_factory=list)


@dataclass(slots=True)
class ViewerLog:
    """One viewer, which may have been several processes one after the other.

    Attributes:
        name: What it is called.
        manner: How it watched, for people.
        state: What it does now, for people.
        watches: Its processes.
        ended: The final event it received.
    """

    name: str
    manner: str = ""
    state: str = "waiting"
    watches: list[Watch] = field(default_factory=list)
    ended: Ended | None = None

    @property
    def seen(self) -> list[Seen]:
        """All it received, over all of its processes."""
        return [seen for watch in self.watches for seen in watch.seen]

    @property
    def count(self) -> int:
        """How many chunks it received."""
        return sum(len(watch.seen) for watch in self.watches)

    @property
    def text(self) -> str:
        """The text that a person in front of it has read."""
        return "".join([seen.content for seen in self.seen])


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """The message as it was read back in the end.

    Attributes:
        status: Its state.
        content: The content that ``get_message`` gave.
        sequences: The sequences of the chunks that ``iter_chunks`` gave.
        joined: Their texts, joined.
    """

    status: str
    content: str
    sequences: list[int]
    joined: str


@dataclass(slots=True)
class Recording:
    """Everything that the verdict needs.

    Attributes:
        text: The text that was to be streamed.
        total: The number of tokens in it.
        sent_at: For each sequence the moment before it was appended.
        finished: Whether the writer completed the message.
        viewers: Who watched.
        stored: What was found in the end.
    """

    text: str
    total: int
    sent_at: dict[int, float] = field(default_factory=dict)
    finished: bool = False
    viewers: list[ViewerLog] = field(default_factory=list)
    stored: StoredMessage | None = None
