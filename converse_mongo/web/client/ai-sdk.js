// @ts-check
/** A transport for `useChat` of the AI SDK, which misses nothing and shows nothing twice. */

import { ConverseError, ask, refusal, request, segmentOf, unexpected } from "./requests.js";
import { connect } from "./watch.js";

const DEFAULT_PATIENCE = 60_000;

/**
 * @typedef {object} OwnTransportOptions
 * @property {string} [api] Where the endpoints are; by default "/api/chat".
 * @property {number} [patience] Milliseconds for which loading, sending, and stopping are tried
 *     again after errors that may pass; by default 60,000.
 */

/** @typedef {Partial<import("./requests.js").RequestOptions> & OwnTransportOptions} TransportOptions */

/**
 * @typedef {object} ChatRequest
 * What `useChat` asks for.
 * @property {string} chatId
 * @property {AbortSignal} [abortSignal]
 * @property {Record<string, string> | Headers} [headers] Sent beside those of the transport.
 * @property {object} [body] Sent beside what the endpoint reads.
 * @property {unknown} [metadata]
 */

/**
 * @typedef {object} SendOptions
 * @property {"submit-message" | "regenerate-message"} trigger
 * @property {string | undefined} messageId
 * @property {any[]} messages
 */

/**
 * @typedef {object} LoadOptions
 * @property {number} [limit] The most messages, from 1 to 200; by default 200.
 * @property {number | null} [before] The `before` of a page, to get the page before it.
 * @property {AbortSignal} [signal] Ends the tries.
 */

/**
 * @typedef {object} ChatPage
 * @property {any[]} messages UI messages, the oldest first.
 * @property {number | null} before The `before` of the page before this one; `null` on the first.
 */

/**
 * @typedef {object} ChatState
 * @property {string | null} resume What the page lacks begins here.
 * @property {string | null} run The answer that is being received, or was not received to its end.
 * @property {string | null} question The id of the message that was sent last.
 * @property {boolean} over Whether its answer was received to its end.
 * @property {boolean} stopped Whether the answer is to stop as soon as it has an id.
 * @property {boolean} sending Whether a message is being sent, or another answer asked for.
 */

/**
 * The transport of some chats. It sends the last message alone, continues a broken stream behind
 * what it has, and resumes what the messages of `load` lack.
 */
export class ConverseTransport {
  /** For the SDK: a resumed stream begins anew. */
  resumeStreamIsReplay = true;

  /** @type {Map<string, ChatState>} */
  #chats = new Map();
  #options;

  /** @param {TransportOptions} [options] */
  constructor(options = {}) {
    this.#options = { patience: DEFAULT_PATIENCE, ...options, url: options.api ?? "/api/chat" };
  }

  /**
   * Loads a page of messages, by default the newest: the `messages` to begin `useChat` with.
   *
   * @param {string} chatId
   * @param {LoadOptions} [options]
   * @returns {Promise<ChatPage>}
   * @throws {ConverseError} The server refused it.
   * @throws {Error} The server could not be reached, or `signal` was aborted.
   */
  async load(chatId, { limit, before = null, signal = new AbortController().signal } = {}) {
    const query = new URLSearchParams();
    if (limit !== undefined) query.set("limit", String(limit));
    if (before !== null) query.set("before", String(before));
    /** @type {Headers | null} */
    let headers = null;
    const messages = await ask(this.#options, `${pathOf(chatId)}?${query}`, {
      signal,
      patience: this.#options.patience,
      onResponse: (response) => {
        headers = response.headers;
      },
    });
    /** @param {string} name */
    const header = (name) => headers?.get(name) ?? null;
    if (before === null && !this.#chats.get(chatId)?.sending) {
      this.#chats.set(chatId, { ...newState(), resume: header("x-converse-resume") });
    }
    const older = header("x-converse-before");
    return { messages, before: older === null ? null : Number(older) };
  }

  /**
   * Sends the last message, or asks for another answer. `useChat` calls it. A message that may have
   * arrived is sent again: it is stored and answered once.
   *
   * @param {SendOptions & ChatRequest} request
   * @returns {Promise<ReadableStream<any>>}
   * @throws {ConverseError} The server refused it.
   * @throws {Error} The server could not be reached.
   */
  async sendMessages({ chatId, messages, trigger, messageId, abortSignal, headers, body }) {
    const last = messages.slice(-1).map(needed);
    const state = { ...newState(), question: last[0]?.id ?? null, sending: true };
    this.#chats.set(chatId, state);
    const options = withHeaders(this.#options, headers);
    // It is not aborted, so that a stop finds the answer also while it is being requested.
    const sent = ask(options, "", {
      body: { ...body, id: chatId, messages: last, trigger, messageId },
      // Without an id, the server would take the repetition for a wish for yet another answer.
      patience: trigger === "submit-message" ? this.#options.patience : 0,
      signal: abortSignal ?? new AbortController().signal,
      read: runOf,
    }).then(async (run) => {
      state.run = run;
      if (state.stopped) await this.#stop(chatId, state);
    });
    const sentOrNot = () => {
      state.sending = false;
    };
    sent.then(sentOrNot, sentOrNot); // an error is reported below, if somebody still waits
    await Promise.race([sent, aborted(abortSignal)]);
    return this.#follow(options, state, abortSignal);
  }

  /**
   * Resumes what the page lacks. `useChat` calls it.
   *
   * @param {ChatRequest} request
   * @returns {Promise<ReadableStream<any> | null>} `null` if it lacks nothing.
   * @throws {ConverseError} The server refused it.
   * @throws {Error} The server could not be reached.
   */
  async reconnectToStream({ chatId, abortSignal, headers }) {
    const state = this.#chats.get(chatId) ?? newState();
    this.#chats.set(chatId, state);
    const options = withHeaders(this.#options, headers);
    if (state.run === null) {
      if (state.over || state.question !== null) return null; // it was received, or never sent
      const query = state.resume === null ? "" : `?resume=${state.resume}`;
      const init = abortSignal === undefined ? {} : { signal: abortSignal };
      const response = await request(options, `${pathOf(chatId)}/stream${query}`, init);
      if (response.status === 204) return null;
      state.run = await runOf(response);
    }
    return this.#follow(options, state, abortSignal);
  }

  /**
   * Stops the answer that is being written, also if it has not begun yet. The `stop` of `useChat`
   * only ends the stream on the page.
   *
   * @param {string} chatId
   * @param {string} [reason] Stored with the answer.
   * @returns {Promise<unknown>}
   * @throws {ConverseError} The server refused it.
   * @throws {Error} The server could not be reached.
   */
  async stop(chatId, reason) {
    const state = this.#chats.get(chatId) ?? newState();
    state.stopped = state.run === null;
    return await this.#stop(chatId, state, reason);
  }

  /**
   * @param {string} chatId
   * @param {ChatState} state
   * @param {string} [reason]
   */
  async #stop(chatId, state, reason) {
    const messageId = state.run?.split("_")[2] ?? state.question ?? undefined;
    return await ask(this.#options, `${pathOf(chatId)}/stop`, {
      body: { messageId, reason },
      patience: this.#options.patience,
      signal: new AbortController().signal,
    });
  }

  /**
   * The parts of an answer, over as many connections as it takes.
   *
   * @param {import("./requests.js").RequestOptions} options
   * @param {ChatState} state
   * @param {AbortSignal} [signal]
   * @returns {ReadableStream<any>}
   */
  #follow(options, state, signal) {
    const path = `/${state.run}/stream?startIndex=`;
    let count = 0;
    let cancelled = false;
    /** @type {import("./watch.js").OwnerWatch} */
    let connection;
    return new ReadableStream({
      start: (controller) => {
        const following = signal === undefined ? options : { ...options, signal };
        connection = connect(following, () => path + count, ({ data }) => {
          if (data === "[DONE]") return false;
          const part = JSON.parse(data);
          count += 1;
          const isLast = part.type === "finish" || part.type === "error";
          if (isLast) {
            state.run = null;
            state.over = true;
          }
          controller.enqueue(part);
          return isLast;
        });
        void connection.closed.then((error) => {
          if (cancelled) return;
          if (error === null) controller.close();
          else controller.error(error);
        });
      },
      cancel: () => {
        cancelled = true;
        connection.close();
      },
    });
  }
}

/**
 * What the server reads of a message: of an answer, the tool calls.
 *
 * @param {any} message
 */
function needed(message) {
  if (message.role !== "assistant") return message;
  /** @param {{ type: string }} part */
  const isCall = ({ type }) => type.startsWith("tool-") || type === "dynamic-tool";
  return { ...message, parts: message.parts.filter(isCall) };
}

/** @returns {ChatState} */
function newState() {
  return { resume: null, run: null, question: null, over: false, stopped: false, sending: false };
}

/**
 * The path of a chat. An id from the address of a page must not lead anywhere else.
 *
 * @param {string} chatId
 */
function pathOf(chatId) {
  if (/^\.{0,2}$/.test(chatId)) {
    throw new ConverseError("There is no such conversation.", 404, "not_found");
  }
  return `/${segmentOf(chatId)}`;
}

/**
 * @param {import("./requests.js").RequestOptions} options
 * @param {Record<string, string> | Headers} [more]
 * @returns {import("./requests.js").RequestOptions}
 */
function withHeaders(options, more) {
  if (more === undefined) return options;
  const own = options.headers;
  const added = Object.fromEntries(new Headers(more));
  return {
    ...options,
    headers: async () => ({ ...(typeof own === "function" ? await own() : own), ...added }),
  };
}

/**
 * The run of a response that streams an answer. It is received by its run id, so that each
 * connection can continue the one before it.
 *
 * @param {Response} response
 */
async function runOf(response) {
  if (!response.ok) throw await refusal(response);
  const run = response.headers.get("x-workflow-run-id");
  if (run === null) throw await unexpected(response, "no_run");
  await response.body?.cancel();
  return run;
}

/**
 * Rejects when a signal is aborted.
 *
 * @param {AbortSignal} [signal]
 * @returns {Promise<never>}
 */
function aborted(signal) {
  return new Promise((_, reject) => {
    if (signal?.aborted) reject(signal.reason);
    signal?.addEventListener("abort", () => reject(signal.reason));
  });
}
