// @ts-check
/** Requests: sending, errors, and retries. */

const TRANSIENT = new Set([408, 425, 429]);
const LONGEST_WAIT = 30_000;
const LONGEST_ASKED_WAIT = 60_000;

// For the user of a page, as the messages of the server are.
const UNREACHABLE = "The service could not be reached. Try again.";
const UNAVAILABLE = "The service is not available at the moment. Try again.";
const UNEXPECTED = "The service could not answer. Try again.";
const REFUSED = "The service refused the request.";
const NO_SESSION = "You are not signed in. Sign in, then try again.";

export const DEFAULT_RETRY = 2_000;
export const DEFAULT_SILENCE = 45_000;

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
  constructor(message, status, code, wait = 0) {
    super(message);
    this.name = "ConverseError";
    this.status = status;
    this.code = code;
    this.wait = wait;
  }

  /** Whether another try may succeed. */
  get isTransient() {
    return this.status >= 500 || this.status < 400 || TRANSIENT.has(this.status);
  }
}

/**
 * Whether another try may succeed. Errors that are not responses are errors of the network.
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
 * @param {string} path Appended to `options.url`.
 * @param {RequestInit} init
 * @throws {Error} The server could not be reached, or the request was aborted.
 */
export async function request(options, path, init) {
  const { headers, credentials } = options;
  const own = typeof headers === "function" ? await headers() : headers;
  // Kept in a variable: fetch must not be called as a method of another object.
  const send = options.fetch ?? globalThis.fetch;
  try {
    return await send(options.url.replace(/\/$/, "") + path, {
      ...init,
      headers: { .../** @type {Headers} */ (init.headers), ...own },
      credentials: credentials ?? "same-origin",
      cache: "no-store",
    });
  } catch (error) {
    // Browsers report all network errors so, each in its own words.
    throw error instanceof TypeError ? new Error(UNREACHABLE, { cause: error }) : error;
  }
}

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
export async function ask(options, path, how) {
  const { signal, patience = Infinity, onTrouble } = how;
  const begun = performance.now();
  for (let failures = 1; ; failures += 1) {
    signal.throwIfAborted();
    let trouble;
    try {
      return await askOnce(options, path, how);
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
 * @param {AskOptions} how
 */
async function askOnce(options, path, { body, signal, onResponse, read = json }) {
  const trying = new AbortController();
  const abort = () => trying.abort(signal.reason);
  const silence = options.silence ?? DEFAULT_SILENCE;
  const timer = setTimeout(() => trying.abort(new Error(UNREACHABLE)), silence);
  if (body === undefined) signal.addEventListener("abort", abort);
  try {
    const response = await request(options, path, {
      signal: trying.signal,
      headers: body === undefined ? JSON_ACCEPTED : JSON_SENT,
      ...(body === undefined ? {} : { method: "POST", body: JSON.stringify(body) }),
    });
    if (!response.ok) throw await refusal(response);
    onResponse?.(response);
    return await read(response);
  } finally {
    clearTimeout(timer);
    signal.removeEventListener("abort", abort);
  }
}

const JSON_ACCEPTED = { accept: "application/json" };
const JSON_SENT = { ...JSON_ACCEPTED, "content-type": "application/json" };

/** @param {Response} response */
async function json(response) {
  if (isOfType(response, "application/json")) return await response.json();
  throw await unexpected(response, "no_json");
}

/**
 * @param {Response} response
 * @param {string} type
 */
export function isOfType(response, type) {
  return (response.headers.get("content-type") ?? "").startsWith(type);
}

/**
 * The error of a successful response of another kind: the page of a proxy, or of a network that
 * requires a login.
 *
 * @param {Response} response
 * @param {string} code
 */
export async function unexpected(response, code) {
  await response.body?.cancel();
  return new ConverseError(UNEXPECTED, response.status, code);
}

/**
 * The error of a response that is not successful.
 *
 * @param {Response} response
 */
export async function refusal(response) {
  const wait = Math.min(askedWait(response.headers.get("retry-after")), LONGEST_ASKED_WAIT);
  const refused = response.status === 401 ? NO_SESSION : REFUSED;
  let message = response.status >= 500 ? UNAVAILABLE : refused;
  let code = "unknown";
  try {
    const { error } = await response.json();
    message = String(error.message);
    code = String(error.code);
  } catch {
    // The response is not from the routes, but from a proxy for example.
  }
  return new ConverseError(message, response.status, code, wait);
}

/**
 * The wait in a `Retry-After` header, of seconds or a date, in milliseconds.
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
 * The wait after a number of failures in a row, in milliseconds: it grows, and is random, so that
 * clients do not all return at once.
 *
 * @param {number} retry
 * @param {number} failures At least 1.
 */
export function backOff(retry, failures) {
  return Math.random() * Math.min((retry / 4) * 2 ** Math.min(failures - 1, 20), LONGEST_WAIT);
}

/**
 * Waits; ends early when the network returns, the page becomes visible, or `signal` is aborted.
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
  const conversation = `/conversations/${segmentOf(conversationId)}`;
  if (messageId === undefined) return conversation;
  return `${conversation}/messages/${segmentOf(messageId)}`;
}

/**
 * An id as one segment of a path. Ids may come from the address of a page: whatever they are, the
 * path stays below its start, and the server answers that it does not know them.
 *
 * @param {string} id
 */
export function segmentOf(id) {
  // Half of a character, which has no encoding.
  const segment = encodeURIComponent(String(id).replace(/\p{Surrogate}/gu, "\ufffd"));
  // An empty segment is none, and URLs resolve these two, also if they are encoded.
  return ["", ".", ".."].includes(segment) ? `-${segment}` : segment;
}
