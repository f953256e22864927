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
export function openConversation(options: ConversationOptions): Conversation;
export type Message = import("./entries.js").Message;
export type StoredMessage = import("./entries.js").StoredMessage;
export type Work = import("./entries.js").Work;
export type Entry = import("./entries.js").Entry;
export type SentFile = import("./files.js").SentFile;
export type Event = import("./watch.js").Event;
export type OwnConversationOptions = {
    conversationId: string;
    /**
     * The number of messages in a page of history, from 1 to 200; by default
     * 50.
     */
    limit?: number | undefined;
    /**
     * Milliseconds for which sending, stopping and the like are tried
     * again after errors that may pass; by default 60,000.
     */
    patience?: number | undefined;
    /**
     * The shortest time between two calls of a listener after events of
     * the server, in milliseconds; by default 16.
     */
    interval?: number | undefined;
};
export type ConversationOptions = import("./requests.js").RequestOptions & OwnConversationOptions;
/**
 * Allows a tool call,
 *     or does not.
 */
export type ApprovalAnswer = {
    call_id: string;
    approved: boolean;
    reason?: string;
};
/**
 * The output of a tool that ran here.
 */
export type OutputAnswer = {
    call_id: string;
    output: unknown;
};
/**
 * Why such a tool has none.
 */
export type ErrorAnswer = {
    call_id: string;
    error: string;
};
export type CallAnswer = ApprovalAnswer | OutputAnswer | ErrorAnswer;
/**
 * It never changes. A later snapshot has the same objects for all that has not changed.
 */
export type Snapshot = {
    /**
     * "loading" until the messages are
     * loaded, "reconnecting" while they are not followed, "error" when they cannot be followed.
     */
    status: "loading" | "open" | "reconnecting" | "error";
    /**
     * The reason, while it is loading, reconnecting or an error; with
     * the status "error" the `ConverseError` of the refused request.
     */
    error: Error | null;
    /**
     * In order, without answers that were replaced; at the end
     * the messages of this client that are not stored.
     */
    messages: readonly Message[];
    /**
     * Whether `loadOlder` has something to load.
     */
    hasOlder: boolean;
    /**
     * Whether an answer is being written, or is about to be; one that waits for
     * people is not.
     */
    typing: boolean;
};
export type Conversation = {
    getSnapshot: () => Snapshot;
    /**
     * Calls `listener` when there is another
     * snapshot, once for a burst of changes; returns a function that ends that.
     */
    subscribe: (listener: () => void) => () => void;
    /**
     *     Sends a message, which needs no text if it has files. It is shown at once with the status
     *     "pending", and with "unsent" if it could not be sent. Resolves with the message in either case.
     */
    send: (content: string, options?: {
        requestId?: string;
        files?: readonly SentFile[];
    }) => Promise<Message>;
    /**
     * Sends an unsent message again. Rejects with
     * an `Error` if there is none with this id.
     */
    resend: (id: string) => Promise<Message>;
    /**
     * Stops an
     * answer, or all that are being written or have been asked for. The id of a pending message
     * stops the answer to it: what was not sent yet is not sent, and is "unsent" then. Rejects with
     * a `ConverseError`, or with the error of the network.
     */
    stop: (messageId?: string | null, reason?: string) => Promise<unknown>;
    /**
     * Starts another answer in place
     * of the last one, and resolves with it; with `null` if another process answers. Rejects as
     * `stop` does.
     */
    retry: (messageId: string) => Promise<Message | null>;
    /**
     *     Answers tool calls that wait, all or none, and resolves with what the message waits for then;
     *     with `null` if it has ended. Rejects as `stop` does; with the code "not_pending" if somebody
     *     else was faster.
     */
    answerToolCalls: (messageId: string, answers: CallAnswer[]) => Promise<Work | null>;
    /**
     * Loads the page before the first message. Rejects as
     * `stop` does.
     */
    loadOlder: () => Promise<void>;
    /**
     * Ends it: listeners are no longer called, and nothing is tried again.
     * A request in progress is still completed.
     */
    close: () => void;
};
/**
 * A message of this client for which there is no response yet.
 */
export type Draft = {
    /**
     * Its id is the id of the request.
     */
    message: Message;
    files: readonly SentFile[];
    /**
     * The stored message with the same text. The event of its creation
     * does not name the request, and may arrive before the response.
     */
    match: string | null;
    sending: Promise<Message> | null;
    /**
     * Whether its user has stopped it. The server remembers that by the id
     * of the request, so that it is sent again under another one.
     */
    stopped: boolean;
};
/**
 * A request for another answer, for which there is no response yet.
 */
export type Retry = {
    /**
     * The answer to replace.
     */
    messageId: string;
    /**
     * Stops the new answer, if its user has
     * asked for that meanwhile.
     */
    stop: ((target: string) => Promise<any>) | null;
};
