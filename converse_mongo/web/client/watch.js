// @ts-check
/**
 * Watching: a stream of events, over lost connections, reloads and deploys.
 *
 * It reads streams with `fetch` and not with `EventSource`, which gives up for ever when a proxy
 * answers with an error once, as it does during a deploy, and which can send no headers.
 */

import { eventParser } from "./events.js";
import {
  ConverseError,
  DEFAULT_RETRY,
  DEFAULT_SILENCE,
  asError,
  backOff,
  isTransient,
  pathOf,
  refusal,
  request,
  wait,
} from "./requests.js";

const FINAL = new Set(["message.completed", "message.failed", "message.cancelled"]);
const STEADY = 30_000;

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
export function watchConversation(options) {
  return watch(`${pathOf(options.conversationId)}/events`, options, () => false);
}

/**
 * Watches one message to its end.
 *
 * @param {WatchOptions & {messageId: string}} options
 * @returns {Watch}
 */
export function watchMessage(options) {
  const path = `${pathOf(options.conversationId, options.messageId)}/events`;
  return watch(path, options, (event) => FINAL.has(event.type));
}

/**
 * @param {string} path
 * @param {WatchOptions} options
 * @param {(event: Event) => boolean} isLast
 * @returns {Watch}
 */
function watch(path, options, isLast) {
  const closing = new AbortController();
  let cursor = options.after ?? null;
  let retry = options.retry ?? DEFAULT_RETRY;
  let failures = 0;
  /** @type {State | null} */
  let state = null;

  /** @type {(next: State, error?: Error | null) => void} */
  const enter = (next, error = null) => {
    if (state === next || state === "closed") return;
    state = next;
    try {
      options.onState?.(next, error);
    } catch (thrown) {
      throw new ListenerError(thrown);
    }
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
    let opened = Infinity;
    try {
      const response = await open(connection.signal);
      if (response.status === 204) return true;
      const reader = await body(response);
      enter("open");
      opened = performance.now();
      const decoder = new TextDecoder(); // drops a byte order mark
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
      // Where nothing was said for a long time, no event tells that all was well.
      if (performance.now() - opened > STEADY) failures = 0;
      clearTimeout(watchdog);
      closing.signal.removeEventListener("abort", abort);
      connection.abort();
    }
  }

  /** @param {AbortSignal} signal */
  async function open(signal) {
    const target = cursor === null ? path : `${path}?after=${encodeURIComponent(cursor)}`;
    return await request(options, target, { headers: { accept: "text/event-stream" }, signal });
  }

  async function run() {
    while (!closing.signal.aborted) {
      /** @type {Error | null} */
      let trouble = null;
      try {
        enter("connecting");
        if (await read()) return null;
      } catch (error) {
        if (error instanceof ListenerError) return asError(error.cause);
        if (closing.signal.aborted) return null;
        trouble = asError(error);
        if (!isTransient(trouble)) return trouble;
      }
      if (closing.signal.aborted) return null;
      failures += 1;
      try {
        enter("waiting", trouble);
      } catch (error) {
        return asError(asError(error).cause);
      }
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
    try {
      enter("closed", error);
    } catch (thrown) {
      return error ?? asError(asError(thrown).cause);
    }
    return error;
  });
  return { close, closed, cursor: () => cursor };
}

/** What a function of the caller threw, which is no trouble of the connection. */
class ListenerError extends Error {
  /** @param {unknown} cause */
  constructor(cause) {
    super("A listener threw", { cause });
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
