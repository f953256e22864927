// @ts-check
/** Messages that grow: stored messages, and the events of a stream added to them. */

import { HIDDEN, PartLog, partsOf } from "./parts.js";
import { asError, backOff, wait } from "./requests.js";
import { isEnd } from "./watch.js";

/** @typedef {import("./watch.js").ConversationEvent} ConversationEvent */
/** @typedef {import("./watch.js").FinalEvent} FinalEvent */
/** @typedef {import("./watch.js").Chunk} Chunk */
/** @typedef {import("./watch.js").WorkEvent} WorkEvent */
/** @typedef {readonly Readonly<import("./parts.js").PartRecord>[]} Parts */

/**
 * @typedef {object} Work
 * What a message waits for that was queued for workers.
 * @property {"queued" | "running" | "waiting"} state "queued" for a worker, "running" with one,
 *     "waiting" for people.
 * @property {number} attempt The number of the attempt that it is at, or of the next one.
 * @property {readonly import("./watch.js").PendingCall[]} [pending] The calls that wait for people;
 *     only while it is "waiting".
 */

/**
 * @typedef {object} Message
 * @property {string} id
 * @property {string} conversation_id
 * @property {number | null} position Its place in the conversation; `null` while it is not stored.
 * @property {"system" | "user" | "assistant" | "tool_call" | "tool_result"} role
 * @property {"streaming" | "completed" | "failed" | "cancelled" | "pending" | "unsent"} status
 *     "pending" and "unsent" are of messages of this client that are not stored yet, or at all.
 * @property {string} content The text of the answer so far.
 * @property {Parts} parts The parts so far, in order; of a message of text alone that text, if there
 *     is any. A part that has not changed is the same object as before, and so is the array if none
 *     has.
 * @property {Readonly<Work>} [work] What it waits for, if it was queued for workers; absent once it
 *     has ended.
 * @property {number} chunk_count The number of chunks in it.
 * @property {Record<string, unknown>} metadata
 * @property {string | null} replaces The id of the answer that this one replaces.
 * @property {string | null} error Why it failed, or could not be sent.
 * @property {string | null} stop_reason
 * @property {string} created_at A time in ISO 8601, as `completed_at` is.
 * @property {string | null} completed_at
 */

/**
 * @typedef {object} Stored
 * @property {Parts} [parts] Absent if it has only text.
 * @property {number} [open_part] The text part that the next text continues, while it streams.
 * @property {string | null} [cursor] From where its stream continues.
 */

/**
 * @typedef {Omit<Message, "parts"> & Stored} StoredMessage
 * A message as the server sends it.
 */

/**
 * @typedef {object} Entry
 * A message and the events since. The text is joined when it is read and not with each chunk, so
 * that a burst of chunks costs one copy.
 * @property {Message} message The message when it was last read.
 * @property {string[]} tail Text that was received since, while there is no `log`.
 * @property {number | null} open The number of the text part that `tail` continues.
 * @property {PartLog | null} log The parts; `null` while there is only text, and after the end.
 * @property {number} count The number of chunks, with those since `message` was read.
 * @property {Map<number, Chunk>} ahead Chunks behind missing ones.
 * @property {number} news The number of events that told what it waits for.
 * @property {FinalEvent | null} end The end of the message, if it was received before all chunks.
 */

const FINAL = new Set(["completed", "failed", "cancelled"]);

/**
 * Whether a message may have got a worker, or another one, without an event that a new stream sends.
 *
 * @param {Message} message
 */
export function mayHaveWorker({ work }) {
  return work !== undefined && work.state !== "running";
}

/** @param {Pick<Message, "status">} message */
export function isFinal(message) {
  return FINAL.has(message.status);
}

/**
 * @param {StoredMessage} stored
 * @returns {Entry}
 */
export function newEntry(stored) {
  const message = messageOf(stored);
  const count = message.chunk_count;
  /** @type {Entry} */
  const entry = {
    ...{ message, tail: [], open: null, log: null, count },
    ...{ ahead: new Map(), news: 0, end: null },
  };
  begin(entry, stored);
  return entry;
}

/**
 * The message alone: what says where its stream continues is outdated with the next chunk.
 *
 * @param {StoredMessage} stored
 * @param {Parts} [known] Parts that are kept, as objects, if they are the same.
 * @returns {Message}
 */
export function messageOf(stored, known = []) {
  const { cursor, open_part, ...message } = stored;
  const before = new Map(known.map((each) => [each.part, each]));
  const parts = partsOf(stored).map((each) => {
    const old = before.get(each.part);
    return old !== undefined && isSame(old, each) ? old : Object.freeze(each);
  });
  if (message.work !== undefined) Object.freeze(message.work);
  return Object.freeze({ ...message, parts: kept(parts, known) });
}

/**
 * The parts as they were, if they are the same objects.
 *
 * @param {Parts} parts
 * @param {Parts} known
 * @returns {Parts}
 */
function kept(parts, known) {
  const isKept = parts.length === known.length && parts.every((each, at) => each === known[at]);
  return isKept ? known : Object.freeze(parts);
}

/**
 * Takes a loaded message, whose parts `entry.message` has, as the state to continue from.
 *
 * @param {Entry} entry
 * @param {StoredMessage} stored
 */
function begin(entry, stored) {
  entry.open = stored.open_part ?? (stored.content === "" ? null : 0);
  entry.log = null;
  if (stored.parts === undefined || isFinal(stored)) return;
  entry.open = stored.open_part ?? null;
  entry.log = logOf(entry);
}

/** @param {Entry} entry */
function logOf({ message: { parts, chunk_count: next_sequence }, open }) {
  return PartLog.fromSnapshot({ next_sequence, parts, ...(open === null ? {} : { open }) });
}

/**
 * The message that a `message.created` creates.
 *
 * @param {import("./watch.js").MessageCreated} event
 * @returns {StoredMessage}
 */
export function createdMessage(event) {
  return {
    id: event.message_id,
    conversation_id: event.conversation_id,
    position: event.position,
    role: event.role,
    status: event.streaming ? "streaming" : "completed",
    content: event.content,
    ...(event.parts === undefined ? {} : { parts: event.parts }),
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
  const { message, log, tail } = entry;
  if (entry.count === message.chunk_count) return message;
  if (log !== null) {
    const shown = log.records().filter(({ kind }) => kind !== HIDDEN);
    change(entry, { content: log.text(), parts: kept(shown, message.parts) });
  } else {
    const content = message.content + tail.join("");
    entry.tail = [];
    const isLonger = content !== message.content;
    change(entry, isLonger ? { content, parts: partsOf({ content, open_part: entry.open }) } : {});
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
 * Applies an event of a chunk, of its work or of the end, and no other. A repeated event changes
 * nothing.
 *
 * @param {Entry} entry
 * @param {ConversationEvent} event
 * @returns {boolean} Whether chunks are missing, so that the message must be loaded again.
 */
export function take(entry, event) {
  if (isFinal(entry.message)) return false;
  if (event.type === "chunk.received") {
    const { chunk } = event;
    if (chunk.sequence >= entry.count) {
      entry.ahead.set(chunk.sequence, chunk);
      noteWriter(entry, chunk);
    }
    join(entry);
  } else if (isWork(event)) {
    entry.news += 1;
    setWork(entry, workOf(event));
  } else if (isEnd(event)) {
    entry.end = event;
  }
  tryEnd(entry);
  return lacks(entry);
}

const STATES = { "message.queued": "queued", "message.started": "running", "message.suspended": "waiting" };

/**
 * @param {ConversationEvent} event
 * @returns {event is WorkEvent}
 */
function isWork(event) {
  return Object.hasOwn(STATES, event.type);
}

/**
 * @param {WorkEvent} event
 * @returns {Work}
 */
function workOf(event) {
  const state = /** @type {Work["state"]} */ (STATES[event.type]);
  const { attempt } = event;
  return event.type === "message.suspended" ? { state, attempt, pending: event.pending } : { state, attempt };
}

/**
 * Sets what a message waits for.
 *
 * @param {Entry} entry
 * @param {Work} work
 */
export function setWork(entry, work) {
  if (isFinal(entry.message) || isSame(entry.message.work, work)) return;
  look(entry);
  change(entry, { work: Object.freeze(work) });
}

/**
 * Notes that a message has a worker, which is told after its first chunk if that comes soon.
 *
 * @param {Entry} entry
 * @param {Chunk} chunk
 */
function noteWriter(entry, chunk) {
  const { work } = entry.message;
  if (work?.state !== "queued" || chunk.event === "redact") return;
  setWork(entry, { state: "running", attempt: work.attempt });
}

/**
 * Adds the chunks that are ahead, up to the first missing one.
 *
 * @param {Entry} entry
 */
function join(entry) {
  const { ahead } = entry;
  for (;;) {
    const chunk = ahead.get(entry.count);
    if (chunk === undefined) break;
    add(entry, chunk);
    ahead.delete(entry.count);
    entry.count += 1;
  }
}

/** @type {(entry: Entry, chunk: Chunk) => void} */
function add(entry, chunk) {
  if (entry.log === null && (chunk.part ?? chunk.event) == null) {
    if (typeof chunk.content !== "string" || chunk.content === "") return;
    entry.tail.push(chunk.content);
    entry.open ??= chunk.sequence;
    return;
  }
  if (entry.log === null) {
    look(entry);
    entry.log = logOf(entry);
  }
  entry.log.add(chunk);
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
  const { work, ...message } = look(entry);
  entry.message = message;
  change(entry, {
    status: /** @type {Message["status"]} */ (end.type.slice("message.".length)),
    metadata: end.metadata,
    error: end.type === "message.failed" ? end.error : null,
    stop_reason: end.type === "message.cancelled" ? end.reason : null,
    completed_at: end.completed_at,
  });
  entry.end = entry.log = null;
}

/**
 * Merges a message that was loaded, and may be older than the events received since.
 *
 * @param {Entry} entry
 * @param {StoredMessage} stored
 * @param {number} news The `news` of the entry when loading began. By default it was not known then.
 */
export function merge(entry, stored, news = 0) {
  if (isFinal(entry.message) && !isFinal(stored)) return;
  const known = look(entry);
  const isNewer = entry.news > news && known.work !== undefined && !isFinal(stored);
  const loaded = messageOf(isNewer ? { ...stored, work: known.work } : stored, known.parts);
  if (isFinal(loaded) || loaded.chunk_count >= entry.count) {
    if (!isSame(known, loaded)) {
      entry.message = loaded;
      begin(entry, stored);
    }
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
 * Whether two values of JSON are equal, whatever the order of their keys.
 *
 * @param {unknown} left
 * @param {unknown} right
 * @returns {boolean}
 */
function isSame(left, right) {
  if (left === right) return true;
  if (typeof left !== "object" || typeof right !== "object" || !left || !right) return false;
  if (Array.isArray(left) !== Array.isArray(right)) return false;
  const names = Object.keys(left);
  return (
    names.length === Object.keys(right).length &&
    names.every(
      (name) => Object.hasOwn(right, name) && isSame(Reflect.get(left, name), Reflect.get(right, name)),
    )
  );
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
        const news = find(id)?.news;
        const loaded = await load(id);
        const entry = find(id);
        if (entry === undefined) return;
        merge(entry, loaded, news);
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
