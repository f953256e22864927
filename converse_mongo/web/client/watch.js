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
const OPENED = "stream.opened";
const STEADY = 30_000;

/** @typedef {import("./events.js").ServerSentEvent} ServerSentEvent */
/** @typedef {import("./requests.js").RequestOptions} RequestOptions */

/**
 * @typedef {object} Chunk
 * @property {number} sequence From 0 on, without a gap.
 * @property {string} content
 * @property {string} created_at
 * @property {Record<string, unknown>} [metadata]
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
 * @property {Record<string, unknown>} metadata
 * @property {string | null} replaces The id of the answer that it is given instead of.
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
/** @typedef {InMessage & Ended & {type: "message.completed"}} MessageCompleted */
/** @typedef {InMessage & Ended & {type: "message.failed", error: string}} MessageFailed */
/** @typedef {InMessage & Ended & {type: "message.cancelled", reason: string | null}} MessageCancelled */
/** @typedef {MessageCompleted | MessageFailed | MessageCancelled} FinalEvent */
/** @typedef {MessageCreated | ChunkReceived | MessageUpdated | FinalEvent} ConversationEvent */

/**
 * @typedef {ConversationEvent & {id: string}} Event
 * What happened; its id is where the stream stands behind it: what to pass as `after`.
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
 * @typedef {ListEvent | MessageCreated | FinalEvent} OwnerEvent
 * What happened to one of the conversations, or a message that was added to it or ended.
 */

/** @typedef {"connecting" | "open" | "waiting" | "closed"} State */

/**
 * @typedef {object} ConnectionOptions
 * @property {(state: State, error: Error | null) => void} [onState] Called when the state changes;
 *     with the error, while it waits to try again or is closed for one.
 * @property {AbortSignal} [signal] Closes the watch.
 */

/**
 * @typedef {object} OwnWatchOptions
 * @property {string} conversationId
 * @property {string | null} [after] The id of the last event that you have; "now" for what comes.
 * @property {(event: Event) => void} onEvent Called with each event, each once and in order. If it
 *     throws, the watch is closed with that error.
 */

/**
 * @typedef {object} OwnOwnerWatchOptions
 * @property {() => void} onOpened Called each time that a stream was opened, the first time too:
 *     from here on nothing is missed. What happened before is not told: load your list again.
 * @property {(event: OwnerEvent) => void} onEvent Called with each event. If this or `onOpened`
 *     throws, the watch is closed with that error.
 */

/** @typedef {RequestOptions & ConnectionOptions & OwnWatchOptions} WatchOptions */
/** @typedef {RequestOptions & ConnectionOptions & OwnOwnerWatchOptions} OwnerWatchOptions */

/**
 * @typedef {object} OwnerWatch
 * @property {() => void} close Ends it; `onEvent` is not called any more.
 * @property {Promise<Error | null>} closed Done when it has ended; with the error that ended it.
 */

/**
 * @typedef {object} OwnCursor
 * @property {() => string | null} cursor The id of the last event that `onEvent` was given.
 */

/** @typedef {OwnerWatch & OwnCursor} Watch */

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
  return watch(path, options, isEnd);
}

/**
 * Whether an event is the end of its message.
 *
 * @param {ConversationEvent} event
 * @returns {event is FinalEvent}
 */
export function isEnd(event) {
  return FINAL.has(event.type);
}

/**
 * Watches all conversations of the user who asks, until it is closed.
 *
 * Its stream begins with what comes and has no cursor: after each `onOpened`, the first and those
 * after a lost connection, load what you show of them again.
 *
 * @param {OwnerWatchOptions} options
 * @returns {OwnerWatch}
 */
export function watchOwner(options) {
  return connect(options, () => "/events", (sent) => {
    if (sent.type === OPENED) options.onOpened();
    else options.onEvent(JSON.parse(sent.data));
    return false;
  });
}

/**
 * @param {string} path
 * @param {WatchOptions} options
 * @param {(event: Event) => boolean} isLast
 * @returns {Watch}
 */
function watch(path, options, isLast) {
  let cursor = options.after ?? null;
  const target = () => (cursor === null ? path : `${path}?after=${encodeURIComponent(cursor)}`);
  const connection = connect(options, target, (sent) => {
    /** @type {Event} */
    const event = { ...JSON.parse(sent.data), id: sent.id };
    options.onEvent(event);
    cursor = sent.id || cursor;
    return isLast(event);
  });
  return { ...connection, cursor: () => cursor };
}

/**
 * Keeps a connection: makes another one when it is lost.
 *
 * @param {RequestOptions & ConnectionOptions} options
 * @param {() => string} target What to connect to, behind `options.url`; asked for each time.
 * @param {(sent: ServerSentEvent) => boolean} take Takes an event; tells whether it was the last.
 * @returns {OwnerWatch}
 */
function connect(options, target, take) {
  const closing = new AbortController();
  let retry = options.retry ?? DEFAULT_RETRY;
  let failures = 0;

  /** @type {(next: State, error?: Error | null) => void} */
  const enter = (next, error = null) => {
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
    if (closing.signal.aborted) abort(); // by who was told that it connects
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
      const response = await request(options, target(), {
        headers: { accept: "text/event-stream" },
        signal: connection.signal,
      });
      if (response.status === 204) return true;
      const reader = await body(response);
      enter("open");
      opened = performance.now();
      const decoder = new TextDecoder(); // drops a byte order mark
      let over = false;
      const parse = eventParser(
        (sent) => {
          if (over || closing.signal.aborted) return;
          over = take(sent);
          // That it was opened does not tell that it lasts.
          if (sent.type !== OPENED) failures = 0;
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
  // A moment later, so that who is called has what is returned here.
  const closed = Promise.resolve().then(run).then((error) => {
    options.signal?.removeEventListener("abort", close);
    try {
      enter("closed", error);
    } catch (thrown) {
      return error ?? asError(asError(thrown).cause);
    }
    return error;
  });
  return { close, closed };
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
