/** @typedef {import("./events.js").ServerSentEvent} ServerSentEvent */
/** @typedef {import("./requests.js").RequestOptions} RequestOptions */
/**
 * @typedef {object} Chunk
 * @property {number} sequence 0, 1, 2, … without a gap.
 * @property {string} content Text of the answer; empty if there is an `event`, or a `part`.
 * @property {string} created_at
 * @property {Record<string, unknown>} [metadata]
 * @property {number} [part] The part that it belongs to; absent if it begins one, or is text of the
 *     answer.
 * @property {string} [event] "start", "set", "end", "redact", "reset" or "metadata"; absent if it is
 *     text.
 * @property {Record<string, unknown>} [fields] What the event sets.
 * @property {string} [delta] Text of a part that is not text of the answer.
 * @property {number} [parent] The tool call whose sub-agent begins a part.
 * @property {Record<string, {size: number}>} [values] The sizes in bytes of fields that are too large
 *     to be sent, by name.
 */
/**
 * @typedef {object} PendingCall
 * A tool call that waits for people.
 * @property {string} call_id
 * @property {"approval" | "output"} wanted
 * @property {string} [expires_at] When an answer comes too late; absent for never.
 */
/**
 * @typedef {object} InMessage
 * @property {string} conversation_id
 * @property {string} message_id
 * @property {"system" | "user" | "assistant" | "tool_call" | "tool_result"} role
 */
/**
 * @typedef {object} Created
 * @property {"message.created"} type
 * @property {number} position
 * @property {boolean} streaming
 * @property {string} content Empty if it streams.
 * @property {readonly import("./parts.js").PartRecord[]} [parts] Absent if it has only text.
 * @property {Record<string, unknown>} metadata
 * @property {string | null} replaces The id of the answer that it replaces.
 * @property {string} created_at
 */
/**
 * @typedef {object} Ended
 * @property {number} chunk_count
 * @property {Record<string, unknown>} metadata
 * @property {string} completed_at
 */
/** @typedef {InMessage & Created} MessageCreated */
/** @typedef {InMessage & {type: "chunk.received", chunk: Chunk}} ChunkReceived */
/** @typedef {InMessage & {type: "message.updated", revision: number}} MessageUpdated */
/** @typedef {InMessage & {type: "message.queued", attempt: number}} MessageQueued */
/** @typedef {InMessage & {type: "message.started", attempt: number}} MessageStarted */
/** @typedef {InMessage & {type: "message.suspended", attempt: number, pending: readonly PendingCall[]}} MessageSuspended */
/**
 * @typedef {MessageQueued | MessageStarted | MessageSuspended} WorkEvent
 * News of a message that was queued for workers: the latest, and no place in the stream.
 */
/** @typedef {InMessage & Ended & {type: "message.completed"}} MessageCompleted */
/** @typedef {InMessage & Ended & {type: "message.failed", error: string}} MessageFailed */
/** @typedef {InMessage & Ended & {type: "message.cancelled", reason: string | null}} MessageCancelled */
/** @typedef {MessageCompleted | MessageFailed | MessageCancelled} FinalEvent */
/** @typedef {MessageCreated | ChunkReceived | MessageUpdated | WorkEvent | FinalEvent} ConversationEvent */
/**
 * @typedef {ConversationEvent & {id: string}} Event
 * An event; its id is the cursor behind it, to be passed as `after`. News of a queued message has that
 * of the event before it, or "".
 */
/**
 * @typedef {object} Named
 * @property {string} conversation_id
 * @property {string | null} title
 * @property {Record<string, unknown>} metadata
 */
/** @typedef {Named & {type: "conversation.created", created_at: string}} ConversationCreated */
/** @typedef {Named & {type: "conversation.updated", revision: number}} ConversationUpdated */
/** @typedef {{type: "conversation.deleted", conversation_id: string}} ConversationDeleted */
/** @typedef {ConversationCreated | ConversationUpdated | ConversationDeleted} ListEvent */
/**
 * @typedef {ListEvent | MessageCreated | WorkEvent | FinalEvent} OwnerEvent
 * A change of one of the conversations, or a message in it that was added or has ended, waits for
 * people, or goes on.
 */
/**
 * @typedef {object} StreamOpened
 * The stream was opened: from here on nothing is missed.
 * @property {"stream.opened"} type
 * @property {readonly MessageSuspended[]} waiting The answers that wait for people.
 */
/** @typedef {"connecting" | "open" | "waiting" | "closed"} State */
/**
 * @typedef {object} ConnectionOptions
 * @property {(state: State, error: Error | null) => void} [onState] Called when the state changes;
 *     with the error for which it is waiting or closed.
 * @property {AbortSignal} [signal] Closes the watch.
 */
/**
 * @typedef {object} OwnWatchOptions
 * @property {string} conversationId
 * @property {string | null} [after] A cursor: that of a page of history, or the id of the last
 *     event; "now" for new events only.
 * @property {(event: Event) => void} onEvent Called with each event, once and in order. If it
 *     throws, the watch is closed with that error.
 */
/**
 * @typedef {object} OwnOwnerWatchOptions
 * @property {(opened: StreamOpened) => void} onOpened Called each time that a stream was opened, also
 *     the first time: from here on nothing is missed. Load your list again, since earlier events are
 *     not sent.
 * @property {(event: OwnerEvent) => void} onEvent Called with each event. If this or `onOpened`
 *     throws, the watch is closed with that error.
 */
/** @typedef {RequestOptions & ConnectionOptions & OwnWatchOptions} WatchOptions */
/** @typedef {RequestOptions & ConnectionOptions & OwnOwnerWatchOptions} OwnerWatchOptions */
/**
 * @typedef {object} OwnerWatch
 * @property {() => void} close Ends it; `onEvent` is no longer called.
 * @property {Promise<Error | null>} closed Resolves when it has ended, with the error if any.
 */
/**
 * @typedef {object} OwnCursor
 * @property {() => string | null} cursor Returns the id of the last event passed to `onEvent`.
 */
/** @typedef {OwnerWatch & OwnCursor} Watch */
/**
 * Watches all messages of a conversation, until it is closed.
 *
 * @param {WatchOptions} options
 * @returns {Watch}
 */
export function watchConversation(options: WatchOptions): Watch;
/**
 * Watches one message to its end.
 *
 * @param {WatchOptions & {messageId: string}} options
 * @returns {Watch}
 */
export function watchMessage(options: WatchOptions & {
    messageId: string;
}): Watch;
/**
 * Whether an event is the end of its message.
 *
 * @param {ConversationEvent} event
 * @returns {event is FinalEvent}
 */
export function isEnd(event: ConversationEvent): event is FinalEvent;
/**
 * Watches all conversations of the user, until it is closed.
 *
 * Its stream has new events only, and no cursor: load your list again at each `onOpened`, the first
 * and those after a lost connection.
 *
 * @param {OwnerWatchOptions} options
 * @returns {OwnerWatch}
 */
export function watchOwner(options: OwnerWatchOptions): OwnerWatch;
/**
 * Keeps a connection, and makes another one when it is lost.
 *
 * @param {RequestOptions & ConnectionOptions} options
 * @param {() => string} target Returns the path behind `options.url`; called for each connection.
 * @param {(sent: ServerSentEvent) => boolean} take Receives an event; whether it was the last.
 * @returns {OwnerWatch}
 */
export function connect(options: RequestOptions & ConnectionOptions, target: () => string, take: (sent: ServerSentEvent) => boolean): OwnerWatch;
export type ServerSentEvent = import("./events.js").ServerSentEvent;
export type RequestOptions = import("./requests.js").RequestOptions;
export type Chunk = {
    /**
     * 0, 1, 2, … without a gap.
     */
    sequence: number;
    /**
     * Text of the answer; empty if there is an `event`, or a `part`.
     */
    content: string;
    created_at: string;
    metadata?: Record<string, unknown> | undefined;
    /**
     * The part that it belongs to; absent if it begins one, or is text of the
     * answer.
     */
    part?: number | undefined;
    /**
     * "start", "set", "end", "redact", "reset" or "metadata"; absent if it is
     * text.
     */
    event?: string | undefined;
    /**
     * What the event sets.
     */
    fields?: Record<string, unknown> | undefined;
    /**
     * Text of a part that is not text of the answer.
     */
    delta?: string | undefined;
    /**
     * The tool call whose sub-agent begins a part.
     */
    parent?: number | undefined;
    /**
     * The sizes in bytes of fields that are too large
     * to be sent, by name.
     */
    values?: Record<string, {
        size: number;
    }> | undefined;
};
/**
 * A tool call that waits for people.
 */
export type PendingCall = {
    call_id: string;
    wanted: "approval" | "output";
    /**
     * When an answer comes too late; absent for never.
     */
    expires_at?: string | undefined;
};
export type InMessage = {
    conversation_id: string;
    message_id: string;
    role: "system" | "user" | "assistant" | "tool_call" | "tool_result";
};
export type Created = {
    type: "message.created";
    position: number;
    streaming: boolean;
    /**
     * Empty if it streams.
     */
    content: string;
    /**
     * Absent if it has only text.
     */
    parts?: readonly import("./parts.js").PartRecord[] | undefined;
    metadata: Record<string, unknown>;
    /**
     * The id of the answer that it replaces.
     */
    replaces: string | null;
    created_at: string;
};
export type Ended = {
    chunk_count: number;
    metadata: Record<string, unknown>;
    completed_at: string;
};
export type MessageCreated = InMessage & Created;
export type ChunkReceived = InMessage & {
    type: "chunk.received";
    chunk: Chunk;
};
export type MessageUpdated = InMessage & {
    type: "message.updated";
    revision: number;
};
export type MessageQueued = InMessage & {
    type: "message.queued";
    attempt: number;
};
export type MessageStarted = InMessage & {
    type: "message.started";
    attempt: number;
};
export type MessageSuspended = InMessage & {
    type: "message.suspended";
    attempt: number;
    pending: readonly PendingCall[];
};
/**
 * News of a message that was queued for workers: the latest, and no place in the stream.
 */
export type WorkEvent = MessageQueued | MessageStarted | MessageSuspended;
export type MessageCompleted = InMessage & Ended & {
    type: "message.completed";
};
export type MessageFailed = InMessage & Ended & {
    type: "message.failed";
    error: string;
};
export type MessageCancelled = InMessage & Ended & {
    type: "message.cancelled";
    reason: string | null;
};
export type FinalEvent = MessageCompleted | MessageFailed | MessageCancelled;
export type ConversationEvent = MessageCreated | ChunkReceived | MessageUpdated | WorkEvent | FinalEvent;
/**
 * An event; its id is the cursor behind it, to be passed as `after`. News of a queued message has that
 * of the event before it, or "".
 */
export type Event = ConversationEvent & {
    id: string;
};
export type Named = {
    conversation_id: string;
    title: string | null;
    metadata: Record<string, unknown>;
};
export type ConversationCreated = Named & {
    type: "conversation.created";
    created_at: string;
};
export type ConversationUpdated = Named & {
    type: "conversation.updated";
    revision: number;
};
export type ConversationDeleted = {
    type: "conversation.deleted";
    conversation_id: string;
};
export type ListEvent = ConversationCreated | ConversationUpdated | ConversationDeleted;
/**
 * A change of one of the conversations, or a message in it that was added or has ended, waits for
 * people, or goes on.
 */
export type OwnerEvent = ListEvent | MessageCreated | WorkEvent | FinalEvent;
/**
 * The stream was opened: from here on nothing is missed.
 */
export type StreamOpened = {
    type: "stream.opened";
    /**
     * The answers that wait for people.
     */
    waiting: readonly MessageSuspended[];
};
export type State = "connecting" | "open" | "waiting" | "closed";
export type ConnectionOptions = {
    /**
     * Called when the state changes;
     * with the error for which it is waiting or closed.
     */
    onState?: ((state: State, error: Error | null) => void) | undefined;
    /**
     * Closes the watch.
     */
    signal?: AbortSignal | undefined;
};
export type OwnWatchOptions = {
    conversationId: string;
    /**
     * A cursor: that of a page of history, or the id of the last
     * event; "now" for new events only.
     */
    after?: string | null | undefined;
    /**
     * Called with each event, once and in order. If it
     * throws, the watch is closed with that error.
     */
    onEvent: (event: Event) => void;
};
export type OwnOwnerWatchOptions = {
    /**
     * Called each time that a stream was opened, also
     * the first time: from here on nothing is missed. Load your list again, since earlier events are
     * not sent.
     */
    onOpened: (opened: StreamOpened) => void;
    /**
     * Called with each event. If this or `onOpened`
     * throws, the watch is closed with that error.
     */
    onEvent: (event: OwnerEvent) => void;
};
export type WatchOptions = RequestOptions & ConnectionOptions & OwnWatchOptions;
export type OwnerWatchOptions = RequestOptions & ConnectionOptions & OwnOwnerWatchOptions;
export type OwnerWatch = {
    /**
     * Ends it; `onEvent` is no longer called.
     */
    close: () => void;
    /**
     * Resolves when it has ended, with the error if any.
     */
    closed: Promise<Error | null>;
};
export type OwnCursor = {
    /**
     * Returns the id of the last event passed to `onEvent`.
     */
    cursor: () => string | null;
};
export type Watch = OwnerWatch & OwnCursor;
