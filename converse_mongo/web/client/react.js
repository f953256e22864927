// @ts-check
/** Hooks for React 18 and later. */

import { useEffect, useMemo, useRef, useSyncExternalStore } from "react";

import { openConversation } from "./conversation.js";
import { openMessage } from "./message.js";

/** @typedef {import("./conversation.js").Conversation} Conversation */
/** @typedef {import("./conversation.js").Snapshot} Snapshot */
/** @typedef {import("./message.js").MessageSnapshot} MessageSnapshot */
/** @typedef {Omit<import("./conversation.js").ConversationOptions, "conversationId">} Options */

/**
 * @typedef {Pick<Conversation, "send" | "resend" | "stop" | "retry" | "loadOlder">} Actions
 * They are always the same functions while the id is the same, and throw before the first effect.
 */

/** @type {Snapshot} */
const LOADING = Object.freeze({
  status: "loading",
  error: null,
  messages: Object.freeze([]),
  hasOlder: false,
  typing: false,
});

/** @type {MessageSnapshot} */
const LOADING_MESSAGE = Object.freeze({ message: null, status: "loading", error: null });

/**
 * Follows a conversation while the component is mounted.
 *
 * Each use has a connection of its own: use it once for a conversation and pass on what it gives.
 *
 * @param {string | null | undefined} conversationId Without one it waits, with the status
 *     "loading".
 * @param {Options} options Of these, `url` opens the conversation anew when it changes. The others
 *     may be made in each render; `headers` and `fetch` are taken from the last one.
 * @returns {Snapshot & Actions}
 */
export function useConversation(conversationId, options) {
  const latest = useLatest(options);
  const { url } = options;
  const shared = useMemo(
    () =>
      share(LOADING, () =>
        conversationId == null
          ? null
          : openConversation({ ...current(latest), url, conversationId }),
      ),
    [latest, url, conversationId],
  );
  const snapshot = useShared(shared);
  const actions = useMemo(() => actionsOf(shared), [shared]);
  return useMemo(() => ({ ...snapshot, ...actions }), [snapshot, actions]);
}

/**
 * Follows one message to its end while the component is mounted.
 *
 * @param {string | null | undefined} conversationId
 * @param {string | null | undefined} messageId Without one it waits, with the status "loading".
 * @param {Omit<Options, "limit" | "patience">} options
 * @returns {MessageSnapshot}
 */
export function useStreamingMessage(conversationId, messageId, options) {
  const latest = useLatest(options);
  const { url } = options;
  const shared = useMemo(
    () =>
      share(LOADING_MESSAGE, () =>
        conversationId == null || messageId == null
          ? null
          : openMessage({ ...current(latest), url, conversationId, messageId }),
      ),
    [latest, url, conversationId, messageId],
  );
  return useShared(shared);
}

/**
 * @template T
 * @param {Shared<any, T>} shared
 */
function useShared({ subscribe, getSnapshot, getServerSnapshot }) {
  return useSyncExternalStore(subscribe, getSnapshot, getServerSnapshot);
}

/**
 * What was passed in the last render that was shown.
 *
 * @template T
 * @param {T} value
 */
function useLatest(value) {
  const latest = useRef(value);
  useEffect(() => {
    latest.current = value;
  });
  return latest;
}

/**
 * The options as they are now, and as they will be at the time of each request.
 *
 * @template {Omit<Options, "limit" | "patience">} O
 * @param {{current: O}} latest
 * @returns {O}
 */
function current(latest) {
  return {
    ...latest.current,
    headers: () => {
      const { headers } = latest.current;
      return (typeof headers === "function" ? headers() : headers) ?? {};
    },
    fetch: (/** @type {Parameters<typeof fetch>} */ ...request) =>
      (latest.current.fetch ?? globalThis.fetch)(...request),
  };
}

/**
 * @template T
 * @typedef {object} Store
 * @property {() => T} getSnapshot
 * @property {(listener: () => void) => () => void} subscribe
 * @property {() => void} close
 */

/**
 * @template {Store<T>} S
 * @template T
 * @typedef {object} Shared
 * @property {() => S | null} get The store; `null` while nobody is subscribed.
 * @property {() => T} getSnapshot
 * @property {() => T} getServerSnapshot
 * @property {(listener: () => void) => () => void} subscribe
 */

/**
 * A store that is open while anybody is subscribed to it. So nothing is opened by rendering, which
 * may happen on a server, and may come to nothing.
 *
 * @template {Store<T>} S
 * @template T
 * @param {T} initial
 * @param {() => S | null} open
 * @returns {Shared<S, T>}
 */
function share(initial, open) {
  /** @type {S | null} */
  let store = null;
  /** @type {T | undefined} The first snapshot of the store, which says what `initial` does. */
  let first;
  let users = 0;
  return {
    get: () => store,
    getSnapshot: () => {
      const snapshot = store?.getSnapshot();
      return snapshot === undefined || snapshot === first ? initial : snapshot;
    },
    getServerSnapshot: () => initial,
    subscribe: (listener) => {
      users += 1;
      if (store === null) {
        store = open();
        first = store?.getSnapshot();
      }
      const unsubscribe = store?.subscribe(listener);
      return () => {
        users -= 1;
        unsubscribe?.();
        // In strict mode each effect is undone and done again at once, which opens nothing twice.
        queueMicrotask(() => {
          if (users > 0) return;
          store?.close();
          store = null;
        });
      };
    },
  };
}

/**
 * @param {Shared<Conversation, Snapshot>} shared
 * @returns {Actions}
 */
function actionsOf(shared) {
  const opened = () => {
    const conversation = shared.get();
    if (conversation === null) throw new Error("The conversation is not open.");
    return conversation;
  };
  return {
    send: async (content, options) => await opened().send(content, options),
    resend: async (id) => await opened().resend(id),
    stop: async (messageId, reason) => await opened().stop(messageId, reason),
    retry: async (messageId) => await opened().retry(messageId),
    loadOlder: async () => await opened().loadOlder(),
  };
}
