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
 * @typedef {object} Event
 * What happened, as the table of events in the documentation has it; these are always there.
 * @property {string} type Such as "chunk.received".
 * @property {string} id Where the stream stands behind it: what to pass as `after`.
 * @property {string} conversation_id
 * @property {string} [message_id]
 * @property {{sequence: number, content: string, created_at: string, metadata: object}} [chunk]
 */
/** @typedef {"connecting" | "open" | "waiting" | "closed"} State */
/**
 * @typedef {object} WatchOptions
 * @property {string} url Where the routes are mounted, such as "/api".
 * @property {string} conversationId
 * @property {string | null} [after] The id of the last event that you have; "now" for what comes.
 * @property {(event: Event) => void} onEvent Called with each event, each once and in order. If it
 *     throws, the watch is closed with that error.
 * @property {(state: State, error: Error | null) => void} [onState] Called when the state changes;
 *     with the error, while it waits to try again or is closed for one.
 * @property {Record<string, string> | (() => Record<string, string>)} [headers] Sent with each
 *     request; a function is called for each.
 * @property {RequestCredentials} [credentials] By default "same-origin".
 * @property {typeof fetch} [fetch]
 * @property {AbortSignal} [signal] Closes the watch.
 * @property {number} [silence] Milliseconds without a sign of life after which a connection is
 *     taken for dead; by default 45,000. The server gives a sign every 15 seconds.
 */
/**
 * @typedef {object} Watch
 * @property {() => void} close Ends it; `onEvent` is not called any more.
 * @property {() => string | null} cursor The id of the last event that `onEvent` was given.
 * @property {Promise<Error | null>} closed Done when it has ended; with the error that ended it.
 */
/** A request that the server refused. */
export class ConverseError extends Error {
    /**
     * @param {string} message What the server said, for people.
     * @param {number} status The status of the answer.
     * @param {string} code What the server said, for programs, such as "not_found".
     * @param {number} wait Milliseconds that the server asked to wait.
     */
    constructor(message: string, status: number, code: string, wait?: number);
    status: number;
    code: string;
    wait: number;
    /** Whether to try again is any use. */
    get isTransient(): boolean;
}
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
    chunk?: {
        sequence: number;
        content: string;
        created_at: string;
        metadata: object;
    } | undefined;
};
export type State = "connecting" | "open" | "waiting" | "closed";
export type WatchOptions = {
    /**
     * Where the routes are mounted, such as "/api".
     */
    url: string;
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
     * Sent with each
     * request; a function is called for each.
     */
    headers?: Record<string, string> | (() => Record<string, string>) | undefined;
    /**
     * By default "same-origin".
     */
    credentials?: RequestCredentials | undefined;
    fetch?: typeof fetch | undefined;
    /**
     * Closes the watch.
     */
    signal?: AbortSignal | undefined;
    /**
     * Milliseconds without a sign of life after which a connection is
     * taken for dead; by default 45,000. The server gives a sign every 15 seconds.
     */
    silence?: number | undefined;
};
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
