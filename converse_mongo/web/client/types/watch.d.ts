/** @typedef {import("./requests.js").RequestOptions} RequestOptions */
/**
 * @typedef {object} Chunk
 * @property {number} sequence From 0 on, without a gap.
 * @property {string} content
 * @property {string} created_at
 * @property {Record<string, unknown>} [metadata]
 */
/**
 * @typedef {object} Event
 * What happened, as the table of events in the documentation has it; these are always there.
 * @property {string} type Such as "chunk.received".
 * @property {string} id Where the stream stands behind it: what to pass as `after`.
 * @property {string} conversation_id
 * @property {string} [message_id]
 * @property {Chunk} [chunk] Of "chunk.received", as what follows is of some types.
 * @property {number} [position]
 * @property {"system" | "user" | "assistant" | "tool_call" | "tool_result"} [role]
 * @property {boolean} [streaming]
 * @property {string} [content]
 * @property {string | null} [replaces]
 * @property {Record<string, unknown>} [metadata]
 * @property {string} [created_at]
 * @property {string} [completed_at]
 * @property {number} [chunk_count]
 * @property {string} [error]
 * @property {string | null} [reason]
 * @property {number} [revision]
 */
/** @typedef {"connecting" | "open" | "waiting" | "closed"} State */
/**
 * @typedef {object} OwnWatchOptions
 * @property {string} conversationId
 * @property {string | null} [after] The id of the last event that you have; "now" for what comes.
 * @property {(event: Event) => void} onEvent Called with each event, each once and in order. If it
 *     throws, the watch is closed with that error.
 * @property {(state: State, error: Error | null) => void} [onState] Called when the state changes;
 *     with the error, while it waits to try again or is closed for one.
 * @property {AbortSignal} [signal] Closes the watch.
 */
/** @typedef {RequestOptions & OwnWatchOptions} WatchOptions */
/**
 * @typedef {object} Watch
 * @property {() => void} close Ends it; `onEvent` is not called any more.
 * @property {() => string | null} cursor The id of the last event that `onEvent` was given.
 * @property {Promise<Error | null>} closed Done when it has ended; with the error that ended it.
 */
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
export type RequestOptions = import("./requests.js").RequestOptions;
export type Chunk = {
    /**
     * From 0 on, without a gap.
     */
    sequence: number;
    content: string;
    created_at: string;
    metadata?: Record<string, unknown> | undefined;
};
/**
 * What happened, as the table of events in the documentation has it; these are always there.
 */
export type Event = {
    /**
     * Such as "chunk.received".
     */
    type: string;
    /**
     * Where the stream stands behind it: what to pass as `after`.
     */
    id: string;
    conversation_id: string;
    message_id?: string | undefined;
    /**
     * Of "chunk.received", as what follows is of some types.
     */
    chunk?: Chunk | undefined;
    position?: number | undefined;
    role?: "user" | "system" | "assistant" | "tool_call" | "tool_result" | undefined;
    streaming?: boolean | undefined;
    content?: string | undefined;
    replaces?: string | null | undefined;
    metadata?: Record<string, unknown> | undefined;
    created_at?: string | undefined;
    completed_at?: string | undefined;
    chunk_count?: number | undefined;
    error?: string | undefined;
    reason?: string | null | undefined;
    revision?: number | undefined;
};
export type State = "connecting" | "open" | "waiting" | "closed";
export type OwnWatchOptions = {
    conversationId: string;
    /**
     * The id of the last event that you have; "now" for what comes.
     */
    after?: string | null | undefined;
    /**
     * Called with each event, each once and in order. If it
     * throws, the watch is closed with that error.
     */
    onEvent: (event: Event) => void;
    /**
     * Called when the state changes;
     * with the error, while it waits to try again or is closed for one.
     */
    onState?: ((state: State, error: Error | null) => void) | undefined;
    /**
     * Closes the watch.
     */
    signal?: AbortSignal | undefined;
};
export type WatchOptions = RequestOptions & OwnWatchOptions;
export type Watch = {
    /**
     * Ends it; `onEvent` is not called any more.
     */
    close: () => void;
    /**
     * The id of the last event that `onEvent` was given.
     */
    cursor: () => string | null;
    /**
     * Done when it has ended; with the error that ended it.
     */
    closed: Promise<Error | null>;
};
