// Messages that grow: that nothing is kept which is not needed any more.

import assert from "node:assert/strict";
import { test } from "node:test";

import { look, merge, newEntry, take } from "../../../converse_mongo/web/client/entries.js";

const message = { id: "b", status: "streaming", content: "", chunk_count: 0, metadata: {} };
const chunk = (sequence) => ({
  ...{ type: "chunk.received", message_id: "b", conversation_id: "a" },
  chunk: { sequence, content: `${sequence} `, created_at: "" },
});

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

  const end = { ...chunk(0), type: "message.completed", chunk_count: 3, metadata: {}, completed_at: "" };
  assert.equal(take(entry, end), true);
  assert.equal(take(entry, chunk(2)), false);
  assert.deepEqual([look(entry).status, look(entry).content], ["completed", "0 1 2 "]);
});
