// @ts-check
/** Messages that grow: what a stream tells of them, put together. */

import { asError, backOff, wait } from "./requests.js";
import { isEnd } from "./watch.js";

/** @typedef {import("./watch.js").ConversationEvent} ConversationEvent */
/** @typedef {import("./watch.js").FinalEvent} FinalEvent */

/**
 * @typedef {object} Message
 * @property {string} id
 * @property {string} conversation_id
 * @property {number | null} position Where it stands in its conversation; `null` while it is not
 *     stored.
 * @property {"system" | "user" | "assistant" | "tool_call" | "tool_result"} role
 * @property {"streaming" | "completed" | "failed" | "cancelled" | "pending" | "unsent"} status
 *     "pending" and "unsent" are what was said here and is not stored: yet, or at all.
 * @property {string} content The text so far.
 * @property {number} chunk_count Of how many chunks that consists.
 * @property {Record<string, unknown>} metadata
 * @property {string | null} replaces The id of the answer that this one is given instead of.
 * @property {string | null} error Why it failed, or could not be sent.
 * @property {string | null} stop_reason
 * @property {string} created_at A time in ISO 8601, as `completed_at` is.
 * @property {string | null} completed_at
 */

/**
 * @typedef {object} Entry
 * A message and what has come since. The text is joined when it is looked at and not with each
 * chunk, so that a burst of chunks costs one copy.
 * @property {Message} message As it was when it was last looked at.
 * @property {string[]} tail Text that came since.
 * @property {number} count How many chunks there are, with `tail`.
 * @property {Map<number, string>} ahead Text of chunks behind those that are missing.
 * @property {FinalEvent | null} end The end of the message, which came before all its chunks.
 */

const FINAL = new Set(["completed", "failed", "cancelled"]);

/** @param {Message} message */
export function isFinal(message) {
  return FINAL.has(message.status);
}

/**
 * @param {Message} message
 * @returns {Entry}
 */
export function newEntry(message) {
  const count = message.chunk_count;
  return { message: Object.freeze(message), tail: [], count, ahead: new Map(), end: null };
}

/**
 * The message that a `message.created` tells of.
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
 * The message as it is now; the same object while nothing changed.
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
 * Takes an event of a chunk or of the end, and no other. What was seen before changes nothing.
 *
 * @param {Entry} entry
 * @param {ConversationEvent} event
 * @returns {boolean} Whether something is missing, so that the message is to be loaded again.
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
 * Joins the chunks that are ahead, as far as none is missing.
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
 * Whether more is known to be stored than there is.
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
 * Takes the message as it was loaded, which may have been before what is known of it by now.
 *
 * @param {Entry} entry
 * @param {Message} loaded
 */
export function merge(entry, loaded) {
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
 * Whether two values that came as JSON say the same.
 *
 * @param {unknown} left
 * @param {unknown} right
 */
function isSame(left, right) {
  return JSON.stringify(left) === JSON.stringify(right);
}

/**
 * Makes a function that loads a message again, one request for a message at a time.
 *
 * @param {object} options
 * @param {(id: string) => Promise<Message>} options.load
 * @param {(id: string) => Entry | undefined} options.find
 * @param {(id: string, error: Error | null) => void} options.onDone Called after each load, and when
 *     loading failed for good.
 * @param {number} options.retry Milliseconds.
 * @param {AbortSignal} options.signal
 * @returns {(id: string, saved?: boolean) => void} Takes whether the message was saved, so that one
 *     that is being loaded at this moment may be too old.
 */
export function reloader({ load, find, onDone, retry, signal }) {
  /** @type {Map<string, boolean>} Id to whether the message was saved meanwhile. */
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
        // A secondary that is behind has answered.
        await wait(backOff(retry, failures), signal);
      }
    } catch (error) {
      if (!signal.aborted) onDone(id, asError(error));
    } finally {
      // At once: who asks from now on is not heard by the loop above.
      loading.delete(id);
    }
  }

  return (id, saved = false) => {
    if (!loading.has(id)) void run(id);
    else if (saved) loading.set(id, true);
  };
}
