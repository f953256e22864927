/**
 * The parts of a message, also of one as the server sends it.
 *
 * @param {object} message
 * @param {readonly Readonly<PartRecord>[]} [message.parts] Absent if it has only text.
 * @param {string} message.content
 * @param {number | null} [message.open_part]
 * @returns {readonly Readonly<PartRecord>[]}
 */
export function partsOf({ parts, content, open_part }: {
    parts?: readonly Readonly<PartRecord>[] | undefined;
    content: string;
    open_part?: number | null | undefined;
}): readonly Readonly<PartRecord>[];
/**
 * How far a tool call is.
 *
 * @param {Readonly<PartRecord>} call
 * @param {boolean} ended Whether its message has ended: then a call without an outcome is
 *     interrupted, as a redacted one is.
 * @returns {ToolCallState}
 */
export function toolCallState({ fields, values, redacted }: Readonly<PartRecord>, ended: boolean): ToolCallState;
/**
 * The reducer: what the chunks of a message say, as parts.
 *
 * The rules are those of `domain/part_log.py`, and `tests/model/part_logs.json` has logs for both.
 * No log makes it throw: what names a part that is not there is void, and so is what has the wrong
 * type.
 */
/**
 * @typedef {object} PartRecord
 * A part. It is never changed: a part that grows has a new record.
 * @property {number} part Its number: the sequence of the chunk that began it.
 * @property {string} kind
 * @property {Fields} fields
 * @property {Values} [values] The fields that are too large to be here.
 * @property {number} [parent] The tool call whose sub-agent speaks.
 * @property {string} [text] The text of a text, of reasoning, and of a tool's input.
 * @property {true} [closed]
 * @property {string | true} [redacted] The reason, if there is one.
 * @property {Readonly<Record<string, {size: number}>>} [values] The sizes in bytes of fields that are
 *     too large to be sent, by name.
 */
/**
 * @typedef {object} PartSnapshot
 * @property {number} next_sequence
 * @property {readonly Readonly<PartRecord>[]} parts
 * @property {number} [open]
 * @property {Fields} [metadata]
 */
/**
 * @typedef {object} PartChunk
 * A chunk from JSON. All but its sequence may have any type.
 * @property {number} sequence
 * @property {unknown} [content]
 * @property {unknown} [part]
 * @property {unknown} [event]
 * @property {unknown} [fields]
 * @property {unknown} [delta]
 * @property {unknown} [parent]
 * @property {unknown} [values]
 */
/** @typedef {Readonly<Record<string, unknown>>} Fields */
/**
 * @typedef {"input-streaming" | "input-available" | "approval-requested" | "approval-responded" |
 *     "running" | "output-available" | "output-error" | "output-denied" | "interrupted"
 * } ToolCallState
 */
/** The kind of parts that the server keeps to itself. */
export const HIDDEN: "hidden";
/** The state that the chunks of a message lead to. */
export class PartLog {
    /**
     * @param {PartSnapshot} snapshot
     * @returns {PartLog}
     */
    static fromSnapshot(snapshot: PartSnapshot): PartLog;
    /** The sequence of the next chunk. */
    nextSequence: number;
    /**
     * The number of the text part that the next text of the answer continues.
     *
     * @type {number | null}
     */
    open: number | null;
    /**
     * What the log adds to the metadata of the message.
     *
     * @type {Fields}
     */
    metadata: Fields;
    /**
     * The state, to go on from with the rest of the chunks.
     *
     * @returns {PartSnapshot}
     */
    snapshot(): PartSnapshot;
    /**
     * The parts, in order. A part that has not changed is the same object as before, and so are all
     * of them if none has.
     *
     * @returns {readonly Readonly<PartRecord>[]}
     */
    records(): readonly Readonly<PartRecord>[];
    /** The text of the answer. */
    text(): string;
    /**
     * Adds the next chunk.
     *
     * @param {PartChunk} chunk
     * @returns {number | null} The number of the part that it belongs to; `null` if it belongs to
     *     none, or is void.
     */
    add(chunk: PartChunk): number | null;
    #private;
}
/**
 * A part. It is never changed: a part that grows has a new record.
 */
export type PartRecord = {
    /**
     * Its number: the sequence of the chunk that began it.
     */
    part: number;
    kind: string;
    fields: Fields;
    /**
     * The fields that are too large to be here.
     */
    values?: Readonly<Record<string, Readonly<Reference>>> | undefined;
    /**
     * The tool call whose sub-agent speaks.
     */
    parent?: number | undefined;
    /**
     * The text of a text, of reasoning, and of a tool's input.
     */
    text?: string | undefined;
    closed?: true | undefined;
    /**
     * The reason, if there is one.
     */
    redacted?: string | true | undefined;
};
export type PartSnapshot = {
    next_sequence: number;
    parts: readonly Readonly<PartRecord>[];
    open?: number | undefined;
    metadata?: Readonly<Record<string, unknown>> | undefined;
};
/**
 * A chunk from JSON. All but its sequence may have any type.
 */
export type PartChunk = {
    sequence: number;
    content?: unknown;
    part?: unknown;
    event?: unknown;
    fields?: unknown;
    delta?: unknown;
    parent?: unknown;
    values?: unknown;
};
export type Fields = Readonly<Record<string, unknown>>;
export type ToolCallState = "input-streaming" | "input-available" | "approval-requested" | "approval-responded" | "running" | "output-available" | "output-error" | "output-denied" | "interrupted";
/**
 * A value that is stored apart from its part.
 */
export type Reference = {
    /**
     * In bytes of BSON.
     */
    size: number;
    hash?: string | undefined;
    id?: string | undefined;
};
export type Values = Readonly<Record<string, Readonly<Reference>>>;
