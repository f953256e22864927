// @ts-check
/**
 * Watching: streams of events that continue across lost connections, reloads and deploys.
 *
 * Streams are read with `fetch`. An `EventSource` gives up at the first error of a proxy, as during
 * a deploy, and cannot send headers.
 */

import { eventParser } from "./events.js";
import {
  ConverseError,
  DEFAULT_RETRY,
  DEFAULT_SILENCE,
  asError,
  backOff,
  isOfType,
  isTransient,
  pathOf,
  refusal,
  request,
  unexpected,
  wait,
} from "./requests.js";

const FINAL = new Set(["message.completed", "message.failed", "message.cancelled"]);
const OPENED = "stream.opened";
const STEADY = 30_000;

/** @typedef {import("./events.js").ServerSentEvent} ServerSentEvent */
/** @typedef {import("./requests.js").RequestOptions} RequestOptions */

/**
 * @typedef {object} Chunk
 * @property {number} sequence 0, 1, 2, … without a gap.
 * @property {string} content Text of the answer; empty if there is an `event`, or a `part`.
 * @property {string} created_at
 * @property {Record<string, unknown>} [metadata]
 * @property {number} [part] The part that it belongs to; absent if it begins one, or is text of the
 *     answer.
 * @property {string} [event] "start", "set", "end", "redact", "reset" or "metadata"; absent if it is
 *     text.
 * @property {Record<string, unknown>} [fields] What the event sets.
 * @property {string} [delta] Text of a part that is not text of the answer.
 * @property {number} [parent] The tool call whose sub-agent begins a part.
 * @property {Record<string, {size: number}>} [values] The sizes in bytes of fields that are too large
 *     to be sent, by name.
 */

/**
 * @typedef {object} PendingCall
 * A tool call that waits for people.
 * @property {string} call_id
 * @property {"approval" | "output"} wanted
 * @property {string} [expires_at] When an answer comes too late; absent for never.
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
 * @property {readonly import("./parts.js").PartRecord[]} [parts] Absent if it has only text.
 * @property {Record<string, unknown>} metadata
 * @property {string | null} replaces The id of the answer that it replaces.
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
/** @typedef {InMessage & {type: "message.queued", attempt: number}} MessageQueued */
/** @typedef {InMessage & {type: "message.started", attempt: number}} MessageStarted */
/** @typedef {InMessage & {type: "message.suspended", attempt: number, pending: readonly PendingCall[]}} MessageSuspended */
/**
 * @typedef {MessageQueued | MessageStarted | MessageSuspended} WorkEvent
 * News of a message that was queued for workers: the latest, and no place in the stream.
 */
/** @typedef {InMessage & Ended & {type: "message.completed"}} MessageCompleted */
/** @typedef {InMessage & Ended & {type: "message.failed", error: string}} MessageFailed */
/** @typedef {InMessage & Ended & {type: "message.cancelled", reason: string | null}} MessageCancelled */
/** @typedef {MessageCompleted | MessageFailed | MessageCancelled} FinalEvent */
/** @typedef {MessageCreated | ChunkReceived | MessageUpdated | WorkEvent | FinalEvent} ConversationEvent */

/**
 * @typedef {ConversationEvent & {id: string}} Event
 * An event; its id is the cursor behind it, to be passed as `after`. News of a queued message has that
 * of the event before it, or "".
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
 * @typedef {ListEvent | MessageCreated | WorkEvent | FinalEvent} OwnerEvent
 * A change of one of the conversations, or a message in it that was added or has ended, waits for
 * people, or goes on.
 */

/**
 * @typedef {object} StreamOpened
 * The stream was opened: from here on nothing is missed.
 * @property {"stream.opened"} type
 * @property {readonly MessageSuspended[]} waiting The answers that wait for people.
 */

/** @typedef {"connecting" | "open" | "waiting" | "closed"} State */

/**
 * @typedef {object} ConnectionOptions
 * @property {(state: State, error: Error | null) => void} [onState] Called when the state changes;
 *     with the error for which it is waiting or closed.
 * @property {AbortSignal} [signal] Closes the watch.
 */

/**
 * @typedef {object} OwnWatchOptions
 * @property {string} conversationId
 * @property {string | null} [after] A cursor: that of a page of history, or the id of the last
 *     event; "now" for new events only.
 * @property {(event: Event) => void} onEvent Called with each event, once and in order. If it
 *     throws, the watch is closed with that error.
 */

/**
 * @typedef {object} OwnOwnerWatchOptions
 * @property {(opened: StreamOpened) => void} onOpened Called each time that a stream was opened, also
 *     the first time: from here on nothing is missed. Load your list again, since earlier events are
 *     not sent.
 * @property {(event: OwnerEvent) => void} onEvent Called with each event. If this or `onOpened`
 *     throws, the watch is closed with that error.
 */

/** @typedef {RequestOptions & ConnectionOptions & OwnWatchOptions} WatchOptions */
/** @typedef {RequestOptions & ConnectionOptions & OwnOwnerWatchOptions} OwnerWatchOptions */

/**
 * @typedef {object} OwnerWatch
 * @property {() => void} close Ends it; `onEvent` is no longer called.
 * @property {Promise<Error | null>} closed Resolves when it has ended, with the error if any.
 */

/**
 * @typedef {object} OwnCursor
 * @property {() => string | null} cursor Returns the id of the last event passed to `onEvent`.
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
 * Watches all conversations of the user, until it is closed.
 *
 * Its stream has new events only, and no cursor: load your list again at each `onOpened`, the first
 * and those after a lost connection.
 *
 * @param {OwnerWatchOptions} options
 * @returns {OwnerWatch}
 */
export function watchOwner(options) {
  return connect(options, () => "/events", (sent) => {
    const data = JSON.parse(sent.data);
    // Before an upgrade of the service it has only the type.
    if (sent.type === OPENED) options.onOpened({ waiting: [], ...data });
    else options.onEvent(data);
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
    const event = { ...JSON.parse(sent.data), id: sent.id || (cursor ?? "") };
    options.onEvent(event);
    cursor = sent.id || cursor;
    return isLast(event);
  });
  return { ...connection, cursor: () => cursor };
}

/**
 * Keeps a connection, and makes another one when it is lost.
 *
 * @param {RequestOptions & ConnectionOptions} options
 * @param {() => string} target Returns the path behind `options.url`; called for each connection.
 * @param {(sent: ServerSentEvent) => boolean} take Receives an event; whether it was the last.
 * @returns {OwnerWatch}
 */
export function connect(options, target, take) {
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

  /** Reads one connection; returns whether the stream is over. */
  async function read() {
    const connection = new AbortController();
    const abort = () => connection.abort(closing.signal.reason);
    closing.signal.addEventListener("abort", abort);
    if (closing.signal.aborted) abort(); // by `onState`
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    let watchdog;
    const live = () => {
      clearTimeout(watchdog);
      watchdog = setTimeout(
        () => connection.abort(new Error("The connection was lost.")),
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
          // A connection that was opened may not last.
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
      // A connection may be well for a long time without an event.
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
  // A moment later, so that callbacks can use the returned watch.
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

/** Wraps an error that a function of the caller threw: it is not one of the connection. */
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
 * @throws {ConverseError} The response is not a stream.
 */
async function body(response) {
  if (!response.ok) throw await refusal(response);
  if (response.body !== null && isOfType(response, "text/event-stream")) {
    return response.body.getReader();
  }
  throw await unexpected(response, "no_stream");
}
