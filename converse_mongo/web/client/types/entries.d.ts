/** @param {Message} message */
export function isFinal(message: Message): boolean;
/**
 * @param {Message} message
 * @returns {Entry}
 */
export function newEntry(message: Message): Entry;
/**
 * The message that a `message.created` tells of.
 *
 * @param {import("./watch.js").MessageCreated} event
 * @returns {Message}
 */
export function createdMessage(event: import("./watch.js").MessageCreated): Message;
/**
 * The message as it is now; the same object while nothing changed.
 *
 * @param {Entry} entry
 */
export function look(entry: Entry): Message;
/**
 * Takes an event of a chunk or of the end, and no other. What was seen before changes nothing.
 *
 * @param {Entry} entry
 * @param {ConversationEvent} event
 * @returns {boolean} Whether something is missing, so that the message is to be loaded again.
 */
export function take(entry: Entry, event: ConversationEvent): boolean;
/**
 * Takes the message as it was loaded, which may have been before what is known of it by now.
 *
 * @param {Entry} entry
 * @param {Message} loaded
 */
export function merge(entry: Entry, loaded: Message): void;
/**
 * Makes a function that loads a message again, one request for a message at a time.
 *
 * @param {object} options
 * @param {(id: string) => Promise<Message>} options.load
 * @param {(id: string) => Entry | undefined} options.find
 * @param {(id: string, error: Error | null) => void} options.onDone Called after each load, and when
 *     loading failed for good.
 * @param {number} options.retry Milliseconds.
 * @param {AbortSignal} options.signal
 * @returns {(id: string, saved?: boolean) => void} Takes whether the message was saved, so that one
 *     that is being loaded at this moment may be too old.
 */
export function reloader({ load, find, onDone, retry, signal }: {
    load: (id: string) => Promise<Message>;
    find: (id: string) => Entry | undefined;
    onDone: (id: string, error: Error | null) => void;
    retry: number;
    signal: AbortSignal;
}): (id: string, saved?: boolean) => void;
export type ConversationEvent = import("./watch.js").ConversationEvent;
export type FinalEvent = import("./watch.js").FinalEvent;
export type Message = {
    id: string;
    conversation_id: string;
    /**
     * Where it stands in its conversation; `null` while it is not
     * stored.
     */
    position: number | null;
    role: "system" | "user" | "assistant" | "tool_call" | "tool_result";
    /**
     *     "pending" and "unsent" are what was said here and is not stored: yet, or at all.
     */
    status: "streaming" | "completed" | "failed" | "cancelled" | "pending" | "unsent";
    /**
     * The text so far.
     */
    content: string;
    /**
     * Of how many chunks that consists.
     */
    chunk_count: number;
    metadata: Record<string, unknown>;
    /**
     * The id of the answer that this one is given instead of.
     */
    replaces: string | null;
    /**
     * Why it failed, or could not be sent.
     */
    error: string | null;
    stop_reason: string | null;
    /**
     * A time in ISO 8601, as `completed_at` is.
     */
    created_at: string;
    completed_at: string | null;
};
/**
 * A message and what has come since. The text is joined when it is looked at and not with each
 * chunk, so that a burst of chunks costs one copy.
 */
export type Entry = {
    /**
     * As it was when it was last looked at.
     */
    message: Message;
    /**
     * Text that came since.
     */
    tail: string[];
    /**
     * How many chunks there are, with `tail`.
     */
    count: number;
    /**
     * Text of chunks behind those that are missing.
     */
    ahead: Map<number, string>;
    /**
     * The end of the message, which came before all its chunks.
     */
    end: FinalEvent | null;
};
