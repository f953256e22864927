/**
 * Whether to try again is any use. What is no answer of a server is trouble of the network.
 *
 * @param {unknown} error
 */
export function isTransient(error: unknown): boolean;
/**
 * Makes one request.
 *
 * @param {RequestOptions} options
 * @param {string} path Behind `options.url`.
 * @param {RequestInit} init
 */
export function request(options: RequestOptions, path: string, init: RequestInit): Promise<Response>;
/**
 * @typedef {object} AskOptions
 * @property {AbortSignal} signal Ends the trying. A `GET` is broken off; a `POST` that is under way
 *     is not, so that what a user said last is not lost with the page that it was said on.
 * @property {unknown} [body] What to post, as JSON; without it, it is a `GET`.
 * @property {number} [patience] Milliseconds for which trying again is worth it; by default no end.
 * @property {(error: Error) => void} [onTrouble] Called when a try failed and another follows.
 */
/**
 * Asks for JSON, again and again while there is trouble that may pass. So it is only for requests
 * that may be repeated.
 *
 * @param {RequestOptions} options
 * @param {string} path Behind `options.url`.
 * @param {AskOptions} how
 * @returns {Promise<any>}
 * @throws {ConverseError} The server refused it.
 * @throws {Error} The server could not be reached, or `signal` was aborted.
 */
export function ask(options: RequestOptions, path: string, { signal, body, patience, onTrouble }: AskOptions): Promise<any>;
/**
 * The error that an answer stands for.
 *
 * @param {Response} response
 */
export function refusal(response: Response): Promise<ConverseError>;
/**
 * Milliseconds to wait after so many failures in a row: soon at first, then longer and longer, and
 * for each client another time, so that they do not all come back at once.
 *
 * @param {number} retry
 * @param {number} failures From 1 on.
 */
export function backOff(retry: number, failures: number): number;
/**
 * Waits; less if the network comes back, the page is looked at again, or nobody waits any more.
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
export const DEFAULT_RETRY: 2000;
export const DEFAULT_SILENCE: 45000;
/**
 * @typedef {object} RequestOptions
 * @property {string} url Where the routes are mounted, such as "/api"; "" for the root.
 * @property {Headers | (() => Headers | Promise<Headers>)} [headers] Sent with each request; a
 *     function is called for each.
 * @property {RequestCredentials} [credentials] By default "same-origin".
 * @property {typeof globalThis.fetch} [fetch]
 * @property {number} [silence] Milliseconds without a heartbeat after which a connection is
 *     presumed dead; by default 45,000. The server gives a sign every 15 seconds.
 * @property {number} [retry] Milliseconds: what waiting between tries begins with, until the
 *     server says otherwise; by default 2,000. The first wait is at most a quarter of it.
 */
/** @typedef {Record<string, string>} Headers */
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
export type AskOptions = {
    /**
     * Ends the trying. A `GET` is broken off; a `POST` that is under way
     * is not, so that what a user said last is not lost with the page that it was said on.
     */
    signal: AbortSignal;
    /**
     * What to post, as JSON; without it, it is a `GET`.
     */
    body?: unknown;
    /**
     * Milliseconds for which trying again is worth it; by default no end.
     */
    patience?: number | undefined;
    /**
     * Called when a try failed and another follows.
     */
    onTrouble?: ((error: Error) => void) | undefined;
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
     * Milliseconds without a heartbeat after which a connection is
     * presumed dead; by default 45,000. The server gives a sign every 15 seconds.
     */
    silence?: number | undefined;
    /**
     * Milliseconds: what waiting between tries begins with, until the
     * server says otherwise; by default 2,000. The first wait is at most a quarter of it.
     */
    retry?: number | undefined;
};
export type Headers = Record<string, string>;
