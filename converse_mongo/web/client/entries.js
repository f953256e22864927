// @ts-check
/** Messages that grow: stored messages, and the events of a stream added to them. */

import { asError, backOff, wait } from "./requests.js";
import { isEnd } from "./watch.js";

/** @typedef {import("./watch.js").ConversationEvent} ConversationEvent */
/** @typedef {import("./watch.js").FinalEvent} FinalEvent */

/**
 * @typedef {object} Message
 * @property {string} id
 * @property {string} conversation_id
 * @property {number | null} position Its place in the conversation; `null` while it is not stored.
 * @property {"system" | "user" | "assistant" | "tool_call" | "tool_result"} role
 * @property {"streaming" | "completed" | "failed" | "cancelled" | "pending" | "unsent"} status
 *     "pending" and "unsent" are of messages of this client that are not stored yet, or at all.
 * @property {string} content The text so far.
 * @property {number} chunk_count The number of chunks in it.
 * @property {Record<string, unknown>} metadata
 * @property {string | null} replaces The id of the answer that this one replaces.
 * @property {string | null} error Why it failed, or could not be sent.
 * @property {string | null} stop_reason
 * @property {string} created_at A time in ISO 8601, as `completed_at` is.
 * @property {string | null} completed_at
 */

/**
 * @typedef {Message & {cursor?: string | null}} StoredMessage
 * A message as the server sends it, with the cursor from which its stream continues.
 */

/**
 * @typedef {object} Entry
 * A message and the events since. The text is joined when it is read and not with each chunk, so
 * that a burst of chunks costs one copy.
 * @property {Message} message The message when it was last read.
 * @property {string[]} tail Text that was received since.
 * @property {number} count The number of chunks, with `tail`.
 * @property {Map<number, string>} ahead Text of chunks behind missing ones.
 * @property {FinalEvent | null} end The end of the message, if it was received before all chunks.
 */

const FINAL = new Set(["completed", "failed", "cancelled"]);

/** @param {Message} message */
export function isFinal(message) {
  return FINAL.has(message.status);
}

/**
 * @param {StoredMessage} stored
 * @returns {Entry}
 */
export function newEntry(stored) {
  const message = withoutCursor(stored);
  const count = message.chunk_count;
  return { message: Object.freeze(message), tail: [], count, ahead: new Map(), end: null };
}

/**
 * The message alone: its cursor is outdated with the next chunk.
 *
 * @param {StoredMessage} stored
 * @returns {Message}
 */
function withoutCursor({ cursor, ...message }) {
  return message;
}

/**
 * The message that a `message.created` creates.
 *
 * @param {import("./watch.js").MessageCreated} event
 * @returns {Message}
 */
export function createdMessage(event) {
  return {
    id: event.message_id,
    conversation_id: event.conversation_id,
    position: event.position,
    role: event.role,
    status: event.streaming ? "streaming" : "completed",
    content: event.content,
    chunk_count: 0,
    metadata: event.metadata,
    replaces: event.replaces,
    error: null,
    stop_reason: null,
    created_at: event.created_at,
    completed_at: event.streaming ? null : event.created_at,
  };
}

/**
 * The current message; the same object while nothing has changed.
 *
 * @param {Entry} entry
 */
export function look(entry) {
  if (entry.tail.length > 0) {
    change(entry, { content: entry.message.content + entry.tail.join("") });
    entry.tail = [];
  }
  return entry.message;
}

/**
 * @param {Entry} entry
 * @param {Partial<Message>} fields
 */
function change(entry, fields) {
  const chunk_count = entry.count;
  entry.message = Object.freeze({ ...entry.message, chunk_count, ...fields });
}

/**
 * Applies an event of a chunk or of the end, and no other. A repeated event changes nothing.
 *
 * @param {Entry} entry
 * @param {ConversationEvent} event
 * @returns {boolean} Whether chunks are missing, so that the message must be loaded again.
 */
export function take(entry, event) {
  if (isFinal(entry.message)) return false;
  if (event.type === "chunk.received") {
    const { sequence, content } = event.chunk;
    if (sequence >= entry.count) entry.ahead.set(sequence, content);
    join(entry);
  } else if (isEnd(event)) {
    entry.end = event;
  }
  tryEnd(entry);
  return lacks(entry);
}

/**
 * Adds the chunks that are ahead, up to the first missing one.
 *
 * @param {Entry} entry
 */
function join(entry) {
  const { ahead, tail } = entry;
  for (;;) {
    const content = ahead.get(entry.count);
    if (content === undefined) break;
    tail.push(content);
    ahead.delete(entry.count);
    entry.count += 1;
  }
}

/**
 * Whether chunks are known to be stored that are missing here.
 *
 * @param {Entry} entry
 */
function lacks(entry) {
  return !isFinal(entry.message) && (entry.ahead.size > 0 || entry.end !== null);
}

/** @param {Entry} entry */
function tryEnd(entry) {
  const { end, count } = entry;
  if (end === null || end.chunk_count !== count) return;
  look(entry);
  change(entry, {
    status: /** @type {Message["status"]} */ (end.type.slice("message.".length)),
    metadata: end.metadata,
    error: end.type === "message.failed" ? end.error : null,
    stop_reason: end.type === "message.cancelled" ? end.reason : null,
    completed_at: end.completed_at,
  });
  entry.end = null;
}

/**
 * Merges a message that was loaded, and may be older than the events received since.
 *
 * @param {Entry} entry
 * @param {StoredMessage} stored
 */
export function merge(entry, stored) {
  const loaded = withoutCursor(stored);
  if (isFinal(entry.message) && !isFinal(loaded)) return;
  const known = look(entry);
  if (isFinal(loaded) || loaded.chunk_count >= entry.count) {
    if (!isSame(known, loaded)) entry.message = Object.freeze(loaded);
    entry.count = loaded.chunk_count;
    for (const sequence of entry.ahead.keys()) {
      if (sequence < entry.count) entry.ahead.delete(sequence);
    }
    join(entry);
  } else if (!isSame(known.metadata, loaded.metadata)) {
    change(entry, { metadata: loaded.metadata });
  }
  if (isFinal(loaded)) entry.end = null;
  else tryEnd(entry);
}

/**
 * Whether two values of JSON are equal.
 *
 * @param {unknown} left
 * @param {unknown} right
 */
function isSame(left, right) {
  return JSON.stringify(left) === JSON.stringify(right);
}

/**
 * Makes a function that reloads a message, with one request per message at a time.
 *
 * @param {object} options
 * @param {(id: string) => Promise<StoredMessage>} options.load
 * @param {(id: string) => Entry | undefined} options.find
 * @param {(id: string, error: Error | null) => void} options.onDone Called after each load, and
 *     when loading failed finally.
 * @param {number} options.retry Milliseconds.
 * @param {AbortSignal} options.signal
 * @returns {(id: string, saved?: boolean) => void} `saved` says that the message was saved, so that
 *     one that is being loaded now may be outdated.
 */
export function reloader({ load, find, onDone, retry, signal }) {
  /** @type {Map<string, boolean>} By id, whether the message was saved meanwhile. */
  const loading = new Map();

  /** @param {string} id */
  async function run(id) {
    try {
      for (let failures = 1; ; failures += 1) {
        loading.set(id, false);
        const loaded = await load(id);
        const entry = find(id);
        if (entry === undefined) return;
        merge(entry, loaded);
        onDone(id, null);
        if (loading.get(id)) continue;
        if (!lacks(entry)) return;
        // A secondary that lags has answered.
        await wait(backOff(retry, failures), signal);
      }
    } catch (error) {
      if (!signal.aborted) onDone(id, asError(error));
    } finally {
      // At once: the loop above does not see requests from here on.
      loading.delete(id);
    }
  }

  return (id, saved = false) => {
    if (!loading.has(id)) void run(id);
    else if (saved) loading.set(id, true);
  };
}
