/**
 * Whether another try may succeed. Errors that are not responses are errors of the network.
 *
 * @param {unknown} error
 */
export function isTransient(error: unknown): boolean;
/**
 * Makes one request.
 *
 * @param {RequestOptions} options
 * @param {string} path Appended to `options.url`.
 * @param {RequestInit} init
 * @throws {Error} The server could not be reached, or the request was aborted.
 */
export function request(options: RequestOptions, path: string, init: RequestInit): Promise<Response>;
/**
 * @typedef {object} AskOptions
 * @property {AbortSignal} signal Ends the tries. It aborts a `GET`, but not a `POST` in progress,
 *     so that the last message is not lost when its page is closed.
 * @property {unknown} [body] The JSON value to post; without it, the request is a `GET`.
 * @property {number} [patience] Milliseconds for which it is tried again; by default without end.
 * @property {(error: Error) => void} [onTrouble] Called when a try failed and another follows.
 * @property {(response: Response) => void} [onResponse] Called with the response that succeeded.
 * @property {(response: Response) => Promise<any>} [read] Reads that response; by default as JSON.
 */
/**
 * Makes a request, and tries again after errors that may pass. It is only for requests that may be
 * repeated.
 *
 * @param {RequestOptions} options
 * @param {string} path Appended to `options.url`.
 * @param {AskOptions} how
 * @returns {Promise<any>}
 * @throws {ConverseError} The server refused it.
 * @throws {Error} The server could not be reached, or `signal` was aborted.
 */
export function ask(options: RequestOptions, path: string, how: AskOptions): Promise<any>;
/**
 * @param {Response} response
 * @param {string} type
 */
export function isOfType(response: Response, type: string): boolean;
/**
 * The error of a successful response of another kind: the page of a proxy, or of a network that
 * requires a login.
 *
 * @param {Response} response
 * @param {string} code
 */
export function unexpected(response: Response, code: string): Promise<ConverseError>;
/**
 * The error of a response that is not successful.
 *
 * @param {Response} response
 */
export function refusal(response: Response): Promise<ConverseError>;
/**
 * The wait after a number of failures in a row, in milliseconds: it grows, and is random, so that
 * clients do not all return at once.
 *
 * @param {number} retry
 * @param {number} failures At least 1.
 */
export function backOff(retry: number, failures: number): number;
/**
 * Waits; ends early when the network returns, the page becomes visible, or `signal` is aborted.
 *
 * @param {number} milliseconds
 * @param {AbortSignal} signal
 * @returns {Promise<void>}
 */
export function wait(milliseconds: number, signal: AbortSignal): Promise<void>;
/**
 * @param {unknown} error
 * @returns {Error}
 */
export function asError(error: unknown): Error;
/**
 * The path of a conversation, or of one of its messages.
 *
 * @param {string} conversationId
 * @param {string} [messageId]
 */
export function pathOf(conversationId: string, messageId?: string): string;
/**
 * An id as one segment of a path. Ids may come from the address of a page: whatever they are, the
 * path stays below its start, and the server answers that it does not know them.
 *
 * @param {string} id
 */
export function segmentOf(id: string): string;
export const DEFAULT_RETRY: 2000;
export const DEFAULT_SILENCE: 45000;
/**
 * @typedef {object} RequestOptions
 * @property {string} url Where the routes are mounted, such as "/api"; "" for the root.
 * @property {Headers | (() => Headers | Promise<Headers>)} [headers] Sent with each request; a
 *     function is called for each.
 * @property {RequestCredentials} [credentials] By default "same-origin".
 * @property {typeof globalThis.fetch} [fetch]
 * @property {number} [silence] Milliseconds without data after which a connection is presumed dead;
 *     by default 45,000. The server sends a heartbeat every 15 seconds.
 * @property {number} [retry] The base of the wait between tries in milliseconds, until the server
 *     sends another; by default 2,000. The first wait is at most a quarter of it.
 */
/** @typedef {Record<string, string>} Headers */
/** A request that the server refused. */
export class ConverseError extends Error {
    /**
     * @param {string} message A sentence for people.
     * @param {number} status The HTTP status of the response.
     * @param {string} code A code for programs, such as "not_found".
     * @param {number} wait Milliseconds that the server asked the client to wait.
     */
    constructor(message: string, status: number, code: string, wait?: number);
    status: number;
    code: string;
    wait: number;
    /** Whether another try may succeed. */
    get isTransient(): boolean;
}
export type AskOptions = {
    /**
     * Ends the tries. It aborts a `GET`, but not a `POST` in progress,
     * so that the last message is not lost when its page is closed.
     */
    signal: AbortSignal;
    /**
     * The JSON value to post; without it, the request is a `GET`.
     */
    body?: unknown;
    /**
     * Milliseconds for which it is tried again; by default without end.
     */
    patience?: number | undefined;
    /**
     * Called when a try failed and another follows.
     */
    onTrouble?: ((error: Error) => void) | undefined;
    /**
     * Called with the response that succeeded.
     */
    onResponse?: ((response: Response) => void) | undefined;
    /**
     * Reads that response; by default as JSON.
     */
    read?: ((response: Response) => Promise<any>) | undefined;
};
export type RequestOptions = {
    /**
     * Where the routes are mounted, such as "/api"; "" for the root.
     */
    url: string;
    /**
     * Sent with each request; a
     * function is called for each.
     */
    headers?: Headers | (() => Headers | Promise<Headers>) | undefined;
    /**
     * By default "same-origin".
     */
    credentials?: RequestCredentials | undefined;
    fetch?: typeof fetch | undefined;
    /**
     * Milliseconds without data after which a connection is presumed dead;
     * by default 45,000. The server sends a heartbeat every 15 seconds.
     */
    silence?: number | undefined;
    /**
     * The base of the wait between tries in milliseconds, until the server
     * sends another; by default 2,000. The first wait is at most a quarter of it.
     */
    retry?: number | undefined;
};
export type Headers = Record<string, string>;
