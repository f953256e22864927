"""The public names, which the package has as its own once one of them is used."""

from importlib.metadata import version

from converse_mongo.converse import Converse
from converse_mongo.documents.conversations import DOCUMENT_MODELS, Conversation
from converse_mongo.documents.listings import History, MessageList
from converse_mongo.documents.messages import Message
from converse_mongo.documents.pages import MessageChunkPage
from converse_mongo.documents.responding import Respond
from converse_mongo.documents.values import MessageValue
from converse_mongo.domain.chunks import ChunkLog, MessageChunk, PartChunk
from converse_mongo.domain.errors import (
    CallNotPendingError,
    ChunksNotLoadedError,
    ConfigurationError,
    ConversationNotFoundError,
    ConverseClosedError,
    ConverseError,
    GenerationConflictError,
    InvalidContentError,
    InvalidCursorError,
    InvalidIdError,
    InvalidInputError,
    InvalidMetadataError,
    MessageNotFoundError,
    MessageNotStreamingError,
    MessageQueuedError,
    MessageTooLargeError,
    NotFoundError,
    ProtectedFieldError,
    ProviderError,
    StoreUnavailableError,
    StreamStoppedError,
    TransactionAbortedError,
    TransactionsUnavailableError,
    UnknownFormatError,
    ValueNotFoundError,
    WatchError,
    WriterError,
    WriterExistsError,
    WriterFailedError,
    WriterFencedError,
)
from converse_mongo.domain.events import (
    ChunkReceived,
    ConversationCreated,
    ConversationDeleted,
    ConversationEvent,
    ConversationUpdated,
    Event,
    FinalEvent,
    MessageCancelled,
    MessageCompleted,
    MessageCreated,
    MessageEvent,
    MessageFailed,
    MessageQueued,
    MessageSnapshot,
    MessageStarted,
    MessageSuspended,
    MessageUpdated,
    OwnerEvent,
    WorkEvent,
)
from converse_mongo.domain.leases import Lease
from converse_mongo.domain.metadata import MAX_METADATA_BYTES
from converse_mongo.domain.open_calls import ToolOutput
from converse_mongo.domain.owners import Owner
from converse_mongo.domain.part_events import PartDelta, PartEnd, PartEvent, PartSet, PartStart
from converse_mongo.domain.part_identity import PartIdentity
from converse_mongo.domain.part_log import PartLog
from converse_mongo.domain.parts import (
    Approval,
    CustomPart,
    DataPart,
    FilePart,
    Part,
    ReasoningPart,
    SourceDocumentPart,
    SourceUrlPart,
    StepPart,
    TextPart,
    ToolCallPart,
    ToolCallState,
    parts_of,
)
from converse_mongo.domain.queues import Queue
from converse_mongo.domain.retries import Retry, RetryPolicy
from converse_mongo.domain.stored_values import StoredValue
from converse_mongo.domain.types import (
    Granularity,
    MessageRole,
    MessageStatus,
    Retention,
    WatchMode,
)
from converse_mongo.domain.validation import (
    MAX_APPEND_BYTES,
    MAX_APPEND_CHUNKS,
    MAX_CHUNK_BYTES,
    MAX_CONTENT_BYTES,
    MAX_REASON_BYTES,
    MAX_VALUE_BYTES,
)
from converse_mongo.domain.work import PendingCall, Work, WorkState
from converse_mongo.store import Transaction
from converse_mongo.store.queues import QueueStatistics
from converse_mongo.watching.hub import WatchStatistics
from converse_mongo.watching.owner_watcher import OwnerWatcher
from converse_mongo.watching.watcher import Watcher
from converse_mongo.working.worker import Worker, WorkerStatistics
from converse_mongo.writing.parts import NestedWriter, Step, ToolCall
from converse_mongo.writing.writer import MessageWriter, WriterStatistics

__version__ = version("converse-mongo")

HubStatistics = WatchStatistics
"""The former name of :class:`WatchStatistics`."""

__all__ = [
    "DOCUMENT_MODELS",
    "MAX_APPEND_BYTES",
    "MAX_APPEND_CHUNKS",
    "MAX_CHUNK_BYTES",
    "MAX_CONTENT_BYTES",
    "MAX_METADATA_BYTES",
    "MAX_REASON_BYTES",
    "MAX_VALUE_BYTES",
    "Approval",
    "CallNotPendingError",
    "ChunkLog",
    "ChunkReceived",
    "ChunksNotLoadedError",
    "ConfigurationError",
    "Conversation",
    "ConversationCreated",
    "ConversationDeleted",
    "ConversationEvent",
    "ConversationNotFoundError",
    "ConversationUpdated",
    "Converse",
    "ConverseClosedError",
    "ConverseError",
    "CustomPart",
    "DataPart",
    "Event",
    "FilePart",
    "FinalEvent",
    "GenerationConflictError",
    "Granularity",
    "History",
    "HubStatistics",
    "InvalidContentError",
    "InvalidCursorError",
    "InvalidIdError",
    "InvalidInputError",
    "InvalidMetadataError",
    "Lease",
    "Message",
    "MessageCancelled",
    "MessageChunk",
    "MessageChunkPage",
    "MessageCompleted",
    "MessageCreated",
    "MessageEvent",
    "MessageFailed",
    "MessageList",
    "MessageNotFoundError",
    "MessageNotStreamingError",
    "MessageQueued",
    "MessageQueuedError",
    "MessageRole",
    "MessageSnapshot",
    "MessageStarted",
    "MessageStatus",
    "MessageSuspended",
    "MessageTooLargeError",
    "MessageUpdated",
    "MessageValue",
    "MessageWriter",
    "NestedWriter",
    "NotFoundError",
    "Owner",
    "OwnerEvent",
    "OwnerWatcher",
    "Part",
    "PartChunk",
    "PartDelta",
    "PartEnd",
    "PartEvent",
    "PartIdentity",
    "PartLog",
    "PartSet",
    "PartStart",
    "PendingCall",
    "ProtectedFieldError",
    "ProviderError",
    "Queue",
    "QueueStatistics",
    "ReasoningPart",
    "Respond",
    "Retention",
    "Retry",
    "RetryPolicy",
    "SourceDocumentPart",
    "SourceUrlPart",
    "Step",
    "StepPart",
    "StoreUnavailableError",
    "StoredValue",
    "StreamStoppedError",
    "TextPart",
    "ToolCall",
    "ToolCallPart",
    "ToolCallState",
    "ToolOutput",
    "Transaction",
    "TransactionAbortedError",
    "TransactionsUnavailableError",
    "UnknownFormatError",
    "ValueNotFoundError",
    "WatchError",
    "WatchMode",
    "WatchStatistics",
    "Watcher",
    "Work",
    "WorkEvent",
    "WorkState",
    "Worker",
    "WorkerStatistics",
    "WriterError",
    "WriterExistsError",
    "WriterFailedError",
    "WriterFencedError",
    "WriterStatistics",
    "__version__",
    "parts_of",
]
