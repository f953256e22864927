// All conversations of a user: which answers wait for people, whatever is told, missed, or late.

import assert from "node:assert/strict";
import { afterEach, beforeEach, test } from "node:test";

import { openOwner } from "converse-mongo";
import { ID, Service, frame, refuse, stopServers, until } from "./service.js";

const OTHER = "6b0584864f3cb2a7c6ce844b";

let service;
const opened = new Set();

beforeEach(async () => {
  service = await Service.start();
});

afterEach(async () => {
  for (const each of opened) each.close();
  opened.clear();
  await stopServers();
});

/** Follows all conversations; keeps what was called. */
function follow(options = {}) {
  const calls = [];
  const owner = openOwner({
    ...{ url: service.url, retry: 8, interval: 0 },
    onOpened: ({ type }) => calls.push(type),
    onEvent: ({ type }) => calls.push(type),
    ...options,
  });
  opened.add(owner);
  return { owner, calls };
}

async function shown(owner, condition) {
  await until(owner.subscribe, () => condition(owner.getSnapshot()));
  return owner.getSnapshot();
}

const isOpen = ({ status }) => status === "open";
const waits = (...ids) => ({ waiting }) =>
  JSON.stringify(waiting.map(({ message_id: id }) => id)) === JSON.stringify(ids);

function suspended(id, calls = ["c1"], conversation = ID) {
  const about = { conversation_id: conversation, message_id: id, role: "assistant", attempt: 1 };
  const pending = calls.map((call_id) => ({ call_id, wanted: "approval" }));
  return { type: "message.suspended", ...about, pending };
}

const isNews = (type, id) => ({ type: `message.${type}`, conversation_id: ID, message_id: id });

test("answers that wait are known from the start, and go when they go on, end or are deleted", async () => {
  service.waiting = [suspended("a"), suspended("b")];
  const { owner, calls } = follow();
  assert.deepEqual(owner.getSnapshot(), { status: "loading", error: null, waiting: [] });
  const first = await shown(owner, isOpen);
  assert.deepEqual(first, { status: "open", error: null, waiting: service.waiting });
  service.tellOwner(suspended("a", ["c2"]), suspended("c", ["c1"], OTHER), suspended("d"));
  const { waiting } = await shown(owner, waits("b", "a", "c", "d"));
  assert.deepEqual(waiting[1].pending, [{ call_id: "c2", wanted: "approval" }]);
  service.tellOwner(isNews("queued", "a"), isNews("started", "b"), isNews("cancelled", "d"));
  await shown(owner, waits("c"));
  service.tellOwner({ type: "conversation.deleted", conversation_id: OTHER });
  await shown(owner, waits());
  assert.equal(first.waiting.length, 2); // a snapshot never changes
  const types = ["suspended", "suspended", "suspended", "queued", "started", "cancelled"];
  assert.deepEqual(calls, ["stream.opened", ...types.map((each) => `message.${each}`), "conversation.deleted"]);
});

test("what changes nothing of what waits is no other snapshot", async () => {
  service.waiting = [suspended("a")];
  const { owner, calls } = follow();
  const before = await shown(owner, isOpen);
  service.tellOwner(
    isNews("created", "b"),
    isNews("completed", "b"),
    { type: "conversation.updated", conversation_id: ID },
    { type: "conversation.deleted", conversation_id: OTHER },
    suspended("b"),
  );
  const after = await shown(owner, waits("a", "b"));
  assert.equal(calls.length, 6);
  assert.equal(before.waiting[0], after.waiting[0]);
});

test("a new connection says anew what waits; until then it is as it was", async () => {
  service.waiting = [suspended("a"), suspended("b")];
  const { owner } = follow();
  await shown(owner, isOpen);
  service.waiting = [suspended("b"), suspended("c")];
  const held = service.hold("owner events");
  service.breakStreams();
  const lost = await shown(owner, ({ status }) => status === "reconnecting");
  assert.ok(waits("a", "b")(lost));
  await held.arrived;
  held.release();
  await shown(owner, (snapshot) => isOpen(snapshot) && waits("b", "c")(snapshot));
  assert.equal(owner.getSnapshot().error, null);
});

test("a service of an earlier version tells only what happens", async () => {
  service.next("owner events", (response) => {
    response.writeHead(200, { "content-type": "text/event-stream" });
    response.write(frame({ type: "stream.opened" }) + frame(suspended("a")));
  });
  const { owner } = follow();
  await shown(owner, waits("a"));
});

test("trouble is told: what may pass while it lasts, and what does not", async () => {
  service.next("owner events", refuse(503, "unavailable", "Later."));
  const { owner } = follow();
  const late = await shown(owner, ({ error }) => error?.message === "Later.");
  assert.equal(late.status, "loading");
  assert.equal((await shown(owner, isOpen)).error, null);
  service.next("owner events", refuse(404, "not_found", "None."));
  service.breakStreams();
  const over = await shown(owner, ({ status }) => status === "error");
  assert.equal(over.error.message, "None.");
});

test("a listener that throws ends it; closed, it leaves nothing", async () => {
  const trouble = new RangeError("mine");
  const { owner } = follow({
    onOpened: () => {
      throw trouble;
    },
  });
  const { error } = await shown(owner, ({ status }) => status === "error");
  assert.equal(error, trouble);
  const other = follow().owner;
  await shown(other, isOpen);
  other.close();
  await service.until(() => service.streams.size === 0);
  assert.deepEqual(other.getSnapshot().status, "open");
});
