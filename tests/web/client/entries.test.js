// Messages that grow: text and parts, and that nothing is kept which is not needed any more.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { look, merge, newEntry, take } from "../../../converse_mongo/web/client/entries.js";
import { PartLog, partsOf, toolCallState } from "../../../converse_mongo/web/client/parts.js";

const vectors = JSON.parse(
  readFileSync(new URL("../../model/part_logs.json", import.meta.url), "utf8"),
);

const message = { id: "b", status: "streaming", content: "", chunk_count: 0, metadata: {} };
const received = (chunk) => ({
  ...{ type: "chunk.received", message_id: "b", conversation_id: "a" },
  chunk: { created_at: "", ...chunk },
});
const chunk = (sequence) => received({ sequence, content: `${sequence} ` });
const end = (chunk_count) => ({
  ...{ type: "message.completed", message_id: "b", conversation_id: "a" },
  ...{ chunk_count, metadata: {}, completed_at: "" },
});
const reasoning = { event: "start", content: "", fields: { kind: "reasoning" } };

/** A message as the server sends it behind these chunks. */
function wire(chunks, fields = {}) {
  const log = new PartLog();
  for (const each of chunks) log.add(each);
  const isPlain = chunks.every(({ part, event }) => part === undefined && event === undefined);
  return structuredClone({
    ...message,
    ...{ content: log.text(), chunk_count: chunks.length },
    ...(isPlain ? {} : { parts: log.records() }),
    ...(log.open === null ? {} : { open_part: log.open }),
    ...fields,
  });
}

const sequenced = (chunks) => chunks.map((each, sequence) => ({ sequence, ...each }));
const state = (entry) => {
  const { content, chunk_count, parts } = look(entry);
  return { content, chunk_count, parts };
};

test("chunks that came before those that were missing are kept until these come", () => {
  const entry = newEntry({ ...message });
  assert.deepEqual([3, 1, 4].map((sequence) => take(entry, chunk(sequence))), [true, true, true]);
  assert.equal(entry.ahead.size, 3);
  merge(entry, { ...message, content: "0 1 2 ", chunk_count: 3 });
  assert.equal(look(entry).content, "0 1 2 3 4 ");
  assert.equal(entry.ahead.size, 0);
  assert.equal(take(entry, chunk(5)), false);
  assert.equal(look(entry).content, "0 1 2 3 4 5 ");
  assert.deepEqual([entry.ahead.size, look(entry).chunk_count], [0, 6]);
});

test("a gap that is closed by the chunk that was missing needs no loading", () => {
  const entry = newEntry({ ...message });
  assert.equal(take(entry, chunk(1)), true);
  assert.equal(take(entry, chunk(0)), false);
  assert.equal(look(entry).content, "0 1 ");

  assert.equal(take(entry, end(3)), true);
  assert.equal(take(entry, chunk(2)), false);
  assert.deepEqual([look(entry).status, look(entry).content], ["completed", "0 1 2 "]);
});

// Parts

for (const vector of vectors) {
  test(`parts, loaded at any chunk and followed: ${vector.name}`, () => {
    const chunks = sequenced(
      vector.chunks.map((each) => ({ content: "", ...(typeof each === "string" ? { content: each } : each) })),
    );
    const whole = { content: vector.text, chunk_count: chunks.length, parts: vector.records };
    const single = newEntry({ ...message });
    chunks.forEach((each, count) => {
      const loaded = newEntry(wire(chunks.slice(0, count)));
      const late = newEntry({ ...message });
      // In pairs that changed places; each comes again, too.
      for (let at = 0; at < chunks.length; at += 2) {
        for (const one of [at + 1, at, at]) {
          if (one >= chunks.length) continue;
          take(loaded, received(chunks[one]));
          take(late, received(chunks[one]));
        }
        if (at === count) merge(late, wire(chunks.slice(0, count)));
        look(loaded);
      }
      assert.deepEqual(state(loaded), whole);
      assert.deepEqual(state(late), whole);
      const gap = newEntry({ ...message });
      const lacking = chunks.filter((other) => other !== each);
      const lacks = lacking.map((one) => take(gap, received(one)) && look(gap)).at(-1);
      merge(gap, wire(chunks.slice(0, count + 1)));
      assert.equal(Boolean(lacks), count < chunks.length - 1);
      assert.deepEqual(state(gap), whole);
      // What is read on the way is what the server has.
      take(single, received(each));
      const { content, parts } = wire(chunks.slice(0, count + 1));
      assert.deepEqual(look(single).content, content);
      if (parts !== undefined) assert.deepEqual(look(single).parts, parts);
    });
  });
}

test("text alone is one part, without a log", () => {
  const entry = newEntry({ ...message });
  assert.deepEqual(look(entry).parts, []);
  take(entry, received({ sequence: 0, content: "" }));
  take(entry, received({ sequence: 1, content: "a" }));
  take(entry, received({ sequence: 2, content: "b" }));
  assert.deepEqual(look(entry).parts, [{ part: 1, kind: "text", fields: {}, text: "ab" }]);
  assert.equal(entry.log, null);
  // A part that begins now closes the text, under the number that it has.
  take(entry, received({ sequence: 3, ...reasoning }));
  take(entry, received({ sequence: 4, content: "", part: 1, event: "redact" }));
  assert.deepEqual(look(entry).parts.map(({ part, redacted }) => [part, redacted]), [[1, true], [3, undefined]]);
  assert.equal(look(entry).content, "");
});

test("parts that did not change are the same objects, also over a reload and the end", () => {
  const entry = newEntry({ ...message });
  const chunks = sequenced([
    { content: "a" },
    { ...reasoning },
    { content: "", part: 1, delta: "x" },
    { event: "start", content: "", fields: { kind: "tool_call", name: "f", input: { a: 1, b: [2] } } },
  ]);
  for (const each of chunks) take(entry, received(each));
  const { parts } = look(entry);
  assert.ok([parts, ...parts].every(Object.isFrozen));
  take(entry, received({ sequence: 4, content: "" }));
  assert.equal(look(entry).parts, parts);

  // Keys in another order, as they may come from a database.
  const turned = (value) =>
    value === null || typeof value !== "object" || Array.isArray(value)
      ? value
      : Object.fromEntries(Object.entries(value).reverse().map(([name, each]) => [name, turned(each)]));
  const sent = wire([...chunks, { sequence: 4, content: "" }]);
  const known = look(entry);
  merge(entry, { ...sent, parts: sent.parts.map(turned) });
  assert.equal(look(entry), known);

  merge(entry, { ...sent, metadata: { a: 1 } });
  assert.equal(look(entry).parts, parts);
  take(entry, received({ sequence: 5, content: "", part: 1, delta: "y" }));
  take(entry, received({ sequence: 6, content: "b" }));
  const after = look(entry);
  assert.deepEqual(parts.map((each, index) => each === after.parts[index]), [true, false, true]);
  assert.deepEqual([after.content, after.parts.length], ["ab", 4]);

  take(entry, end(7));
  assert.deepEqual([look(entry).status, look(entry).parts, entry.log], ["completed", after.parts, null]);
  merge(entry, wire([...chunks, ...sequenced([{ content: "" }])], { ...look(entry), parts: structuredClone(after.parts) }));
  assert.equal(look(entry).parts, after.parts);
});

test("what is hidden is not shown, and text behind it is another part", () => {
  const entry = newEntry({ ...message });
  const hidden = { event: "start", content: "", fields: { kind: "hidden" } };
  for (const each of sequenced([{ content: "a" }, hidden, { content: "" }])) take(entry, received(each));
  const { parts } = look(entry);
  take(entry, received({ sequence: 3, ...hidden }));
  assert.equal(look(entry).parts[0], parts[0]);
  assert.equal(look(entry).parts, parts);
  take(entry, received({ sequence: 4, content: "b" }));
  assert.deepEqual(look(entry).parts.map(({ part, text }) => [part, text]), [[0, "a"], [4, "b"]]);
});

test("a reset takes text back, and what comes then is new", () => {
  const entry = newEntry({ ...message });
  const reset = { event: "reset", content: "", fields: { from: 1 } };
  const chunks = sequenced([{ content: "a" }, { ...reasoning }, { content: "b" }, reset]);
  for (const each of chunks) take(entry, received(each));
  assert.deepEqual([look(entry).content, look(entry).parts.length], ["a", 1]);
  take(entry, received({ sequence: 4, content: "c" }));
  assert.deepEqual(look(entry).parts.map(({ part, text }) => [part, text]), [[0, "a"], [4, "c"]]);
  assert.equal(look(entry).content, "ac");
});

test("a redacted message that has ended is taken as it is loaded", () => {
  const chunks = sequenced([{ ...reasoning }, { content: "", part: 0, delta: "secret" }, { content: "a" }]);
  const ended = wire(chunks, { status: "completed", open_part: undefined });
  const entry = newEntry(ended);
  const [, text] = look(entry).parts;
  assert.equal(entry.log, null);
  const redacted = { part: 0, kind: "reasoning", fields: {}, text: "", closed: true, redacted: "private" };
  merge(entry, { ...ended, parts: [redacted, { ...text }] });
  assert.deepEqual(look(entry).parts[0], redacted);
  assert.equal(look(entry).parts[1], text);
});

test("what is older than the chunks that came changes nothing", () => {
  const chunks = sequenced([{ content: "a" }, { ...reasoning }, { content: "", part: 1, delta: "x" }]);
  const entry = newEntry({ ...message });
  for (const each of chunks) take(entry, received(each));
  const known = look(entry);
  merge(entry, wire(chunks.slice(0, 2)));
  assert.equal(look(entry), known);
});

test("the parts of a message that a server sent", () => {
  assert.deepEqual(partsOf({ ...message }), []);
  assert.deepEqual(partsOf({ ...message, content: "a", open_part: 2 }), [
    { part: 2, kind: "text", fields: {}, text: "a" },
  ]);
  const parts = [{ part: 0, kind: "step", fields: {} }];
  assert.equal(partsOf({ ...message, parts }), parts);
});

// As `ToolCallPart.state` has them.
for (const [expected, fields, more = {}] of [
  ["input-streaming", {}],
  ["input-available", { input: null }],
  ["input-available", {}, { values: { input: { size: 300_000 } } }],
  ["running", { input: 1, started: true }],
  ["running", { input: 1, started: true, output: 1, preliminary: true }],
  ["approval-requested", { input: 1, approval: { id: "a" } }],
  ["approval-responded", { input: 1, approval: { id: "a", approved: true } }],
  ["running", { input: 1, approval: { id: "a", approved: true }, started: true }],
  ["output-denied", { input: 1, approval: { id: "a", approved: false } }],
  ["input-available", { input: 1, approval: { approved: false } }],
  ["output-available", { output: null }],
  ["output-available", { started: true }, { values: { output: { size: 300_000 } } }],
  ["output-error", { input: 1, error: "no" }],
  ["output-error", { error: "no", approval: { id: "a", approved: false } }],
]) {
  test(`a tool call with ${JSON.stringify({ ...fields, ...more })} is ${expected}`, () => {
    const call = { part: 0, kind: "tool_call", fields, text: "", ...more };
    assert.equal(toolCallState(call, false), expected);
    const isOver = expected.startsWith("output");
    assert.equal(toolCallState(call, true), isOver ? expected : "interrupted");
  });
}
