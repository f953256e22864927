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
export function openConversation(options: ConversationOptions): Conversation;
export type Message = import("./entries.js").Message;
export type Entry = import("./entries.js").Entry;
export type Event = import("./watch.js").Event;
export type OwnConversationOptions = {
    conversationId: string;
    /**
     * How many messages a page of the history has, from 1 to 200; by default
     * 50.
     */
    limit?: number | undefined;
    /**
     * Milliseconds for which sending, stopping and the like are tried
     * again while there is trouble that may pass; by default 60,000.
     */
    patience?: number | undefined;
    /**
     * Milliseconds between two calls of a listener, at least, for what
     * comes by itself; by default 16.
     */
    interval?: number | undefined;
};
export type ConversationOptions = import("./requests.js").RequestOptions & OwnConversationOptions;
/**
 * Never changed: what changes is in another one, where all that stayed the same is the same object.
 */
export type Snapshot = {
    /**
     * "loading" until the messages are
     * there, "reconnecting" while they are not followed, "error" once that is no use any more.
     */
    status: "loading" | "open" | "reconnecting" | "error";
    /**
     * What is in the way; with the status "error" a `ConverseError` of
     * what was refused.
     */
    error: Error | null;
    /**
     * In order, without answers that another is given instead
     * of; at the end what was said here and is not stored.
     */
    messages: readonly Message[];
    /**
     * Whether `loadOlder` has something to load.
     */
    hasOlder: boolean;
    /**
     * Whether an answer is being written, or about to be.
     */
    typing: boolean;
};
export type Conversation = {
    getSnapshot: () => Snapshot;
    /**
     * Calls `listener` when there is another
     * snapshot, once for a burst of changes; returns what ends that.
     */
    subscribe: (listener: () => void) => () => void;
    /**
     * Says
     * something. It is shown at once with the status "pending"; and with "unsent" if it could not
     * be sent, which this does not reject for: it gives the message as it is then.
     */
    send: (content: string, options?: {
        requestId?: string;
    }) => Promise<Message>;
    /**
     * Tries again with a message that is unsent.
     * Rejects with an `Error` if there is none with this id.
     */
    resend: (id: string) => Promise<Message>;
    /**
     * Stops an
     * answer, or all that are being written. Rejects with a `ConverseError`, or with what was in
     * the way of the request.
     */
    stop: (messageId?: string | null, reason?: string) => Promise<unknown>;
    /**
     * Asks for another answer instead
     * of the last one, and gives it; `null` where another process answers. Rejects as `stop` does.
     */
    retry: (messageId: string) => Promise<Message | null>;
    /**
     * Loads the page before what is shown. Rejects as `stop`
     * does.
     */
    loadOlder: () => Promise<void>;
    /**
     * Ends it: listeners are not called any more, and nothing is tried
     * again. What is being sent at this moment still arrives.
     */
    close: () => void;
};
/**
 * What was said here and has no answer of the server yet.
 */
export type Draft = {
    /**
     * Its id is the id of the request.
     */
    message: Message;
    /**
     * The message that it seems to have become, by its text: the event
     * of its creation does not say which request made it, and may come before the response does.
     */
    match: string | null;
    sending: Promise<Message> | null;
};
