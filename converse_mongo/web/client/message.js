// @ts-check
/** One message, for user interfaces: its text as it grows. */

import { isFinal, look, mayHaveWorker, newEntry, reloader, take } from "./entries.js";
import { DEFAULT_RETRY, asError, ask, pathOf } from "./requests.js";
import { snapshots } from "./snapshots.js";
import { watchMessage } from "./watch.js";

/** @typedef {import("./entries.js").Message} Message */
/** @typedef {import("./entries.js").Entry} Entry */

/**
 * @typedef {object} OwnMessageOptions
 * @property {string} conversationId
 * @property {string} messageId
 * @property {number} [interval] The shortest time between two calls of a listener, in
 *     milliseconds; by default 16.
 */

/** @typedef {import("./requests.js").RequestOptions & OwnMessageOptions} MessageOptions */

/**
 * @typedef {object} MessageSnapshot
 * @property {Message | null} message `null` until it is loaded.
 * @property {"loading" | "open" | "reconnecting" | "ended" | "error"} status "ended" when the
 *     message is final, "error" when it cannot be followed.
 * @property {Error | null} error The reason, while it is loading, reconnecting or an error.
 */

/**
 * @typedef {object} FollowedMessage
 * @property {() => MessageSnapshot} getSnapshot
 * @property {(listener: () => void) => () => void} subscribe
 * @property {() => void} close
 */

/**
 * Loads a message and follows it to its end.
 *
 * @param {MessageOptions} options
 * @returns {FollowedMessage}
 */
export function openMessage(options) {
  const path = pathOf(options.conversationId, options.messageId);
  const closing = new AbortController();
  const { signal } = closing;
  /** @type {Entry | undefined} */
  let entry;
  /** @type {MessageSnapshot["status"]} */
  let status = "loading";
  /** @type {Error | null} */
  let error = null;
  /** @type {MessageSnapshot | null} */
  let built = null;
  const shown = snapshots(build, options.interval);

  /** @returns {MessageSnapshot} */
  function build() {
    const message = entry === undefined ? null : look(entry);
    if (built?.message !== message || built.status !== status || built.error !== error) {
      built = Object.freeze({ message, status, error });
    }
    return built;
  }

  /** @type {(next: MessageSnapshot["status"], trouble?: Error | null) => void} */
  function enter(next, trouble = null) {
    const ended = entry !== undefined && isFinal(entry.message);
    status = ended ? "ended" : next;
    error = ended ? null : trouble;
    shown.change();
  }

  const reload = reloader({
    load: () => ask(options, path, { signal }),
    find: () => entry,
    onDone: (_, trouble) => (trouble === null ? enter(status, error) : enter("error", trouble)),
    retry: options.retry ?? DEFAULT_RETRY,
    signal,
  });

  async function run() {
    try {
      const onTrouble = (/** @type {Error} */ trouble) => enter("loading", trouble);
      /** @type {import("./entries.js").StoredMessage} */
      const message = await ask(options, path, { signal, onTrouble });
      const own = (entry = newEntry(message));
      enter("open");
      if (isFinal(message)) return;
      const watch = watchMessage({
        ...options,
        after: message.cursor,
        signal,
        onEvent: (event) => {
          if (take(own, event)) reload(message.id);
          enter("open");
        },
        onState: (state, trouble) => {
          if (state === "open") {
            enter("open");
            if (mayHaveWorker(own.message)) reload(message.id);
          } else if (state === "waiting") enter("reconnecting", trouble);
        },
      });
      const trouble = await watch.closed;
      if (trouble !== null) throw trouble;
      // The server said that nothing is left, but the end was not received.
      if (!signal.aborted && !isFinal(own.message)) reload(message.id);
    } catch (trouble) {
      if (!signal.aborted) enter("error", asError(trouble));
    }
  }

  void run();
  return {
    getSnapshot: shown.get,
    subscribe: shown.subscribe,
    close: () => {
      shown.close();
      closing.abort(new Error("The message was closed."));
    },
  };
}
