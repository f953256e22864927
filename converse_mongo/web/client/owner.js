// @ts-check
/** All conversations of a user, for user interfaces: which answers wait for people. */

import { snapshots } from "./snapshots.js";
import { watchOwner } from "./watch.js";

/** @typedef {import("./watch.js").MessageSuspended} MessageSuspended */
/** @typedef {import("./watch.js").OwnerEvent} OwnerEvent */

/**
 * @typedef {object} OwnOwnerOptions
 * @property {(opened: import("./watch.js").StreamOpened) => void} [onOpened] Called each time that the
 *     stream was opened: load your list then.
 * @property {(event: OwnerEvent) => void} [onEvent] Called with each event. If this or `onOpened`
 *     throws, it ends with that error.
 * @property {number} [interval] The shortest time between two calls of a listener, in
 *     milliseconds; by default 16.
 */

/** @typedef {import("./requests.js").RequestOptions & OwnOwnerOptions} OwnerOptions */

/**
 * @typedef {object} OwnerSnapshot
 * It never changes.
 * @property {"loading" | "open" | "reconnecting" | "error"} status "loading" until the stream was
 *     opened, "reconnecting" while what waits may be outdated, "error" when nothing can be followed.
 * @property {Error | null} error The reason, while it is loading, reconnecting or an error.
 * @property {readonly MessageSuspended[]} waiting The answers that wait for people, in no order, each
 *     with the calls that wait. It is the same array while nothing of it has changed.
 */

/**
 * @typedef {object} FollowedOwner
 * @property {() => OwnerSnapshot} getSnapshot
 * @property {(listener: () => void) => () => void} subscribe
 * @property {() => void} close
 */

/**
 * Follows all conversations of the user until it is closed.
 *
 * @param {OwnerOptions} options
 * @returns {FollowedOwner}
 */
export function openOwner(options) {
  /** @type {OwnerSnapshot} */
  let built = Object.freeze({ status: "loading", error: null, waiting: Object.freeze([]) });
  const shown = snapshots(() => built, options.interval);

  /** @param {Partial<OwnerSnapshot>} fields */
  function set(fields) {
    built = Object.freeze({ ...built, ...fields });
    shown.change();
  }

  /** @param {OwnerEvent} event */
  function take(event) {
    const isOver = event.type === "conversation.deleted" ? isIn(event) : isOf(event);
    const rest = built.waiting.filter((each) => !isOver(each));
    if (event.type === "message.suspended") rest.push(event);
    else if (rest.length === built.waiting.length) return;
    set({ waiting: Object.freeze(rest) });
  }

  const watch = watchOwner({
    ...options,
    onState: (state, error) => {
      if (state === "closed") set({ status: "error", error });
      else if (state === "waiting") {
        set({ status: built.status === "loading" ? "loading" : "reconnecting", error });
      }
    },
    onOpened: (opened) => {
      set({ status: "open", error: null, waiting: Object.freeze(opened.waiting) });
      options.onOpened?.(opened);
    },
    onEvent: (event) => {
      take(event);
      options.onEvent?.(event);
    },
  });

  return {
    getSnapshot: shown.get,
    subscribe: shown.subscribe,
    close: () => {
      shown.close();
      watch.close();
    },
  };
}

/**
 * Whether something is in the conversation of an event.
 *
 * @param {OwnerEvent} event
 * @returns {(each: MessageSuspended) => boolean}
 */
function isIn(event) {
  return (each) => each.conversation_id === event.conversation_id;
}

/**
 * Whether something is of the message of an event.
 *
 * @param {OwnerEvent} event
 * @returns {(each: MessageSuspended) => boolean}
 */
function isOf(event) {
  return (each) => "message_id" in event && each.message_id === event.message_id;
}
