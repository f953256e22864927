// @ts-check
/** A conversation, for user interfaces: its messages, and the actions of its user. */

import {
  createdMessage,
  look,
  mayHaveWorker,
  merge,
  messageOf,
  newEntry,
  reloader,
  setWork,
  take,
} from "./entries.js";
import { partsToSend, wireOf } from "./files.js";
import { DEFAULT_RETRY, ConverseError, asError, ask, pathOf } from "./requests.js";
import { snapshots } from "./snapshots.js";
import { watchConversation } from "./watch.js";

const DEFAULT_LIMIT = 50;
const DEFAULT_PATIENCE = 60_000;

// For the user of a page.
const NOT_SENT = "You stopped this message before it was sent.";

/** @typedef {import("./entries.js").Message} Message */
/** @typedef {import("./entries.js").StoredMessage} StoredMessage */
/** @typedef {import("./entries.js").Work} Work */
/** @typedef {import("./entries.js").Entry} Entry */
/** @typedef {import("./files.js").SentFile} SentFile */
/** @typedef {import("./watch.js").Event} Event */

/**
 * @typedef {object} OwnConversationOptions
 * @property {string} conversationId
 * @property {number} [limit] The number of messages in a page of history, from 1 to 200; by default
 *     50.
 * @property {number} [patience] Milliseconds for which sending, stopping and the like are tried
 *     again after errors that may pass; by default 60,000.
 * @property {number} [interval] The shortest time between two calls of a listener after events of
 *     the server, in milliseconds; by default 16.
 */

/** @typedef {import("./requests.js").RequestOptions & OwnConversationOptions} ConversationOptions */

/**
 * @typedef {{call_id: string, approved: boolean, reason?: string}} ApprovalAnswer Allows a tool call,
 *     or does not.
 */
/** @typedef {{call_id: string, output: unknown}} OutputAnswer The output of a tool that ran here. */
/** @typedef {{call_id: string, error: string}} ErrorAnswer Why such a tool has none. */
/** @typedef {ApprovalAnswer | OutputAnswer | ErrorAnswer} CallAnswer */

/**
 * @typedef {object} Snapshot
 * It never changes. A later snapshot has the same objects for all that has not changed.
 * @property {"loading" | "open" | "reconnecting" | "error"} status "loading" until the messages are
 *     loaded, "reconnecting" while they are not followed, "error" when they cannot be followed.
 * @property {Error | null} error The reason, while it is loading, reconnecting or an error; with
 *     the status "error" the `ConverseError` of the refused request.
 * @property {readonly Message[]} messages In order, without answers that were replaced; at the end
 *     the messages of this client that are not stored.
 * @property {boolean} hasOlder Whether `loadOlder` has something to load.
 * @property {boolean} typing Whether an answer is being written, or is about to be; one that waits for
 *     people is not.
 */

/**
 * @typedef {object} Conversation
 * @property {() => Snapshot} getSnapshot
 * @property {(listener: () => void) => () => void} subscribe Calls `listener` when there is another
 *     snapshot, once for a burst of changes; returns a function that ends that.
 * @property {(content: string, options?: {requestId?: string, files?: readonly SentFile[]}) => Promise<Message>} send
 *     Sends a message, which needs no text if it has files. It is shown at once with the status
 *     "pending", and with "unsent" if it could not be sent. Resolves with the message in either case.
 * @property {(id: string) => Promise<Message>} resend Sends an unsent message again. Rejects with
 *     an `Error` if there is none with this id.
 * @property {(messageId?: string | null, reason?: string) => Promise<unknown>} stop Stops an
 *     answer, or all that are being written or have been asked for. The id of a pending message
 *     stops the answer to it: what was not sent yet is not sent, and is "unsent" then. Rejects with
 *     a `ConverseError`, or with the error of the network.
 * @property {(messageId: string) => Promise<Message | null>} retry Starts another answer in place
 *     of the last one, and resolves with it; with `null` if another process answers. Rejects as
 *     `stop` does.
 * @property {(messageId: string, answers: CallAnswer[]) => Promise<Work | null>} answerToolCalls
 *     Answers tool calls that wait, all or none, and resolves with what the message waits for then;
 *     with `null` if it has ended. Rejects as `stop` does; with the code "not_pending" if somebody
 *     else was faster.
 * @property {() => Promise<void>} loadOlder Loads the page before the first message. Rejects as
 *     `stop` does.
 * @property {() => void} close Ends it: listeners are no longer called, and nothing is tried again.
 *     A request in progress is still completed.
 */

/**
 * @typedef {object} Draft
 * A message of this client for which there is no response yet.
 * @property {Message} message Its id is the id of the request.
 * @property {readonly SentFile[]} files
 * @property {string | null} match The stored message with the same text. The event of its creation
 *     does not name the request, and may arrive before the response.
 * @property {Promise<Message> | null} sending
 * @property {boolean} stopped Whether its user has stopped it. The server remembers that by the id
 *     of the request, so that it is sent again under another one.
 */

/**
 * @typedef {object} Retry
 * A request for another answer, for which there is no response yet.
 * @property {string} messageId The answer to replace.
 * @property {((target: string) => Promise<any>) | null} stop Stops the new answer, if its user has
 *     asked for that meanwhile.
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
  /** @type {Set<Retry>} */
  const retries = new Set();
  /** @type {Snapshot["status"]} */
  let status = "loading";
  /** @type {Error | null} */
  let error = null;
  /** @type {number | null} */
  let before = null;
  /** @type {Promise<void> | null} */
  let loadingOlder = null;
  /** @type {Set<string>} Messages with events that are older than the loaded ones. */
  const heard = new Set();
  let lastSent = Promise.resolve();
  /** The id of the request that is being sent; there is one at a time. */
  let beingSent = "";

  /** @type {Snapshot | null} */
  let built = null;
  const shown = snapshots(build, options.interval);

  /** @returns {Snapshot} */
  function build() {
    const replaced = new Set(order.map((entry) => entry.message.replaces));
    const messages = order.map(look).filter((message) => !replaced.has(message.id));
    let typing = messages.some(
      ({ role, status, work }) =>
        role === "assistant" && status === "streaming" && work?.state !== "waiting",
    );
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

  // From the server

  /** @param {StoredMessage} message */
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
      heard.add(id); // older than the loaded messages
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
      const how = { onTrouble: (/** @type {Error} */ trouble) => enter("loading", trouble) };
      const page = await ask(options, `${path}/messages?limit=${limit}`, { signal, ...how });
      /** @type {StoredMessage[]} */
      const messages = page.messages;
      // The message that is being sent may be stored already. If so, it is the last user message.
      const last = messages.findLast(({ role }) => role === "user");
      if (last !== undefined && !entries.has(last.id)) matchDraft(last.id, last.content);
      for (const message of messages) add(message);
      before = page.before;
      if (before !== null && isReplaced(messages)) await loadOlder(how);
      enter("open", null);
      const watch = watchConversation({
        ...options,
        after: page.cursor,
        signal,
        onEvent,
        onState: (state, trouble) => {
          if (state === "open") {
            enter("open", null);
            for (const { message } of order) if (mayHaveWorker(message)) reload(message.id);
          } else if (state === "waiting") enter("reconnecting", trouble);
        },
      });
      const trouble = await watch.closed;
      if (trouble !== null) throw trouble;
    } catch (trouble) {
      if (!signal.aborted) enter("error", asError(trouble));
    }
  }

  /**
   * Whether there is nothing to show in a page.
   *
   * @param {StoredMessage[]} page
   */
  function isReplaced(page) {
    return page.every(({ id }) => order.some(({ message }) => message.replaces === id));
  }

  /** @param {Pick<import("./requests.js").AskOptions, "patience" | "onTrouble">} how */
  function loadOlder(how) {
    loadingOlder ??= readOlder(how).finally(() => {
      loadingOlder = null;
    });
    return loadingOlder;
  }

  /** @param {Pick<import("./requests.js").AskOptions, "patience" | "onTrouble">} how */
  async function readOlder(how) {
    heard.clear();
    for (let more = true; more && before !== null; ) {
      const query = `limit=${limit}&before=${before}`;
      const page = await ask(options, `${path}/messages?${query}`, { signal, ...how });
      before = page.before;
      /** @type {StoredMessage[]} */
      const messages = page.messages;
      for (const message of messages) {
        add(message);
        // Its events may be newer than the page.
        if (heard.has(message.id)) reload(message.id);
      }
      more = isReplaced(messages);
    }
    shown.publish();
  }

  // From the user

  /**
   * @param {string} id The id of a user message.
   * @param {string} content
   */
  function matchDraft(id, content) {
    const draft = drafts.get(beingSent);
    if (draft?.message.status === "pending" && draft.message.content === content) draft.match = id;
  }

  /**
   * @param {string} requestId
   * @param {Message} message
   * @param {readonly SentFile[]} files
   */
  function sendDraft(requestId, message, files) {
    const known = drafts.get(requestId);
    if (known?.sending) return known.sending;
    /** @type {Draft} */
    const draft = {
      message: Object.freeze({ ...message, status: /** @type {const} */ ("pending") }),
      files,
      match: null,
      sending: null,
      stopped: false,
    };
    // One at a time, so that messages are stored in the order in which they were sent.
    const sending = lastSent.then(() => post(requestId, draft));
    lastSent = sending.then(() => {});
    draft.sending = sending;
    drafts.set(requestId, draft);
    shown.publish();
    return sending;
  }

  /**
   * @param {string} requestId
   * @param {Draft} draft
   * @returns {Promise<Message>}
   */
  async function post(requestId, draft) {
    if (drafts.get(requestId) !== draft) return draft.message; // it was stopped
    beingSent = requestId;
    const files = draft.files.length > 0 ? { files: draft.files.map(wireOf) } : {};
    const body = { content: draft.message.content, ...files, request_id: requestId };
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
      // Unless it was refused, it may be stored, and must keep its id.
      draft.stopped &&= trouble instanceof ConverseError && trouble.status < 500;
      return keepUnsent(requestId, draft, asError(trouble).message);
    }
  }

  /**
   * @param {string} requestId
   * @param {Draft} draft
   * @param {string} error
   */
  function keepUnsent(requestId, draft, error) {
    draft.message = Object.freeze({ ...draft.message, status: "unsent", error });
    drafts.set(requestId, { ...draft, match: null, sending: null });
    shown.publish();
    return draft.message;
  }

  void run();
  return {
    getSnapshot: shown.get,
    subscribe: shown.subscribe,

    send: async (content, { requestId = newRequestId(), files = [] } = {}) => {
      signal.throwIfAborted();
      return await sendDraft(
        requestId,
        messageOf({
          id: requestId,
          conversation_id: conversationId,
          position: null,
          role: "user",
          status: "pending",
          content,
          ...(files.length > 0 ? { parts: partsToSend(content, files) } : {}),
          chunk_count: 0,
          metadata: {},
          replaces: null,
          error: null,
          stop_reason: null,
          created_at: new Date().toISOString(),
          completed_at: null,
        }),
        files,
      );
    },

    resend: async (id) => {
      signal.throwIfAborted();
      const draft = drafts.get(id);
      if (draft === undefined) throw new Error(`No unsent message has the id ${id}.`);
      const next = draft.stopped ? newRequestId() : id;
      if (next !== id) drafts.delete(id);
      return await sendDraft(next, { ...draft.message, id: next, error: null }, draft.files);
    },

    stop: async (messageId, reason) => {
      /** @type {(target: string, more?: object) => Promise<any>} */
      const stopAt = (target, more) => {
        const body = reason === undefined ? { ...more } : { reason, ...more };
        return ask(options, `${target}/stop`, { body, patience, signal });
      };
      for (const retry of retries) {
        if (!messageId || messageId === retry.messageId) retry.stop = stopAt;
      }
      if (messageId && !drafts.has(messageId)) {
        return await stopAt(pathOf(conversationId, messageId));
      }
      const stops = [];
      for (const [id, draft] of [...drafts]) {
        if (draft.message.status !== "pending" || (messageId && id !== messageId)) continue;
        if (id === beingSent) {
          draft.stopped = true;
          stops.push(stopAt(path, { request_id: id }));
        } else {
          keepUnsent(id, draft, NOT_SENT);
        }
      }
      if (!messageId) stops.push(stopAt(path));
      const answers = await Promise.all(stops);
      return { stopped: answers.flatMap(({ stopped }) => stopped) };
    },

    retry: async (messageId) => {
      const target = `${pathOf(conversationId, messageId)}/retry`;
      /** @type {Retry} */
      const retry = { messageId, stop: null };
      retries.add(retry);
      const { answer } = await ask(options, target, { body: {}, patience, signal }).finally(() =>
        retries.delete(retry),
      );
      if (answer === null) return null;
      add(answer);
      shown.publish();
      await retry.stop?.(pathOf(conversationId, answer.id));
      return look(/** @type {Entry} */ (entries.get(answer.id)));
    },

    answerToolCalls: async (messageId, answers) => {
      const news = entries.get(messageId)?.news;
      const target = `${pathOf(conversationId, messageId)}/answers`;
      const body = { answers, request_id: newRequestId() };
      /** @type {{work: Work | null}} */
      const { work } = await ask(options, target, { body, patience, signal });
      const entry = entries.get(messageId);
      if (work !== null && entry !== undefined && entry.news === news) {
        setWork(entry, work);
        shown.publish();
      }
      return work;
    },

    loadOlder: () => loadOlder({ patience }),

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

/** A unique id, also in pages without TLS, where there is no `randomUUID`. */
function newRequestId() {
  if (crypto.randomUUID) return crypto.randomUUID();
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
