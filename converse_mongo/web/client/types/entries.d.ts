/**
 * Whether a message may have got a worker, or another one, without an event that a new stream sends.
 *
 * @param {Message} message
 */
export function mayHaveWorker({ work }: Message): boolean;
/** @param {Pick<Message, "status">} message */
export function isFinal(message: Pick<Message, "status">): boolean;
/**
 * @param {StoredMessage} stored
 * @returns {Entry}
 */
export function newEntry(stored: StoredMessage): Entry;
/**
 * The message alone: what says where its stream continues is outdated with the next chunk.
 *
 * @param {StoredMessage} stored
 * @param {Parts} [known] Parts that are kept, as objects, if they are the same.
 * @returns {Message}
 */
export function messageOf(stored: StoredMessage, known?: Parts): Message;
/**
 * The message that a `message.created` creates.
 *
 * @param {import("./watch.js").MessageCreated} event
 * @returns {StoredMessage}
 */
export function createdMessage(event: import("./watch.js").MessageCreated): StoredMessage;
/**
 * The current message; the same object while nothing has changed.
 *
 * @param {Entry} entry
 */
export function look(entry: Entry): Message;
/**
 * Applies an event of a chunk, of its work or of the end, and no other. A repeated event changes
 * nothing.
 *
 * @param {Entry} entry
 * @param {ConversationEvent} event
 * @returns {boolean} Whether chunks are missing, so that the message must be loaded again.
 */
export function take(entry: Entry, event: ConversationEvent): boolean;
/**
 * Sets what a message waits for.
 *
 * @param {Entry} entry
 * @param {Work} work
 */
export function setWork(entry: Entry, work: Work): void;
/**
 * Merges a message that was loaded, and may be older than the events received since.
 *
 * @param {Entry} entry
 * @param {StoredMessage} stored
 * @param {number} news The `news` of the entry when loading began. By default it was not known then.
 */
export function merge(entry: Entry, stored: StoredMessage, news?: number): void;
/**
 * Makes a function that reloads a message, with one request per message at a time.
 *
 * @param {object} options
 * @param {(id: string) => Promise<StoredMessage>} options.load
 * @param {(id: string) => Entry | undefined} options.find
 * @param {(id: string, error: Error | null) => void} options.onDone Called after each load, and
 *     when loading failed finally.
 * @param {number} options.retry Milliseconds.
 * @param {AbortSignal} options.signal
 * @returns {(id: string, saved?: boolean) => void} `saved` says that the message was saved, so that
 *     one that is being loaded now may be outdated.
 */
export function reloader({ load, find, onDone, retry, signal }: {
    load: (id: string) => Promise<StoredMessage>;
    find: (id: string) => Entry | undefined;
    onDone: (id: string, error: Error | null) => void;
    retry: number;
    signal: AbortSignal;
}): (id: string, saved?: boolean) => void;
export type ConversationEvent = import("./watch.js").ConversationEvent;
export type FinalEvent = import("./watch.js").FinalEvent;
export type Chunk = import("./watch.js").Chunk;
export type WorkEvent = import("./watch.js").WorkEvent;
export type Parts = readonly Readonly<import("./parts.js").PartRecord>[];
/**
 * What a message waits for that was queued for workers.
 */
export type Work = {
    /**
     * "queued" for a worker, "running" with one,
     * "waiting" for people.
     */
    state: "queued" | "running" | "waiting";
    /**
     * The number of the attempt that it is at, or of the next one.
     */
    attempt: number;
    /**
     * The calls that wait for people;
     * only while it is "waiting".
     */
    pending?: readonly import("./watch.js").PendingCall[] | undefined;
};
export type Message = {
    id: string;
    conversation_id: string;
    /**
     * Its place in the conversation; `null` while it is not stored.
     */
    position: number | null;
    role: "system" | "user" | "assistant" | "tool_call" | "tool_result";
    /**
     *     "pending" and "unsent" are of messages of this client that are not stored yet, or at all.
     */
    status: "streaming" | "completed" | "failed" | "cancelled" | "pending" | "unsent";
    /**
     * The text of the answer so far.
     */
    content: string;
    /**
     * The parts so far, in order; of a message of text alone that text, if there
     * is any. A part that has not changed is the same object as before, and so is the array if none
     * has.
     */
    parts: Parts;
    /**
     * What it waits for, if it was queued for workers; absent once it
     * has ended.
     */
    work?: Readonly<Work> | undefined;
    /**
     * The number of chunks in it.
     */
    chunk_count: number;
    metadata: Record<string, unknown>;
    /**
     * The id of the answer that this one replaces.
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
export type Stored = {
    /**
     * Absent if it has only text.
     */
    parts?: Parts | undefined;
    /**
     * The text part that the next text continues, while it streams.
     */
    open_part?: number | undefined;
    /**
     * From where its stream continues.
     */
    cursor?: string | null | undefined;
};
/**
 * A message as the server sends it.
 */
export type StoredMessage = Omit<Message, "parts"> & Stored;
/**
 * A message and the events since. The text is joined when it is read and not with each chunk, so
 * that a burst of chunks costs one copy.
 */
export type Entry = {
    /**
     * The message when it was last read.
     */
    message: Message;
    /**
     * Text that was received since, while there is no `log`.
     */
    tail: string[];
    /**
     * The number of the text part that `tail` continues.
     */
    open: number | null;
    /**
     * The parts; `null` while there is only text, and after the end.
     */
    log: PartLog | null;
    /**
     * The number of chunks, with those since `message` was read.
     */
    count: number;
    /**
     * Chunks behind missing ones.
     */
    ahead: Map<number, Chunk>;
    /**
     * The number of events that told what it waits for.
     */
    news: number;
    /**
     * The end of the message, if it was received before all chunks.
     */
    end: FinalEvent | null;
};
import { PartLog } from "./parts.js";
