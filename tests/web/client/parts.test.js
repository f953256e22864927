// Parts: the vectors of the reducer, and what a user interface relies on.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { PartLog } from "../../../converse_mongo/web/client/parts.js";

const file = new URL("../../model/part_logs.json", import.meta.url);
const vectors = JSON.parse(readFileSync(file, "utf8"));

/** The chunks of a log in the short form, in which a string is text; frozen. */
const stored = (chunks) =>
  chunks.map((each, sequence) =>
    frozen({ sequence, content: "", ...(typeof each === "string" ? { content: each } : each) }),
  );

const frozen = (value) => {
  if (typeof value === "object" && value !== null) Object.values(value).forEach(frozen);
  return Object.freeze(value);
};

const resumed = (log, chunks) => {
  const again = PartLog.fromSnapshot(JSON.parse(JSON.stringify(log.snapshot())));
  for (const chunk of chunks) again.add(chunk);
  return again;
};

const reduce = (...chunks) => {
  const log = new PartLog();
  for (const chunk of stored(chunks)) log.add(chunk);
  return log;
};

for (const vector of vectors) {
  test(`vector: ${vector.name}`, () => {
    const chunks = stored(vector.chunks);
    const log = new PartLog();
    const states = [resumed(log, chunks), log];
    const numbers = chunks.map((chunk, index) => {
      const number = log.add(chunk);
      states.push(resumed(log, chunks.slice(index + 1)));
      return number;
    });
    assert.deepEqual(numbers, vector.numbers);
    for (const state of states) {
      assert.deepEqual(state.records(), vector.records);
      assert.equal(state.text(), vector.text);
      assert.equal(state.open, vector.open ?? null);
      assert.deepEqual(state.metadata, vector.metadata ?? {});
      assert.equal(state.nextSequence, chunks.length);
    }
  });
}

test("records of parts that did not change are the same objects", () => {
  const log = reduce("a", { event: "start", fields: { kind: "reasoning" } }, "b");
  const before = log.records();
  assert.equal(log.records(), before);
  log.add({ sequence: 3, content: "" });
  log.add({ sequence: 4, content: "", event: "metadata", fields: { a: 1 } });
  log.add({ sequence: 5, content: "", part: 9, delta: "x" });
  assert.equal(log.records(), before);

  log.add({ sequence: 6, content: "", part: 1, delta: "x" });
  const after = log.records();
  assert.deepEqual(after.map((each, index) => each === before[index]), [true, false, true]);
  assert.deepEqual([before[1].text, after[1].text], ["", "x"]);
});

test("what a log hands out is not changed by it, nor by others", () => {
  const log = reduce({ event: "start", fields: { kind: "source", url: "u" } }, "a");
  const snapshot = log.snapshot();
  const copy = structuredClone(snapshot);
  const again = PartLog.fromSnapshot(snapshot);
  for (const each of [log, again]) {
    each.add({ sequence: 2, content: "b" });
    each.add({ sequence: 3, content: "", part: 0, event: "set", fields: { title: "A" } });
    each.add({ sequence: 4, content: "", event: "metadata", fields: { a: 1 } });
    each.add({ sequence: 5, content: "", event: "reset", fields: { from: 1 } });
  }
  assert.deepEqual(snapshot, copy);
  const [record] = log.records();
  for (const each of [log.records(), record, record.fields, log.metadata]) {
    assert.ok(Object.isFrozen(each));
  }
});
