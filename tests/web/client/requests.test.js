// Paths of requests: whatever an id is, they stay below their start.

import assert from "node:assert/strict";
import { test } from "node:test";

import { pathOf } from "../../../converse_mongo/web/client/requests.js";

const IDS = ["", ".", "..", "...", "%2e%2e", "%2E.", "../..", "..\\..", "a/b", "?x", "#x", "a?b#c",
  "//evil.example", "\ud800", "..\udfff", " ", "\n", "\u0000", "https://evil.example/"];

for (const id of IDS) {
  test(`path__stays_below_its_start: ${JSON.stringify(id)}`, () => {
    const base = "http://chat.example/api";
    for (const [path, depth] of [[pathOf(id), 3], [pathOf("a", id), 5], [pathOf(id, id), 5]]) {
      const { origin, pathname, search, hash } = new URL(`${base}${path}/stop`);
      assert.equal(origin, "http://chat.example");
      assert.equal(search + hash, "");
      const segments = pathname.split("/").slice(1);
      assert.equal(segments.length, depth + 1, pathname);
      assert.deepEqual(segments.slice(0, 2), ["api", "conversations"]);
      assert.equal(segments.at(-1), "stop");
      assert.ok(!segments.includes(""), pathname);
    }
  });
}

test("path__of_an_id_is_as_it_was", () => {
  const id = "0123456789abcdef01234567";
  assert.equal(pathOf(id, id), `/conversations/${id}/messages/${id}`);
});
