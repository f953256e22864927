// @ts-check
/** Requests: what is asked for, what is refused, and when it is tried again. */

const WORTH_TRYING_AGAIN = new Set([408, 425, 429]);
const LONGEST_WAIT = 30_000;
const LONGEST_ASKED_WAIT = 60_000;

export const DEFAULT_RETRY = 2_000;
export const DEFAULT_SILENCE = 45_000;

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
  constructor(message, status, code, wait = 0) {
    super(message);
    this.name = "ConverseError";
    this.status = status;
    this.code = code;
    this.wait = wait;
  }

  /** Whether to try again is any use. */
  get isTransient() {
    return this.status >= 500 || this.status < 400 || WORTH_TRYING_AGAIN.has(this.status);
  }
}

/**
 * Whether to try again is any use. What is no answer of a server is trouble of the network.
 *
 * @param {unknown} error
 */
export function isTransient(error) {
  return !(error instanceof ConverseError) || error.isTransient;
}

/**
 * Makes one request.
 *
 * @param {RequestOptions} options
 * @param {string} path Behind `options.url`.
 * @param {RequestInit} init
 */
export async function request(options, path, init) {
  const { headers, credentials } = options;
  const own = typeof headers === "function" ? await headers() : headers;
  // A function of its own: fetch may not be called as a method of another object.
  const send = options.fetch ?? globalThis.fetch;
  return await send(options.url.replace(/\/$/, "") + path, {
    ...init,
    headers: { .../** @type {Headers} */ (init.headers), ...own },
    credentials: credentials ?? "same-origin",
    cache: "no-store",
  });
}

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
export async function ask(options, path, { signal, body, patience = Infinity, onTrouble }) {
  const begun = performance.now();
  for (let failures = 1; ; failures += 1) {
    signal.throwIfAborted();
    let trouble;
    try {
      return await askOnce(options, path, body, signal);
    } catch (error) {
      trouble = asError(error);
    }
    signal.throwIfAborted();
    if (!isTransient(trouble)) throw trouble;
    const least = trouble instanceof ConverseError ? trouble.wait : 0;
    const pause = least + backOff(options.retry ?? DEFAULT_RETRY, failures);
    if (performance.now() - begun + pause > patience) throw trouble;
    onTrouble?.(trouble);
    await wait(pause, signal);
  }
}

/**
 * @param {RequestOptions} options
 * @param {string} path
 * @param {unknown} body
 * @param {AbortSignal} signal
 */
async function askOnce(options, path, body, signal) {
  const trying = new AbortController();
  const abort = () => trying.abort(signal.reason);
  const silence = options.silence ?? DEFAULT_SILENCE;
  const timer = setTimeout(() => trying.abort(new Error("The server did not answer.")), silence);
  if (body === undefined) signal.addEventListener("abort", abort);
  try {
    const response = await request(options, path, {
      signal: trying.signal,
      headers: body === undefined ? JSON_ACCEPTED : JSON_SENT,
      ...(body === undefined ? {} : { method: "POST", body: JSON.stringify(body) }),
    });
    if (!response.ok) throw await refusal(response);
    return await json(response);
  } finally {
    clearTimeout(timer);
    signal.removeEventListener("abort", abort);
  }
}

const JSON_ACCEPTED = { accept: "application/json" };
const JSON_SENT = { ...JSON_ACCEPTED, "content-type": "application/json" };

/** @param {Response} response */
async function json(response) {
  const type = response.headers.get("content-type") ?? "";
  if (type.startsWith("application/json")) return await response.json();
  await response.body?.cancel();
  // A page of a proxy, or of a network that wants its user to log in.
  throw new ConverseError(`The answer is no JSON, but ${type || "empty"}.`, 200, "no_json");
}

/**
 * The error that an answer stands for.
 *
 * @param {Response} response
 */
export async function refusal(response) {
  const wait = Math.min(askedWait(response.headers.get("retry-after")), LONGEST_ASKED_WAIT);
  let message = `The server answered with the status ${response.status}.`;
  let code = "unknown";
  try {
    const { error } = await response.json();
    message = String(error.message);
    code = String(error.code);
  } catch {
    // It is not the library that answered.
  }
  return new ConverseError(message, response.status, code, wait);
}

/**
 * Milliseconds that a `Retry-After` asks to wait, which has seconds or a date.
 *
 * @param {string | null} text
 */
function askedWait(text) {
  if (text === null || text.trim() === "") return 0;
  const seconds = Number(text);
  const wait = Number.isNaN(seconds) ? Date.parse(text) - Date.now() : seconds * 1000;
  return wait > 0 ? wait : 0;
}

/**
 * Milliseconds to wait after so many failures in a row: soon at first, then longer and longer, and
 * for each client another time, so that they do not all come back at once.
 *
 * @param {number} retry
 * @param {number} failures From 1 on.
 */
export function backOff(retry, failures) {
  return Math.random() * Math.min((retry / 4) * 2 ** Math.min(failures - 1, 20), LONGEST_WAIT);
}

/**
 * Waits; less if the network comes back, the page is looked at again, or nobody waits any more.
 *
 * @param {number} milliseconds
 * @param {AbortSignal} signal
 * @returns {Promise<void>}
 */
export function wait(milliseconds, signal) {
  return new Promise((resolve) => {
    const end = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", end);
      globalThis.removeEventListener?.("online", end);
      globalThis.document?.removeEventListener("visibilitychange", look);
      resolve();
    };
    const look = () => {
      if (globalThis.document?.visibilityState === "visible") end();
    };
    const timer = setTimeout(end, milliseconds);
    signal.addEventListener("abort", end);
    globalThis.addEventListener?.("online", end);
    globalThis.document?.addEventListener("visibilitychange", look);
    if (signal.aborted) end();
  });
}

/**
 * @param {unknown} error
 * @returns {Error}
 */
export function asError(error) {
  return error instanceof Error ? error : new Error(String(error));
}

/**
 * The path of a conversation, or of one of its messages.
 *
 * @param {string} conversationId
 * @param {string} [messageId]
 */
export function pathOf(conversationId, messageId) {
  const conversation = `/conversations/${encodeURIComponent(conversationId)}`;
  if (messageId === undefined) return conversation;
  return `${conversation}/messages/${encodeURIComponent(messageId)}`;
}
