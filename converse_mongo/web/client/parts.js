// @ts-check
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
 */

/** @typedef {Readonly<Record<string, unknown>>} Fields */

/**
 * @typedef {"input-streaming" | "input-available" | "approval-requested" | "approval-responded" |
 *     "running" | "output-available" | "output-error" | "output-denied" | "interrupted"
 * } ToolCallState
 */

/** The kind of parts that the server keeps to itself. */
export const HIDDEN = "hidden";

const TEXT = "text";
const TOOL_CALL = "tool_call";
const DATA = "data";
const STEP = "step";
const KINDS_WITH_TEXT = new Set([TEXT, "reasoning", TOOL_CALL]);

/** The state that the chunks of a message lead to. */
export class PartLog {
  /** The sequence of the next chunk. */
  nextSequence = 0;

  /**
   * The number of the text part that the next text of the answer continues.
   *
   * @type {number | null}
   */
  open = null;

  /**
   * What the log adds to the metadata of the message.
   *
   * @type {Fields}
   */
  metadata = Object.freeze({});

  /** @type {Map<number, Readonly<PartRecord>>} */
  #parts = new Map();

  /** @type {Map<string, number>} The numbers of data by what tells them from others. */
  #at = new Map();

  /** @type {readonly Readonly<PartRecord>[] | null} `null` after a change. */
  #records = null;

  /**
   * @param {PartSnapshot} snapshot
   * @returns {PartLog}
   */
  static fromSnapshot(snapshot) {
    const log = new PartLog();
    log.nextSequence = snapshot.next_sequence;
    log.open = snapshot.open ?? null;
    log.metadata = Object.freeze({ ...snapshot.metadata });
    for (const record of snapshot.parts) {
      // A record of another log is kept as it is.
      log.#put(Object.isFrozen(record) ? record : { ...record, fields: { ...record.fields } });
      const place = placeOf(record);
      if (place !== null) log.#at.set(place, record.part);
    }
    return log;
  }

  /**
   * The state, to go on from with the rest of the chunks.
   *
   * @returns {PartSnapshot}
   */
  snapshot() {
    /** @type {PartSnapshot} */
    const snapshot = { next_sequence: this.nextSequence, parts: this.records() };
    if (this.open !== null) snapshot.open = this.open;
    if (Object.keys(this.metadata).length > 0) snapshot.metadata = this.metadata;
    return snapshot;
  }

  /**
   * The parts, in order. A part that has not changed is the same object as before, and so are all
   * of them if none has.
   *
   * @returns {readonly Readonly<PartRecord>[]}
   */
  records() {
    return (this.#records ??= Object.freeze([...this.#parts.values()]));
  }

  /** The text of the answer. */
  text() {
    return this.records()
      .filter((each) => each.kind === TEXT && each.parent === undefined)
      .map((each) => each.text)
      .join("");
  }

  /**
   * Adds the next chunk.
   *
   * @param {PartChunk} chunk
   * @returns {number | null} The number of the part that it belongs to; `null` if it belongs to
   *     none, or is void.
   */
  add(chunk) {
    const { sequence, content, part, event, delta, parent } = chunk;
    this.nextSequence = sequence + 1;
    if (isAbsent(event)) {
      return isAbsent(part) ? this.#addText(sequence, content) : this.#addDelta(part, delta);
    }
    const fields = isObject(chunk.fields) ? chunk.fields : {};
    if (event === "start") return this.#start(sequence, parent, fields);
    if (event === "reset") this.#reset(fields.from);
    else if (event === "metadata") this.metadata = Object.freeze({ ...this.metadata, ...fields });
    else if (event === "set" || event === "end" || event === "redact") {
      return this.#change(part, event, fields);
    }
    return null;
  }

  /** @type {(sequence: number, text: unknown) => number | null} */
  #addText(sequence, text) {
    if (typeof text !== "string" || text === "") return null;
    const open = this.open === null ? undefined : this.#parts.get(this.open);
    if (open !== undefined) return this.#grow(open, text);
    this.#put({ part: sequence, kind: TEXT, fields: {}, text });
    this.open = sequence;
    return sequence;
  }

  /** @type {(number: unknown, delta: unknown) => number | null} */
  #addDelta(number, delta) {
    const part = this.#find(number);
    if (part === undefined || isSettled(part) || part.text === undefined) return null;
    // Text of the answer is content, so that older readers have it.
    if (part.kind === TEXT && part.parent === undefined) return null;
    return typeof delta === "string" && delta !== "" ? this.#grow(part, delta) : part.part;
  }

  /** @type {(sequence: number, parent: unknown, values: Fields) => number | null} */
  #start(sequence, parent, { kind, ...values }) {
    if (typeof kind !== "string" || values.transient === true) return null;
    /** @type {PartRecord} */
    const part = { part: sequence, kind, fields: values };
    if (isAbsent(parent)) {
      this.#closeText();
    } else {
      const call = this.#find(parent);
      if (call?.kind !== TOOL_CALL) return null;
      part.parent = call.part;
    }
    if (kind === TOOL_CALL) part.fields = callFields({}, values);
    if (KINDS_WITH_TEXT.has(kind)) part.text = "";
    const place = placeOf(part);
    const replaced = place === null ? undefined : this.#find(this.#at.get(place));
    if (replaced !== undefined) {
      if (replaced.redacted === undefined) this.#put({ ...replaced, fields: part.fields });
      return replaced.part;
    }
    this.#put(part);
    if (place !== null) this.#at.set(place, sequence);
    if (kind === TEXT && part.parent === undefined) this.open = sequence;
    return sequence;
  }

  /** @type {(number: unknown, event: "set" | "end" | "redact", values: Fields) => number | null} */
  #change(number, event, values) {
    const part = this.#find(number);
    if (part === undefined || part.redacted !== undefined) return null;
    const changed = { ...part };
    if (event === "redact") redact(changed, values.reason);
    else if (isSettled(part)) return null;
    else changed.fields = newFields(part, values);
    if (event !== "set") {
      changed.closed = true;
      if (this.open === part.part) this.open = null;
    }
    if (event === "end" && part.kind === STEP && part.parent === undefined) this.#closeText();
    this.#put(changed);
    return part.part;
  }

  /**
   * Voids the parts that are numbered from `first` on; those before keep what they got.
   *
   * @param {unknown} first
   */
  #reset(first) {
    if (!isNumber(first)) return;
    this.#closeText();
    for (const part of this.records()) {
      if (part.part >= first) this.#parts.delete(part.part);
    }
    this.#records = null;
  }

  #closeText() {
    const open = this.open === null ? undefined : this.#parts.get(this.open);
    if (open !== undefined) this.#put({ ...open, closed: true });
    this.open = null;
  }

  /**
   * @param {PartRecord} part
   * @param {string} text
   */
  #grow(part, text) {
    // Engines join strings when they are read, so that this is not quadratic.
    this.#put({ ...part, text: part.text + text });
    return part.part;
  }

  /** @param {PartRecord} part */
  #put(part) {
    Object.freeze(part.fields);
    this.#parts.set(part.part, Object.freeze(part));
    this.#records = null;
  }

  /** @param {unknown} number */
  #find(number) {
    return isNumber(number) ? this.#parts.get(number) : undefined;
  }
}

/**
 * The parts of a message, also of one as the server sends it.
 *
 * @param {object} message
 * @param {readonly Readonly<PartRecord>[]} [message.parts] Absent if it has only text.
 * @param {string} message.content
 * @param {number | null} [message.open_part]
 * @returns {readonly Readonly<PartRecord>[]}
 */
export function partsOf({ parts, content, open_part }) {
  if (parts !== undefined) return parts;
  if (content === "") return [];
  return [Object.freeze({ part: open_part ?? 0, kind: TEXT, fields: Object.freeze({}), text: content })];
}

/**
 * How far a tool call is.
 *
 * @param {Readonly<PartRecord>} call
 * @param {boolean} ended Whether its message has ended: then a call without an outcome is
 *     interrupted.
 * @returns {ToolCallState}
 */
export function toolCallState({ fields, values = {} }, ended) {
  const { approval } = fields;
  const asked = isObject(approval) && typeof approval.id === "string" ? approval : null;
  const has = (/** @type {string} */ name) => Object.hasOwn({ ...values, ...fields }, name);
  if ((has("output") || has("error")) && fields.preliminary !== true) {
    return has("error") ? "output-error" : "output-available";
  }
  if (asked?.approved === false) return "output-denied";
  if (ended) return "interrupted";
  if (fields.started === true) return "running";
  if (asked !== null) {
    return typeof asked.approved === "boolean" ? "approval-responded" : "approval-requested";
  }
  return has("input") ? "input-available" : "input-streaming";
}

/**
 * The fields of a part after a change.
 *
 * @param {PartRecord} part
 * @param {Fields} values
 * @returns {Fields}
 */
function newFields({ kind: partKind, fields }, { kind, name, ...values }) {
  if (partKind === TOOL_CALL) return callFields(fields, values);
  if (partKind !== DATA) return { ...fields, ...values };
  const { id, ...others } = values;
  return { ...fields, ...others };
}

/**
 * The fields of a tool call after a change. A call has one outcome; a preliminary one comes before
 * it, and each replaces the last. Of two answers to one request the first counts.
 *
 * @param {Fields} before
 * @param {Fields} values
 * @returns {Fields}
 */
function callFields(before, { output, error, preliminary, approval, ...others }) {
  /** @type {Record<string, unknown>} */
  const fields = { ...before, ...others };
  const isPreliminary = preliminary === true;
  if (hasValue({ output, error }) && !(isPreliminary && hasOutcome(before))) {
    delete fields.output;
    delete fields.error;
    delete fields.preliminary;
    if (error === undefined) fields.output = output;
    else fields.error = error;
    if (isPreliminary) fields.preliminary = true;
  }
  if (isObject(approval) && !isAnswered(before.approval, approval)) fields.approval = approval;
  return fields;
}

/** @param {Fields} fields */
function hasOutcome({ output, error, preliminary }) {
  return hasValue({ output, error }) && preliminary !== true;
}

/** @type {(outcome: {output: unknown, error: unknown}) => boolean} */
function hasValue({ output, error }) {
  return output !== undefined || error !== undefined; // `null` is a value
}

/** @type {(before: unknown, answer: Fields) => boolean} */
function isAnswered(before, answer) {
  if (!isObject(before) || typeof before.approved !== "boolean") return false;
  return stringOrNull(before.id) === stringOrNull(answer.id);
}

/**
 * Drops the content. Data keep what tells them from others, so that what replaces them is dropped
 * as well.
 *
 * @param {PartRecord} part
 * @param {unknown} reason
 */
function redact(part, reason) {
  const { name, id } = part.fields;
  part.fields = placeOf(part) === null ? {} : { name, id };
  if (part.text !== undefined) part.text = "";
  part.redacted = stringOrNull(reason) || true;
}

/**
 * What tells data that replace each other from others.
 *
 * @param {PartRecord} part
 */
function placeOf({ kind, parent, fields: { name, id } }) {
  if (kind !== DATA || typeof name !== "string" || typeof id !== "string") return null;
  return JSON.stringify([parent ?? null, name, id]);
}

/**
 * Whether nothing more can become of a part, other than its redaction.
 *
 * @param {PartRecord} part
 */
function isSettled({ kind, closed, redacted }) {
  return redacted !== undefined || (closed === true && kind !== TOOL_CALL);
}

/**
 * @param {unknown} value
 * @returns {value is null | undefined}
 */
function isAbsent(value) {
  return value === undefined || value === null;
}

/**
 * @param {unknown} value
 * @returns {value is number}
 */
function isNumber(value) {
  return Number.isInteger(value) && /** @type {number} */ (value) >= 0;
}

/**
 * @param {unknown} value
 * @returns {value is Fields}
 */
function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** @param {unknown} value */
function stringOrNull(value) {
  return typeof value === "string" ? value : null;
}
