"""AI conversations in MongoDB, stored while they stream and watched live."""

from importlib.metadata import version

from converse_mongo._validation import (
    MAX_APPEND_BYTES,
    MAX_CHUNK_BYTES,
    MAX_CONTENT_BYTES,
    MAX_MESSAGE_BYTES,
    MAX_METADATA_BYTES,
)
from converse_mongo.chunks import ChunkLog, MessageChunk
from converse_mongo.conversations import DOCUMENT_MODELS, Conversation, MessageList, Owner
from converse_mongo.converse import Converse
from converse_mongo.errors import (
    AppendTooLargeError,
    ChunksNotLoadedError,
    ConfigurationError,
    ConversationNotFoundError,
    ConverseClosedError,
    ConverseError,
    InvalidContentError,
    InvalidCursorError,
    InvalidIdError,
    InvalidInputError,
    InvalidMetadataError,
    MessageNotFoundError,
    MessageNotStreamingError,
    MessageTooLargeError,
    NotFoundError,
    ProtectedFieldError,
    StoreUnavailableError,
    WatchError,
)
from converse_mongo.events import (
    ChunkReceived,
    ConversationCreated,
    ConversationEvent,
    Event,
    FinalEvent,
    MessageCompleted,
    MessageCreated,
    MessageEvent,
    MessageFailed,
    MessageUpdated,
)
from converse_mongo.hub import HubStatistics
from converse_mongo.messages import Message
from converse_mongo.types import MessageRole, MessageStatus, WatchMode
from converse_mongo.watching import Watcher

__version__ = version("converse-mongo")

__all__ = [
    "DOCUMENT_MODELS",
    "MAX_APPEND_BYTES",
    "MAX_CHUNK_BYTES",
    "MAX_CONTENT_BYTES",
    "MAX_MESSAGE_BYTES",
    "MAX_METADATA_BYTES",
    "AppendTooLargeError",
    "ChunkLog",
    "ChunkReceived",
    "ChunksNotLoadedError",
    "ConfigurationError",
    "Conversation",
    "ConversationCreated",
    "ConversationEvent",
    "ConversationNotFoundError",
    "Converse",
    "ConverseClosedError",
    "ConverseError",
    "Event",
    "FinalEvent",
    "HubStatistics",
    "InvalidContentError",
    "InvalidCursorError",
    "InvalidIdError",
    "InvalidInputError",
    "InvalidMetadataError",
    "Message",
    "MessageChunk",
    "MessageCompleted",
    "MessageCreated",
    "MessageEvent",
    "MessageFailed",
    "MessageList",
    "MessageNotFoundError",
    "MessageNotStreamingError",
    "MessageRole",
    "MessageStatus",
    "MessageTooLargeError",
    "MessageUpdated",
    "NotFoundError",
    "Owner",
    "ProtectedFieldError",
    "StoreUnavailableError",
    "WatchError",
    "WatchMode",
    "Watcher",
    "__version__",
]
