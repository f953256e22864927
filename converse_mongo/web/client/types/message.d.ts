/** @typedef {import("./entries.js").Message} Message */
/** @typedef {import("./entries.js").Entry} Entry */
/**
 * @typedef {object} OwnMessageOptions
 * @property {string} conversationId
 * @property {string} messageId
 * @property {number} [interval] Milliseconds between two calls of a listener, at least; by default
 *     16.
 */
/** @typedef {import("./requests.js").RequestOptions & OwnMessageOptions} MessageOptions */
/**
 * @typedef {object} MessageSnapshot
 * @property {Message | null} message `null` until it is there.
 * @property {"loading" | "open" | "reconnecting" | "ended" | "error"} status "ended" once the
 *     message is final, "error" once following it is no use any more.
 * @property {Error | null} error What is in the way.
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
     * Milliseconds between two calls of a listener, at least; by default
     * 16.
     */
    interval?: number | undefined;
};
export type MessageOptions = import("./requests.js").RequestOptions & OwnMessageOptions;
export type MessageSnapshot = {
    /**
     * `null` until it is there.
     */
    message: Message | null;
    /**
     * "ended" once the
     * message is final, "error" once following it is no use any more.
     */
    status: "loading" | "open" | "reconnecting" | "ended" | "error";
    /**
     * What is in the way.
     */
    error: Error | null;
};
export type FollowedMessage = {
    getSnapshot: () => MessageSnapshot;
    subscribe: (listener: () => void) => () => void;
    close: () => void;
};
