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
export function openOwner(options: OwnerOptions): FollowedOwner;
export type MessageSuspended = import("./watch.js").MessageSuspended;
export type OwnerEvent = import("./watch.js").OwnerEvent;
export type OwnOwnerOptions = {
    /**
     * Called each time that the
     * stream was opened: load your list then.
     */
    onOpened?: ((opened: import("./watch.js").StreamOpened) => void) | undefined;
    /**
     * Called with each event. If this or `onOpened`
     * throws, it ends with that error.
     */
    onEvent?: ((event: OwnerEvent) => void) | undefined;
    /**
     * The shortest time between two calls of a listener, in
     * milliseconds; by default 16.
     */
    interval?: number | undefined;
};
export type OwnerOptions = import("./requests.js").RequestOptions & OwnOwnerOptions;
/**
 * It never changes.
 */
export type OwnerSnapshot = {
    /**
     * "loading" until the stream was
     * opened, "reconnecting" while what waits may be outdated, "error" when nothing can be followed.
     */
    status: "loading" | "open" | "reconnecting" | "error";
    /**
     * The reason, while it is loading, reconnecting or an error.
     */
    error: Error | null;
    /**
     * The answers that wait for people, in no order, each
     * with the calls that wait. It is the same array while nothing of it has changed.
     */
    waiting: readonly MessageSuspended[];
};
export type FollowedOwner = {
    getSnapshot: () => OwnerSnapshot;
    subscribe: (listener: () => void) => () => void;
    close: () => void;
};
