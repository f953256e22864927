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
export const HIDDEN = "hidden";

/**
 * @typedef {object} Reference
 * A value that is stored apart from its part.
 * @property {number} size In bytes of BSON.
 * @property {string} [hash]
 * @property {string} [id]
 */

/** @typedef {Readonly<Record<string, Readonly<Reference>>>} Values */

const TEXT = "text";
const TOOL_CALL = "tool_call";
const DATA = "data";
const STEP = "step";
const KINDS_WITH_TEXT = new Set([TEXT, "reasoning", TOOL_CALL]);

/** The fields that tell what a part is, by kind: a redaction keeps them. */
const IDENTITY = new Map([
  [TOOL_CALL, ["name"]],
  [DATA, ["name", "id"]],
]);

/** Stands for a value that is stored apart, where fields change. */
class StoredValue {
  /** @param {Reference} reference */
  constructor({ id, size, hash }) {
    /** @type {Reference} */
    const reference = { size };
    if (id) reference.id = id;
    if (hash) reference.hash = hash;
    this.reference = Object.freeze(reference);
  }
}

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
      log.#put(Object.isFrozen(record) ? record : { ...record, ...parted(allFields(record)) });
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
    if (event === "start") return this.#start(sequence, parent, allFields(chunk));
    if (event === "reset") this.#reset(fields.from);
    else if (event === "metadata") this.metadata = Object.freeze({ ...this.metadata, ...fields });
    else if (event === "redact") return this.#change(part, event, fields);
    else if (event === "set" || event === "end") return this.#change(part, event, allFields(chunk));
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
    const part = { part: sequence, kind, ...parted(values) };
    if (isAbsent(parent)) {
      this.#closeText();
    } else {
      const call = this.#find(parent);
      if (call?.kind !== TOOL_CALL) return null;
      part.parent = call.part;
    }
    if (kind === TOOL_CALL) Object.assign(part, parted(callFields({}, values)));
    if (KINDS_WITH_TEXT.has(kind)) part.text = "";
    const place = placeOf(part);
    const replaced = place === null ? undefined : this.#find(this.#at.get(place));
    if (replaced !== undefined) {
      const { fields, values: large } = part;
      if (replaced.redacted === undefined) this.#put({ ...replaced, fields, values: large });
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
    else Object.assign(changed, parted(newFields(part, values)));
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
    if (part.values === undefined) delete part.values;
    else Object.freeze(part.values);
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
 *     interrupted, as a redacted one is.
 * @returns {ToolCallState}
 */
export function toolCallState({ fields, values = {}, redacted }, ended) {
  const { approval } = fields;
  const asked = isObject(approval) && typeof approval.id === "string" ? approval : null;
  const has = (/** @type {string} */ name) => Object.hasOwn({ ...values, ...fields }, name);
  if ((has("output") || has("error")) && fields.preliminary !== true) {
    return has("error") ? "output-error" : "output-available";
  }
  if (asked?.approved === false) return "output-denied";
  if (ended || redacted !== undefined) return "interrupted";
  if (fields.started === true) return "running";
  if (asked !== null) {
    return typeof asked.approved === "boolean" ? "approval-responded" : "approval-requested";
  }
  return has("input") ? "input-available" : "input-streaming";
}

/**
 * The fields of a chunk or a record, with those that are stored apart.
 *
 * @param {{fields?: unknown, values?: unknown}} found
 * @returns {Fields}
 */
function allFields({ fields, values }) {
  const plain = isObject(fields) ? fields : {};
  if (!isObject(values)) return plain;
  const references = Object.entries(values).flatMap(([name, value]) => {
    const reference = referenceOf(value);
    return reference === null ? [] : [[name, reference]];
  });
  return { ...Object.fromEntries(references), ...plain };
}

/**
 * Splits fields into those with their values, and the references to the others.
 *
 * @param {Fields} fields
 * @returns {{fields: Fields, values: Values | undefined}}
 */
function parted(fields) {
  const entries = Object.entries(fields);
  /** @type {[string, Reference][]} */
  const references = entries.flatMap(([name, value]) =>
    value instanceof StoredValue ? [[name, value.reference]] : [],
  );
  if (references.length === 0) return { fields: { ...fields }, values: undefined };
  return {
    fields: Object.fromEntries(entries.filter(([, value]) => !(value instanceof StoredValue))),
    values: Object.fromEntries(references),
  };
}

/**
 * @param {unknown} value
 * @returns {StoredValue | null} `null` if it is no reference.
 */
function referenceOf(value) {
  if (!isObject(value) || !isNumber(value.size) || !Number.isSafeInteger(value.size)) return null;
  const [id, hash] = [value.id, value.hash].map((each) => stringOrNull(each) ?? "");
  return new StoredValue({ id, size: value.size, hash });
}

/**
 * The fields of a part after a change.
 *
 * @param {PartRecord} part
 * @param {Fields} values
 * @returns {Fields}
 */
function newFields(part, { kind, name, ...values }) {
  const partKind = part.kind;
  const fields = allFields(part);
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
 * Drops the content. What tells what a part is stays: the name of a call, and the name and the id of
 * data, by which what replaces them is dropped as well.
 *
 * @param {PartRecord} part
 * @param {unknown} reason
 */
function redact(part, reason) {
  const kept = IDENTITY.get(part.kind) ?? [];
  const fields = kept.flatMap((name) => {
    const value = part.fields[name];
    return typeof value === "string" ? [[name, value]] : [];
  });
  part.fields = Object.fromEntries(fields);
  delete part.values;
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
  if (value instanceof StoredValue) return false;
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** @param {unknown} value */
function stringOrNull(value) {
  return typeof value === "string" ? value : null;
}
