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
export function openMessage(options: MessageOptions): FollowedMessage;
export type Message = import("./entries.js").Message;
export type Entry = import("./entries.js").Entry;
export type OwnMessageOptions = {
    conversationId: string;
    messageId: string;
    /**
     * The shortest time between two calls of a listener, in
     * milliseconds; by default 16.
     */
    interval?: number | undefined;
};
export type MessageOptions = import("./requests.js").RequestOptions & OwnMessageOptions;
export type MessageSnapshot = {
    /**
     * `null` until it is loaded.
     */
    message: Message | null;
    /**
     * "ended" when the
     * message is final, "error" when it cannot be followed.
     */
    status: "loading" | "open" | "reconnecting" | "ended" | "error";
    /**
     * The reason, while it is loading, reconnecting or an error.
     */
    error: Error | null;
};
export type FollowedMessage = {
    getSnapshot: () => MessageSnapshot;
    subscribe: (listener: () => void) => () => void;
    close: () => void;
};
