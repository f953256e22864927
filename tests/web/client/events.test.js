// The parser of server-sent events: whatever the pieces that a stream comes in.

import assert from "node:assert/strict";
import { test } from "node:test";

import { eventParser } from "../../../converse_mongo/web/client/events.js";

const STREAM =
  "retry: 1500\n\n: ping\n\nid: a.1\nevent: chunk.received\ndata: {\"text\":\"é😀\"}\n\n" +
  "data: one\r\ndata:two\r\n\r\ndata\rid: b\r\revent: lost\n\n" +
  "retry: soon\nid: with\0zero\nunknown: x\ndata:  kept space\n\ndata: never ended";
const EXPECTED = [
  { type: "chunk.received", data: "{\"text\":\"é😀\"}", id: "a.1" },
  { type: "message", data: "one\ntwo", id: "a.1" },
  { type: "message", data: "", id: "b" },
  { type: "message", data: " kept space", id: "b" },
];

/** @param {string[]} pieces */
function parse(pieces) {
  const found = [];
  const retries = [];
  const push = eventParser((event) => found.push(event), (time) => retries.push(time));
  for (const piece of pieces) push(piece);
  assert.deepEqual(retries, [1500]);
  return found;
}

test("a stream in one piece", () => {
  assert.deepEqual(parse([STREAM]), EXPECTED);
});

test("a stream in two pieces, cut at each place", () => {
  for (let cut = 0; cut <= STREAM.length; cut += 1) {
    assert.deepEqual(parse([STREAM.slice(0, cut), STREAM.slice(cut)]), EXPECTED, `cut at ${cut}`);
  }
});

test("a stream that comes character by character", () => {
  assert.deepEqual(parse(STREAM.split("")), EXPECTED);
});
