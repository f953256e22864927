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
