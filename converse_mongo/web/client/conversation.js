// @ts-check
/** A conversation, for user interfaces: its messages as they are, and what a user does with them. */

import { createdMessage, look, merge, newEntry, reloader, take } from "./entries.js";
import { DEFAULT_RETRY, ConverseError, asError, ask, pathOf } from "./requests.js";
import { snapshots } from "./snapshots.js";
import { watchConversation } from "./watch.js";

const DEFAULT_LIMIT = 50;
const DEFAULT_PATIENCE = 60_000;

/** @typedef {import("./entries.js").Message} Message */
/** @typedef {import("./entries.js").Entry} Entry */
/** @typedef {import("./watch.js").Event} Event */

/**
 * @typedef {object} OwnConversationOptions
 * @property {string} conversationId
 * @property {number} [limit] How many messages a page of the history has, from 1 to 200; by default
 *     50.
 * @property {number} [patience] Milliseconds for which sending, stopping and the like are tried
 *     again while there is trouble that may pass; by default 60,000.
 * @property {number} [interval] Milliseconds between two calls of a listener, at least, for what
 *     comes by itself; by default 16.
 */

/** @typedef {import("./requests.js").RequestOptions & OwnConversationOptions} ConversationOptions */

/**
 * @typedef {object} Snapshot
 * Never changed: what changes is in another one, where all that stayed the same is the same object.
 * @property {"loading" | "open" | "reconnecting" | "error"} status "loading" until the messages are
 *     there, "reconnecting" while they are not followed, "error" once that is no use any more.
 * @property {Error | null} error What is in the way; with the status "error" a `ConverseError` of
 *     what was refused.
 * @property {readonly Message[]} messages In order, without answers that another is given instead
 *     of; at the end what was said here and is not stored.
 * @property {boolean} hasOlder Whether `loadOlder` has something to load.
 * @property {boolean} typing Whether an answer is being written, or about to be.
 */

/**
 * @typedef {object} Conversation
 * @property {() => Snapshot} getSnapshot
 * @property {(listener: () => void) => () => void} subscribe Calls `listener` when there is another
 *     snapshot, once for a burst of changes; returns what ends that.
 * @property {(content: string, options?: {requestId?: string}) => Promise<Message>} send Says
 *     something. It is shown at once with the status "pending"; and with "unsent" if it could not
 *     be sent, which this does not reject for: it gives the message as it is then.
 * @property {(id: string) => Promise<Message>} resend Tries again with a message that is unsent.
 *     Rejects with an `Error` if there is none with this id.
 * @property {(messageId?: string | null, reason?: string) => Promise<unknown>} stop Stops an
 *     answer, or all that are being written. Rejects with a `ConverseError`, or with what was in
 *     the way of the request.
 * @property {(messageId: string) => Promise<Message | null>} retry Asks for another answer instead
 *     of the last one, and gives it; `null` where another process answers. Rejects as `stop` does.
 * @property {() => Promise<void>} loadOlder Loads the page before what is shown. Rejects as `stop`
 *     does.
 * @property {() => void} close Ends it: listeners are not called any more, and nothing is tried
 *     again. What is being sent at this moment still arrives.
 */

/**
 * @typedef {object} Draft
 * What was said here and has no answer of the server yet.
 * @property {Message} message Its id is the id of the request.
 * @property {string | null} match The message that it seems to have become, by its text: the event
 *     of its creation does not say which request made it, and may come before the response does.
 * @property {Promise<Message> | null} sending
 */

/**
 * Opens a conversation: loads its newest messages and follows it until it is closed.
 *
 * @param {ConversationOptions} options
 * @returns {Conversation}
 */
export function openConversation(options) {
  const { conversationId } = options;
  const limit = options.limit ?? DEFAULT_LIMIT;
  const patience = options.patience ?? DEFAULT_PATIENCE;
  const path = pathOf(conversationId);
  const closing = new AbortController();
  const { signal } = closing;

  /** @type {Map<string, Entry>} */
  const entries = new Map();
  /** @type {Entry[]} In the order of their positions. */
  let order = [];
  /** @type {Map<string, Draft>} By the id of the request, in the order in which they were sent. */
  const drafts = new Map();
  /** @type {Snapshot["status"]} */
  let status = "loading";
  /** @type {Error | null} */
  let error = null;
  /** @type {number | null} */
  let before = null;
  /** @type {Promise<void> | null} */
  let loadingOlder = null;
  /** @type {Set<string>} Messages that are not shown and that something was heard of meanwhile. */
  const heard = new Set();
  let lastSent = Promise.resolve();
  /** The id of the request that is being sent: one at a time is. */
  let beingSent = "";

  /** @type {Snapshot | null} */
  let built = null;
  const shown = snapshots(build, options.interval);

  /** @returns {Snapshot} */
  function build() {
    const replaced = new Set(order.map((entry) => entry.message.replaces));
    const messages = order.map(look).filter((message) => !replaced.has(message.id));
    let typing = messages.some((each) => each.role === "assistant" && each.status === "streaming");
    for (const { message, match } of drafts.values()) {
      typing ||= message.status === "pending";
      if (match === null || !entries.has(match)) messages.push(message);
    }
    const same = built !== null && isSame(built.messages, messages);
    const next = {
      status,
      error,
      messages: same && built ? built.messages : Object.freeze(messages),
      hasOlder: before !== null,
      typing,
    };
    if (built === null || !isSameSnapshot(built, next)) built = Object.freeze(next);
    return built;
  }

  // What the server says

  /** @param {Message} message */
  function add(message) {
    const known = entries.get(message.id);
    if (known !== undefined) {
      merge(known, message);
      return;
    }
    const entry = newEntry(message);
    entries.set(message.id, entry);
    let index = order.length;
    while (index > 0 && positionOf(order[index - 1]) > positionOf(entry)) index -= 1;
    order.splice(index, 0, entry);
  }

  const reload = reloader({
    load: (id) => ask(options, pathOf(conversationId, id), { signal }),
    find: (id) => entries.get(id),
    onDone: (id, trouble) => {
      if (trouble instanceof ConverseError && trouble.status === 404) {
        order = order.filter((entry) => entry !== entries.get(id)); // it was deleted
        entries.delete(id);
      }
      shown.change();
    },
    retry: options.retry ?? DEFAULT_RETRY,
    signal,
  });

  /** @param {Event} event */
  function onEvent(event) {
    const id = event.message_id;
    const entry = entries.get(id);
    if (event.type === "message.created") {
      if (entry !== undefined) return;
      add(createdMessage(event));
      if (event.role === "user") matchDraft(id, event.content);
    } else if (entry === undefined) {
      heard.add(id); // one that is older than what is shown
      return;
    } else if (event.type === "message.updated") {
      reload(id, true);
      return;
    } else if (take(entry, event)) {
      reload(id);
    }
    shown.change();
  }

  /** @type {(next: Snapshot["status"], trouble: Error | null) => void} */
  function enter(next, trouble) {
    status = next;
    error = trouble;
    shown.change();
  }

  async function run() {
    try {
      const page = await ask(options, `${path}/messages?limit=${limit}`, {
        signal,
        onTrouble: (trouble) => enter("loading", trouble),
      });
      /** @type {Message[]} */
      const messages = page.messages;
      // What is being sent may be stored already. If so, it is the last one that a user said.
      const last = messages.findLast(({ role }) => role === "user");
      if (last !== undefined && !entries.has(last.id)) matchDraft(last.id, last.content);
      for (const message of messages) add(message);
      before = page.before;
      enter("open", null);
      const watch = watchConversation({
        ...options,
        after: page.cursor,
        signal,
        onEvent,
        onState: (state, trouble) => {
          if (state === "open") enter("open", null);
          else if (state === "waiting") enter("reconnecting", trouble);
        },
      });
      const trouble = await watch.closed;
      if (trouble !== null) throw trouble;
    } catch (trouble) {
      if (!signal.aborted) enter("error", asError(trouble));
    }
  }

  async function readOlder() {
    heard.clear();
    // A page may have nothing that is shown.
    for (let more = true; more && before !== null; ) {
      const query = `limit=${limit}&before=${before}`;
      const page = await ask(options, `${path}/messages?${query}`, { signal, patience });
      before = page.before;
      /** @type {Message[]} */
      const messages = page.messages;
      for (const message of messages) {
        add(message);
        // What was heard of it may have come after it was read.
        if (heard.has(message.id)) reload(message.id);
      }
      more = messages.every(({ id }) => order.some(({ message }) => message.replaces === id));
    }
    shown.publish();
  }

  // What the user does

  /**
   * @param {string} id The id of a message that a user said.
   * @param {string} content
   */
  function matchDraft(id, content) {
    const draft = drafts.get(beingSent);
    if (draft?.message.status === "pending" && draft.message.content === content) draft.match = id;
  }

  /**
   * @param {string} requestId
   * @param {Message} message
   */
  function sendDraft(requestId, message) {
    const draft = drafts.get(requestId);
    if (draft?.sending) return draft.sending;
    // One at a time, so that what is said first is stored first.
    const sending = lastSent.then(() => post(requestId, message));
    lastSent = sending.then(() => {});
    const pending = Object.freeze({ ...message, status: /** @type {const} */ ("pending") });
    drafts.set(requestId, { message: pending, match: null, sending });
    shown.publish();
    return sending;
  }

  /**
   * @param {string} requestId
   * @param {Message} message
   * @returns {Promise<Message>}
   */
  async function post(requestId, message) {
    beingSent = requestId;
    const body = { content: message.content, request_id: requestId };
    try {
      const { message: stored, answer } = await ask(options, `${path}/messages`, {
        body,
        patience,
        signal,
      });
      drafts.delete(requestId);
      add(stored);
      if (answer !== null) add(answer);
      shown.publish();
      return look(/** @type {Entry} */ (entries.get(stored.id)));
    } catch (trouble) {
      /** @type {Message} */
      const unsent = { ...message, status: "unsent", error: asError(trouble).message };
      drafts.set(requestId, { message: Object.freeze(unsent), match: null, sending: null });
      shown.publish();
      return unsent;
    }
  }

  void run();
  return {
    getSnapshot: shown.get,
    subscribe: shown.subscribe,

    send: async (content, { requestId = newRequestId() } = {}) => {
      signal.throwIfAborted();
      return await sendDraft(requestId, {
        id: requestId,
        conversation_id: conversationId,
        position: null,
        role: "user",
        status: "pending",
        content,
        chunk_count: 0,
        metadata: {},
        replaces: null,
        error: null,
        stop_reason: null,
        created_at: new Date().toISOString(),
        completed_at: null,
      });
    },

    resend: async (id) => {
      signal.throwIfAborted();
      const draft = drafts.get(id);
      if (draft === undefined) throw new Error(`No message ${id} is unsent.`);
      return await sendDraft(id, { ...draft.message, error: null });
    },

    stop: async (messageId, reason) => {
      const target = messageId ? pathOf(conversationId, messageId) : path;
      const body = reason === undefined ? {} : { reason };
      return await ask(options, `${target}/stop`, { body, patience, signal });
    },

    retry: async (messageId) => {
      const target = `${pathOf(conversationId, messageId)}/retry`;
      const { answer } = await ask(options, target, { body: {}, patience, signal });
      if (answer === null) return null;
      add(answer);
      shown.publish();
      return look(/** @type {Entry} */ (entries.get(answer.id)));
    },

    loadOlder: () => {
      loadingOlder ??= readOlder().finally(() => {
        loadingOlder = null;
      });
      return loadingOlder;
    },

    close: () => {
      shown.close();
      closing.abort(new Error("The conversation was closed."));
    },
  };
}

/** @param {Entry} entry */
function positionOf(entry) {
  return entry.message.position ?? Infinity;
}

/**
 * @param {readonly unknown[]} left
 * @param {readonly unknown[]} right
 */
function isSame(left, right) {
  return left.length === right.length && left.every((each, index) => each === right[index]);
}

/**
 * @param {Snapshot} left
 * @param {Snapshot} right
 */
function isSameSnapshot(left, right) {
  const names = /** @type {(keyof Snapshot)[]} */ (Object.keys(left));
  return names.every((name) => left[name] === right[name]);
}

/** An id that nobody else makes up, in pages without TLS too, where there is no `randomUUID`. */
function newRequestId() {
  if (crypto.randomUUID) return crypto.randomUUID();
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
