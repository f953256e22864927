"""The attempt of a worker, as the writer of its message knows it."""

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any, Protocol

from bson import ObjectId

from converse_mongo.domain.headers import MessageHeader


class Attempt(Protocol):
    """An attempt of a worker at a message, whose lease it holds.

    The worker decides what becomes of the message, unless its writer ends it.
    """

    @property
    def state(self) -> MessageHeader:
        """The message as it was claimed."""

    @property
    def handing_over(self) -> bool:
        """True once the worker shuts down: another one is to go on soon."""

    @property
    def starts_over(self) -> bool:
        """True if the writer is to void what is stored."""

    async def wait_handing_over(self) -> None:
        """Waits until the worker shuts down."""

    def open(self, progress: Callable[[], int]) -> MessageHeader:
        """Gives the lease to a writer, which renews it from now on.

        Args:
            progress: Returns a number that grows with what the writer accepts.

        Raises:
            WriterError: There was a writer, or the attempt is over.
        """

    def close(self, *, has_ended: bool) -> None:
        """Takes the lease back from the writer, which has closed.

        Args:
            has_ended: True if the writer has ended the message.
        """

    def note_progress(self) -> None:
        """Notes that there is progress."""

    def keeps(self, error: BaseException) -> bool:
        """Returns whether the worker decides what an error means, so that it ends nothing yet."""

    async def hand_over(self, checkpoint: Mapping[str, Any] | None) -> None:
        """Gives the message back to its queue, for another worker at once."""

    def check_suspend(
        self, checkpoint: Mapping[str, Any] | None, asked_by: ObjectId | None
    ) -> None:
        """Checks that the message can wait for people.

        Args:
            checkpoint: What the next attempt is to know.
            asked_by: The holder of the lease that last appended something behind which calls wait.

        Raises:
            InvalidInputError: The next attempt would void what it waits for, or would be the same
                as this one, which has asked for nothing, and so on for ever.
        """

    async def suspend(self, checkpoint: Mapping[str, Any] | None, expires: float | None) -> bool:
        """Has the message wait for people; ``False`` if all of its calls were answered already."""


current: ContextVar[Attempt | None] = ContextVar("attempt", default=None)
"""The attempt that the application generates in, so that each copy of its message has it."""


def attempt_at(key: Mapping[str, Any]) -> Attempt | None:
    """Returns the attempt that the caller generates in, if it is at this message."""
    attempt = current.get()
    return attempt if attempt is not None and attempt.state.key == key else None
