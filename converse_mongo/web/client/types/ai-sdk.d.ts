/**
 * @typedef {object} OwnTransportOptions
 * @property {string} [api] Where the endpoints are; by default "/api/chat".
 * @property {number} [patience] Milliseconds for which loading, sending, and stopping are tried
 *     again after errors that may pass; by default 60,000.
 */
/** @typedef {Partial<import("./requests.js").RequestOptions> & OwnTransportOptions} TransportOptions */
/**
 * @typedef {object} ChatRequest
 * What `useChat` asks for.
 * @property {string} chatId
 * @property {AbortSignal} [abortSignal]
 * @property {Record<string, string> | Headers} [headers] Sent beside those of the transport.
 * @property {object} [body] Sent beside what the endpoint reads.
 * @property {unknown} [metadata]
 */
/**
 * @typedef {object} SendOptions
 * @property {"submit-message" | "regenerate-message"} trigger
 * @property {string | undefined} messageId
 * @property {any[]} messages
 */
/**
 * @typedef {object} LoadOptions
 * @property {number} [limit] The most messages, from 1 to 200; by default 200.
 * @property {number | null} [before] The `before` of a page, to get the page before it.
 * @property {AbortSignal} [signal] Ends the tries.
 */
/**
 * @typedef {object} ChatPage
 * @property {any[]} messages UI messages, the oldest first.
 * @property {number | null} before The `before` of the page before this one; `null` on the first.
 */
/**
 * @typedef {object} ChatState
 * @property {string | null} resume What the page lacks begins here.
 * @property {string | null} run The answer that is being received, or was not received to its end.
 * @property {string | null} question The id of the message that was sent last.
 * @property {boolean} over Whether its answer was received to its end.
 * @property {boolean} stopped Whether the answer is to stop as soon as it has an id.
 * @property {boolean} sending Whether a message is being sent, or another answer asked for.
 */
/**
 * The transport of some chats. It sends the last message alone, continues a broken stream behind
 * what it has, and resumes what the messages of `load` lack.
 */
export class ConverseTransport {
    /** @param {TransportOptions} [options] */
    constructor(options?: TransportOptions);
    /** For the SDK: a resumed stream begins anew. */
    resumeStreamIsReplay: boolean;
    /**
     * Loads a page of messages, by default the newest: the `messages` to begin `useChat` with.
     *
     * @param {string} chatId
     * @param {LoadOptions} [options]
     * @returns {Promise<ChatPage>}
     * @throws {ConverseError} The server refused it.
     * @throws {Error} The server could not be reached, or `signal` was aborted.
     */
    load(chatId: string, { limit, before, signal }?: LoadOptions): Promise<ChatPage>;
    /**
     * Sends the last message, or asks for another answer. `useChat` calls it. A message that may have
     * arrived is sent again: it is stored and answered once.
     *
     * @param {SendOptions & ChatRequest} request
     * @returns {Promise<ReadableStream<any>>}
     * @throws {ConverseError} The server refused it.
     * @throws {Error} The server could not be reached.
     */
    sendMessages({ chatId, messages, trigger, messageId, abortSignal, headers, body }: SendOptions & ChatRequest): Promise<ReadableStream<any>>;
    /**
     * Resumes what the page lacks. `useChat` calls it.
     *
     * @param {ChatRequest} request
     * @returns {Promise<ReadableStream<any> | null>} `null` if it lacks nothing.
     * @throws {ConverseError} The server refused it.
     * @throws {Error} The server could not be reached.
     */
    reconnectToStream({ chatId, abortSignal, headers }: ChatRequest): Promise<ReadableStream<any> | null>;
    /**
     * Stops the answer that is being written, also if it has not begun yet. The `stop` of `useChat`
     * only ends the stream on the page.
     *
     * @param {string} chatId
     * @param {string} [reason] Stored with the answer.
     * @returns {Promise<unknown>}
     * @throws {ConverseError} The server refused it.
     * @throws {Error} The server could not be reached.
     */
    stop(chatId: string, reason?: string): Promise<unknown>;
    #private;
}
export type OwnTransportOptions = {
    /**
     * Where the endpoints are; by default "/api/chat".
     */
    api?: string | undefined;
    /**
     * Milliseconds for which loading, sending, and stopping are tried
     * again after errors that may pass; by default 60,000.
     */
    patience?: number | undefined;
};
export type TransportOptions = Partial<import("./requests.js").RequestOptions> & OwnTransportOptions;
/**
 * What `useChat` asks for.
 */
export type ChatRequest = {
    chatId: string;
    abortSignal?: AbortSignal | undefined;
    /**
     * Sent beside those of the transport.
     */
    headers?: Record<string, string> | Headers | undefined;
    /**
     * Sent beside what the endpoint reads.
     */
    body?: object | undefined;
    metadata?: unknown;
};
export type SendOptions = {
    trigger: "submit-message" | "regenerate-message";
    messageId: string | undefined;
    messages: any[];
};
export type LoadOptions = {
    /**
     * The most messages, from 1 to 200; by default 200.
     */
    limit?: number | undefined;
    /**
     * The `before` of a page, to get the page before it.
     */
    before?: number | null | undefined;
    /**
     * Ends the tries.
     */
    signal?: AbortSignal | undefined;
};
export type ChatPage = {
    /**
     * UI messages, the oldest first.
     */
    messages: any[];
    /**
     * The `before` of the page before this one; `null` on the first.
     */
    before: number | null;
};
export type ChatState = {
    /**
     * What the page lacks begins here.
     */
    resume: string | null;
    /**
     * The answer that is being received, or was not received to its end.
     */
    run: string | null;
    /**
     * The id of the message that was sent last.
     */
    question: string | null;
    /**
     * Whether its answer was received to its end.
     */
    over: boolean;
    /**
     * Whether the answer is to stop as soon as it has an id.
     */
    stopped: boolean;
    /**
     * Whether a message is being sent, or another answer asked for.
     */
    sending: boolean;
};
