// @ts-check
/** Hooks for React 18 and later. */

import { useEffect, useMemo, useRef, useSyncExternalStore } from "react";

import { openConversation } from "./conversation.js";
import { openMessage } from "./message.js";
import { openOwner } from "./owner.js";

/** @typedef {import("./conversation.js").Conversation} Conversation */
/** @typedef {import("./conversation.js").Snapshot} Snapshot */
/** @typedef {import("./message.js").MessageSnapshot} MessageSnapshot */
/** @typedef {import("./owner.js").OwnerSnapshot} OwnerSnapshot */
/** @typedef {Omit<import("./conversation.js").ConversationOptions, "conversationId">} Options */

/**
 * @typedef {Pick<Conversation, "send" | "resend" | "stop" | "retry" | "answerToolCalls" | "loadOlder">} Actions
 * The functions stay the same while the id does, and throw before the first effect.
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

/** @type {OwnerSnapshot} */
const LOADING_OWNER = Object.freeze({ status: "loading", error: null, waiting: Object.freeze([]) });

/**
 * Follows a conversation while the component is mounted.
 *
 * Each use has its own connection: use it once for a conversation and pass on its result.
 *
 * @param {string | null | undefined} conversationId Without one it waits, with the status
 *     "loading".
 * @param {Options} options A change of `url` opens the conversation again. The others may be new in
 *     each render; `headers` and `fetch` of the last one are used.
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
 * Follows all conversations of the user while the component is mounted: which answers wait for people,
 * and, with `onOpened` and `onEvent`, the news for a list.
 *
 * @param {import("./owner.js").OwnerOptions} options A change of `url` opens it again. The others may be
 *     new in each render; the functions of the last one are used.
 * @returns {OwnerSnapshot}
 */
export function useOwner(options) {
  const latest = useLatest(options);
  const { url } = options;
  const shared = useMemo(
    () =>
      share(LOADING_OWNER, () =>
        openOwner({
          ...current(latest),
          url,
          onOpened: (opened) => latest.current.onOpened?.(opened),
          onEvent: (event) => latest.current.onEvent?.(event),
        }),
      ),
    [latest, url],
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
 * A reference to the value of the last committed render.
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
 * The current options; `headers` and `fetch` are looked up at the time of each request.
 *
 * @template {import("./requests.js").RequestOptions} O
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
 * @property {() => S | null} get Returns the store; `null` while it has no subscriber.
 * @property {() => T} getSnapshot
 * @property {() => T} getServerSnapshot
 * @property {(listener: () => void) => () => void} subscribe
 */

/**
 * A store that is open while it has subscribers. Rendering opens nothing, since it may happen on a
 * server or be discarded.
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
  /** @type {T | undefined} The first snapshot of the store, which is equal to `initial`. */
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
        // Strict mode repeats each effect at once, which must not open the store twice.
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
    answerToolCalls: async (messageId, answers) => await opened().answerToolCalls(messageId, answers),
    loadOlder: async () => await opened().loadOlder(),
  };
}
