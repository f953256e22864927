"""Errors: one root, and a class for each case that a caller can act on."""

from collections.abc import Mapping
from typing import Any

from bson import ObjectId

from converse_mongo.domain.types import MessageStatus


class ConverseError(Exception):
    """Something went wrong in converse_mongo."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip().partition("\n\n")[0])


class ConfigurationError(ConverseError):
    """Converse was given options, a client or packages that cannot work together."""


class ConverseClosedError(ConverseError):
    """This Converse is not open: use ``async with Converse(...)`` or await ``open()`` first.

    Attributes:
        was_opened: False if it was never opened, so that waiting does not help.
    """

    was_opened = True


class InvalidInputError(ConverseError, ValueError):
    """An argument cannot be stored; nothing was written."""


class InvalidIdError(InvalidInputError):
    """An id is neither an ObjectId nor its 24 hexadecimal digits."""


class InvalidContentError(InvalidInputError):
    """A text cannot be stored; nothing was written."""


class InvalidMetadataError(InvalidInputError):
    """Metadata cannot be stored in MongoDB; nothing was written."""


class InvalidCursorError(InvalidInputError):
    """An ``after`` is not the cursor of an event of this stream."""


class GenerationConflictError(InvalidInputError):
    """A ``generation_id`` belongs to another message of the conversation; nothing was written.

    Attributes:
        generation_id: The id.
        message_id: The message that has it.
    """

    def __init__(self, generation_id: str, message_id: ObjectId, difference: str) -> None:
        super().__init__(
            f"generation_id={generation_id!r} belongs to message {message_id} of this "
            f"conversation, which has {difference}: use an id once. Nothing was written."
        )
        self.generation_id = generation_id
        self.message_id = message_id


class NotFoundError(ConverseError, LookupError):
    """The document does not exist."""


class ConversationNotFoundError(NotFoundError):
    """The conversation does not exist."""

    def __init__(self, conversation_id: ObjectId) -> None:
        super().__init__(
            f"No conversation has the id {conversation_id}. "
            "Check the id and that the database name is the one it was started in."
        )
        self.conversation_id = conversation_id


class MessageNotFoundError(NotFoundError):
    """The message does not exist."""

    def __init__(self, message_id: ObjectId) -> None:
        super().__init__(
            f"No message has the id {message_id}. "
            "Check the id and that the database name is the one it was created in."
        )
        self.message_id = message_id


class ValueNotFoundError(NotFoundError):
    """A value of a part that was stored apart does not exist, or is damaged."""

    def __init__(self, message_id: ObjectId, reason: str) -> None:
        super().__init__(
            f"A large value of message {message_id} cannot be loaded. {reason} "
            "Load the message again, and see its parts."
        )
        self.message_id = message_id


class MessageNotStreamingError(ConverseError):
    """The message has ended; it accepts no chunk and no second end."""

    def __init__(self, message_id: ObjectId, status: MessageStatus) -> None:
        super().__init__(
            f"Message {message_id} is {status.value}, not streaming: nothing was changed. "
            "Start a new message to stream more text."
        )
        self.message_id = message_id
        self.status = status


class UnknownFormatError(ConverseError):
    """A later version of converse_mongo wrote to the message; nothing was changed.

    Attributes:
        message_id: The message.
        format: The format of the message, which this version does not know.
    """

    def __init__(self, message_id: ObjectId, found: object) -> None:
        super().__init__(
            f"Message {message_id} has the format {found!r}, which this version of converse_mongo "
            "does not know: upgrade it here, too. Nothing was changed."
        )
        self.message_id = message_id
        self.format = found


class MessageQueuedError(ConverseError):
    """The message is queued: only a worker that takes it from its queue writes to it.

    Attributes:
        message_id: The message.
        state: What it waits for, such as ``queued`` or ``waiting``.
    """

    def __init__(self, message_id: ObjectId, state: str) -> None:
        super().__init__(
            f"Message {message_id} is {state}: it has no writer, and gets one from its queue. Run "
            "a worker for the queue; start a message without a queue to write to it here. Nothing "
            "was written."
        )
        self.message_id = message_id
        self.state = state


class CallNotPendingError(ConverseError):
    """A tool call does not wait for this answer, such as since somebody else has answered it.

    Attributes:
        message_id: The message.
        call_id: The id of the call.
        pending: The ids of the calls of the message that wait for an answer.
    """

    def __init__(self, message_id: ObjectId, call_id: str, pending: Mapping[str, str]) -> None:
        left = ", ".join(f"{name} (its {wanted})" for name, wanted in pending.items()) or "nothing"
        super().__init__(
            f"The call {call_id!r} of message {message_id} does not wait for this answer: it was "
            f"answered before, or never asked. The message waits for: {left}. Nothing was written."
        )
        self.message_id = message_id
        self.call_id = call_id
        self.pending = dict(pending)


class MessageTooLargeError(ConverseError):
    """The metadata and fields of a message exceed the size of a document."""

    def __init__(self, message_id: ObjectId) -> None:
        super().__init__(
            f"Message {message_id} would exceed the size of a document, without its chunks: this "
            "was not stored, earlier writes are. Keep large metadata elsewhere."
        )
        self.message_id = message_id


class ChunksNotLoadedError(ConverseError):
    """A listing leaves chunks out: use ``iter_chunks()``, or ``get_message()`` for all at once."""


class ProtectedFieldError(ConverseError):
    """A field that only the library's own methods may write was changed by hand."""


class StoreUnavailableError(ConverseError):
    """MongoDB did not answer, and the library gave up.

    Attributes:
        append_id: For an append, the id to pass as ``append_id`` to retry the same append; it is
            stored once even if the first attempt reached the server. Otherwise ``None``.
        appended: For an ``append_chunks`` of several writes, the number of its contents that are
            stored; the append to retry begins behind them.
    """

    def __init__(self, message: str, append_id: ObjectId | None = None) -> None:
        super().__init__(message)
        self.append_id = append_id
        self.appended = 0


class StreamStoppedError(ConverseError):
    """A stop of this stream was requested.

    Attributes:
        message_id: The message, which ends ``cancelled`` with its text so far.
        reason: The reason of the request, or ``None``.
    """

    def __init__(self, message_id: ObjectId, reason: str | None) -> None:
        super().__init__(
            f"A stop of message {message_id} was requested{f' ({reason})' if reason else ''}: text "
            "that was written before is stored. Leave the generation loop."
        )
        self.message_id = message_id
        self.reason = reason


class WriterError(ConverseError):
    """A writer cannot continue.

    Attributes:
        message_id: The message.
        text: The text that the writer accepted and may not have stored.
    """

    def __init__(self, message: str, message_id: ObjectId, text: str = "") -> None:
        super().__init__(message)
        self.message_id = message_id
        self.text = text


class WriterExistsError(WriterError):
    """The message already has a writer."""


class WriterFencedError(WriterError):
    """Another writer took over the message, or it was ended as an orphan; nothing was stored."""


class WriterFailedError(WriterError):
    """A writer gave up; its cause says why, and ``text`` holds the text that it could not store.

    Attributes:
        unconfirmed: The chunks of its last write, which may or may not be stored: texts, and events
            of parts. ``append_chunks(error.unconfirmed, append_id=error.append_id)`` stores them
            once.
        append_id: The id of that write, or ``None`` without one.
        unsent: The text behind it, which is not stored. ``text`` is all text together.
        unsent_contents: All that is behind it: texts, and events of parts. ``append_chunks`` takes
            them as well, once those that are unconfirmed are stored.
    """

    append_id: ObjectId | None = None
    unsent: str = ""

    def __init__(self, message: str, message_id: ObjectId, text: str = "") -> None:
        super().__init__(message, message_id, text)
        self.unconfirmed: list[Any] = []
        self.unsent_contents: list[Any] = []


class TransactionsUnavailableError(ConfigurationError):
    """This server has no transactions: they need a replica set or a sharded cluster."""


class TransactionAbortedError(ConverseError):
    """MongoDB ended the transaction, usually because of a write conflict: run it again."""


class WatchError(ConverseError):
    """Watching cannot continue: the hub crashed, or the data was modified outside the library."""


class ProviderError(ConverseError):
    """The provider of a model reported an error in its stream, or the stream ended too early.

    Its text is that of the provider, and is stored as the error of the message. Name it in
    ``RetryPolicy(retry_on=…)`` for another attempt.

    Attributes:
        code: The code of the provider, or ``None``.
        provider: The name of the provider.
    """

    def __init__(self, message: str, *, code: str | None = None, provider: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.provider = provider


def is_own(error: BaseException) -> bool:
    """Returns whether the text of an error is that of this library."""
    return isinstance(error, ConverseError) and not isinstance(error, ProviderError)
