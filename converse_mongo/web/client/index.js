// @ts-check
/**
 * Follows conversations of converse_mongo live, over lost connections, reloads and deploys.
 *
 * It reads streams with `fetch` and not with `EventSource`, which gives up for ever when a proxy
 * answers with an error once, as it does during a deploy, and which can send no headers.
 */

import { eventParser } from "./events.js";

const FINAL = new Set(["message.completed", "message.failed", "message.cancelled"]);
const WORTH_TRYING_AGAIN = new Set([408, 425, 429]);
const DEFAULT_RETRY = 2_000;
const LONGEST_WAIT = 30_000;
const DEFAULT_SILENCE = 45_000;

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
 * Watches all messages of a conversation, until it is closed.
 *
 * @param {WatchOptions} options
 * @returns {Watch}
 */
export function watchConversation(options) {
  const path = `/conversations/${encodeURIComponent(options.conversationId)}/events`;
  return watch(options.url + path, options, () => false);
}

/**
 * Watches one message to its end.
 *
 * @param {WatchOptions & {messageId: string}} options
 * @returns {Watch}
 */
export function watchMessage(options) {
  const conversation = `/conversations/${encodeURIComponent(options.conversationId)}`;
  const path = `${conversation}/messages/${encodeURIComponent(options.messageId)}/events`;
  return watch(options.url + path, options, (event) => FINAL.has(event.type));
}

/**
 * @param {string} address
 * @param {WatchOptions} options
 * @param {(event: Event) => boolean} isLast
 * @returns {Watch}
 */
function watch(address, options, isLast) {
  const closing = new AbortController();
  let cursor = options.after ?? null;
  let retry = DEFAULT_RETRY;
  let failures = 0;
  /** @type {State | null} */
  let state = null;

  /** @type {(next: State, error?: Error | null) => void} */
  const enter = (next, error = null) => {
    if (state === next || state === "closed") return;
    state = next;
    options.onState?.(next, error);
  };

  /** Reads one connection; true once the stream is over for good. */
  async function read() {
    const connection = new AbortController();
    const abort = () => connection.abort(closing.signal.reason);
    closing.signal.addEventListener("abort", abort);
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    let watchdog;
    const live = () => {
      clearTimeout(watchdog);
      watchdog = setTimeout(
        () => connection.abort(new Error("The connection went silent.")),
        options.silence ?? DEFAULT_SILENCE,
      );
    };
    live();
    try {
      const response = await open(connection.signal);
      if (response.status === 204) return true;
      const reader = await body(response);
      enter("open");
      const decoder = new TextDecoder();
      let over = false;
      const parse = eventParser(
        (sent) => {
          if (over || closing.signal.aborted) return;
          const event = { ...JSON.parse(sent.data), id: sent.id };
          options.onEvent(event);
          cursor = sent.id || cursor;
          failures = 0;
          over = isLast(event);
        },
        (milliseconds) => {
          retry = milliseconds;
        },
      );
      while (!over) {
        const { done, value } = await reader.read();
        if (done) return false;
        live();
        try {
          parse(decoder.decode(value, { stream: true }));
        } catch (error) {
          throw new ListenerError(error);
        }
      }
      return true;
    } finally {
      clearTimeout(watchdog);
      closing.signal.removeEventListener("abort", abort);
      connection.abort();
    }
  }

  /** @param {AbortSignal} signal */
  async function open(signal) {
    const target = cursor === null ? address : `${address}?after=${encodeURIComponent(cursor)}`;
    const headers = typeof options.headers === "function" ? options.headers() : options.headers;
    return await (options.fetch ?? fetch)(target, {
      headers: { accept: "text/event-stream", ...headers },
      credentials: options.credentials ?? "same-origin",
      cache: "no-store",
      signal,
    });
  }

  async function run() {
    while (!closing.signal.aborted) {
      enter("connecting");
      /** @type {Error | null} */
      let trouble = null;
      try {
        if (await read()) return null;
      } catch (error) {
        if (error instanceof ListenerError) return asError(error.cause);
        if (closing.signal.aborted) return null;
        trouble = asError(error);
        if (trouble instanceof ConverseError && !trouble.isTransient) return trouble;
      }
      if (closing.signal.aborted) return null;
      failures += 1;
      enter("waiting", trouble);
      const least = trouble instanceof ConverseError ? trouble.wait : 0;
      await wait(least + backOff(retry, failures), closing.signal);
    }
    return null;
  }

  const close = () => closing.abort();
  options.signal?.addEventListener("abort", close);
  if (options.signal?.aborted) close();
  const closed = run().then((error) => {
    options.signal?.removeEventListener("abort", close);
    closing.abort();
    enter("closed", error);
    return error;
  });
  return { close, closed, cursor: () => cursor };
}

/** What `onEvent` threw, which is no trouble of the connection. */
class ListenerError extends Error {
  /** @param {unknown} cause */
  constructor(cause) {
    super("onEvent threw", { cause });
  }
}

/**
 * The body of a stream.
 *
 * @param {Response} response
 * @throws {ConverseError} It is none.
 */
async function body(response) {
  const type = response.headers.get("content-type") ?? "";
  if (response.ok && response.body !== null && type.startsWith("text/event-stream")) {
    return response.body.getReader();
  }
  if (response.ok) {
    await response.body?.cancel();
    // A page of a proxy, or of a network that wants its user to log in.
    throw new ConverseError(`The answer is no stream, but ${type || "empty"}.`, 200, "no_stream");
  }
  throw await refusal(response);
}

/**
 * The error that an answer stands for.
 *
 * @param {Response} response
 */
async function refusal(response) {
  const seconds = Number(response.headers.get("retry-after") ?? 0);
  const wait = seconds > 0 ? Math.min(seconds * 1000, 2 * LONGEST_WAIT) : 0;
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
 * Milliseconds to wait after so many failures in a row: soon at first, then longer and longer, and
 * for each client another time, so that they do not all come back at once.
 *
 * @param {number} retry
 * @param {number} failures From 1 on.
 */
function backOff(retry, failures) {
  return Math.random() * Math.min((retry / 4) * 2 ** Math.min(failures - 1, 20), LONGEST_WAIT);
}

/**
 * Waits; less if the network comes back, the page is looked at again, or nobody waits any more.
 *
 * @param {number} milliseconds
 * @param {AbortSignal} signal
 * @returns {Promise<void>}
 */
function wait(milliseconds, signal) {
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

/** @param {unknown} error */
function asError(error) {
  return error instanceof Error ? error : new Error(String(error));
}
