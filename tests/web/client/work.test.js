// Messages that were queued for workers: what they wait for, whatever is told, missed, or late.

import assert from "node:assert/strict";
import { afterEach, beforeEach, test } from "node:test";

import { ConverseError, openConversation, watchConversation, watchMessage } from "converse-mongo";
import { look, merge, newEntry, take } from "../../../converse_mongo/web/client/entries.js";
import { openMessage } from "../../../converse_mongo/web/client/message.js";
import { ID, Service, refuse, stopServers, until } from "./service.js";

const PENDING = [{ call_id: "c1", wanted: "approval" }];

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

const options = () => ({ url: service.url, conversationId: ID, retry: 8, interval: 0 });

function keep(store) {
  opened.add(store);
  return store;
}

/** Opens the conversation, and waits until it streams. */
async function follow() {
  const conversation = keep(openConversation(options()));
  await service.until(() => service.streams.size > 0);
  await shown(conversation, ({ status }) => status === "open");
  return conversation;
}

async function shown(store, condition) {
  await until(store.subscribe, () => condition(store.getSnapshot()));
  return store.getSnapshot();
}

const last = ({ messages }) => messages.at(-1);
const isIn = (state) => (snapshot) => last(snapshot)?.work?.state === state;

/** Begins a message that was queued, without telling what it waits for. */
function queue(work = { state: "queued", attempt: 1 }) {
  return service.silently(() => service.begin({ work }));
}

test("what an answer waits for is shown, from history and from events, and goes with its end", async () => {
  const answer = queue();
  const conversation = await follow();
  assert.deepEqual(last(conversation.getSnapshot()).work, { state: "queued", attempt: 1 });
  assert.equal(conversation.getSnapshot().typing, true);
  service.wait(answer, "running");
  await shown(conversation, isIn("running"));
  service.wait(answer, "waiting", 1, PENDING);
  const waiting = await shown(conversation, isIn("waiting"));
  assert.deepEqual(last(waiting).work, { state: "waiting", attempt: 1, pending: PENDING });
  assert.equal(waiting.typing, false);
  service.wait(answer, "queued", 2);
  assert.deepEqual(last(await shown(conversation, isIn("queued"))).work, { state: "queued", attempt: 2 });
  service.wait(answer, "running", 2);
  await shown(conversation, isIn("running"));
  service.end(answer);
  const ended = await shown(conversation, (snapshot) => last(snapshot).status === "completed");
  assert.equal("work" in last(ended), false);
});

test("a message that was never queued has no work", async () => {
  service.silently(() => service.begin());
  const conversation = await follow();
  assert.equal("work" in last(conversation.getSnapshot()), false);
});

test("the same news again is no other snapshot", async () => {
  const answer = queue();
  const conversation = await follow();
  const before = conversation.getSnapshot();
  service.wait(answer, "queued");
  service.say("after");
  const after = await shown(conversation, ({ messages }) => messages.length === 2);
  assert.equal(after.messages[0], before.messages[0]);
});

test("a chunk tells that an answer runs, whose worker is told of later", async () => {
  const answer = queue({ state: "queued", attempt: 2 });
  const conversation = await follow();
  service.append(answer, "Hi");
  const runs = await shown(conversation, isIn("running"));
  assert.deepEqual(last(runs).work, { state: "running", attempt: 2 });
  assert.equal(last(runs).content, "Hi");
});

test("a chunk of a message that waits for people is an answer to a call", () => {
  const work = { state: "waiting", attempt: 1, pending: PENDING };
  const entry = newEntry({ ...stored(), work });
  take(entry, chunk(0));
  assert.deepEqual(look(entry).work, work);
});

test("a removed part tells of no worker, and neither does a chunk that is known", () => {
  const entry = newEntry({ ...stored(), chunk_count: 1, work: { state: "queued", attempt: 1 } });
  take(entry, chunk(0));
  take(entry, { ...chunk(1), chunk: { ...chunk(1).chunk, content: "", event: "redact", part: 0 } });
  assert.equal(look(entry).work.state, "queued");
});

const stored = () => ({ id: "b", status: "streaming", content: "", chunk_count: 0, metadata: {} });
const of = (type) => ({ type, message_id: "b", conversation_id: "a", attempt: 1 });
const chunk = (sequence) => ({ ...of("chunk.received"), chunk: { sequence, content: "x", created_at: "" } });

test("news that came while a message was loaded wins over what was loaded", () => {
  const entry = newEntry({ ...stored(), work: { state: "queued", attempt: 1 } });
  const before = entry.news;
  take(entry, of("message.started"));
  merge(entry, { ...stored(), work: { state: "queued", attempt: 1 } }, before);
  assert.equal(look(entry).work.state, "running");
  merge(entry, { ...stored(), work: { state: "waiting", attempt: 1, pending: [] } }, entry.news);
  assert.equal(look(entry).work.state, "waiting");
  merge(entry, { ...stored(), status: "completed" });
  assert.equal("work" in look(entry), false);
  take(entry, of("message.queued"));
  assert.equal("work" in look(entry), false);
});

test("what a request returns does not undo what was told meanwhile", async () => {
  const old = service.say("old", { role: "assistant" });
  const conversation = await follow();
  const held = service.hold("retry");
  const retrying = conversation.retry(old.id);
  await held.arrived;
  const answer = service.begin({ replaces: old.id, work: { state: "queued", attempt: 1 } });
  const asSent = service.wire(answer);
  service.wait(answer, "queued");
  service.wait(answer, "running");
  await shown(conversation, isIn("running"));
  held.release((response) => response.writeHead(201, { "content-type": "application/json" })
    .end(JSON.stringify({ answer: asSent })));
  assert.equal((await retrying).work.state, "running");
});

for (const first of ["queued", "waiting"]) {
  test(`a worker that came between two streams is noticed: ${first}`, async () => {
    const answer = queue({ state: first, attempt: 1, ...(first === "waiting" ? { pending: PENDING } : {}) });
    const conversation = await follow();
    await shown(conversation, isIn(first));
    service.silently(() => service.wait(answer, "running"));
    service.breakStreams();
    await shown(conversation, isIn("running"));
    const message = keep(openMessage({ ...options(), messageId: answer.id }));
    await shown(message, (snapshot) => snapshot.message?.work.state === "running");
  });

  test(`a worker that came between the page and the stream is noticed: ${first}`, async () => {
    const answer = queue({ state: first, attempt: 1, ...(first === "waiting" ? { pending: PENDING } : {}) });
    const held = service.hold("events");
    const conversation = keep(openConversation(options()));
    await held.arrived;
    assert.equal(last(conversation.getSnapshot()).work.state, first);
    service.silently(() => service.wait(answer, "running"));
    held.release();
    await shown(conversation, isIn("running"));
  });
}

test("one message shows what it waits for", async () => {
  const answer = queue();
  const held = service.hold("message events");
  const message = keep(openMessage({ ...options(), messageId: answer.id }));
  await held.arrived;
  service.silently(() => service.wait(answer, "running"));
  held.release();
  await shown(message, (snapshot) => snapshot.message.work.state === "running");
  service.wait(answer, "waiting", 1, PENDING);
  await shown(message, (snapshot) => snapshot.message.work.pending?.length === 1);
  service.end(answer, "cancelled");
  const { message: ended } = await shown(message, ({ status }) => status === "ended");
  assert.equal("work" in ended, false);
});

// Answers to tool calls

test("tool calls are answered once, and the response is shown", async () => {
  const answer = queue({ state: "waiting", attempt: 1, pending: PENDING });
  const conversation = await follow();
  service.silently(() => service.wait(answer, "queued"));
  service.next("answers", refuse(503, "unavailable"));
  const given = [{ call_id: "c1", approved: true, reason: "Sure" }];
  assert.deepEqual(await conversation.answerToolCalls(answer.id, given), { state: "queued", attempt: 1 });
  assert.equal(last(conversation.getSnapshot()).work.state, "queued");
  const [first, again] = service.of("answers").map(({ body }) => body);
  assert.deepEqual(first.answers, given);
  assert.ok(first.request_id);
  assert.equal(again.request_id, first.request_id);
  await conversation.answerToolCalls(answer.id, given);
  assert.notEqual(service.of("answers")[2].body.request_id, first.request_id);
});

test("the response to answers does not undo what was told meanwhile", async () => {
  const answer = queue({ state: "waiting", attempt: 1, pending: PENDING });
  const conversation = await follow();
  const held = service.hold("answers");
  const answering = conversation.answerToolCalls(answer.id, [{ call_id: "c1", output: null }]);
  await held.arrived;
  service.wait(answer, "running");
  await shown(conversation, isIn("running"));
  held.release((response) => response.writeHead(200, { "content-type": "application/json" })
    .end(JSON.stringify({ work: { state: "queued", attempt: 1 } })));
  assert.equal((await answering).state, "queued");
  assert.equal(last(conversation.getSnapshot()).work.state, "running");
});

test("answers that come too late are refused, and those to an ended message are no error", async () => {
  const answer = queue({ state: "waiting", attempt: 1, pending: PENDING });
  const conversation = await follow();
  service.next("answers", refuse(409, "not_pending"));
  await assert.rejects(
    conversation.answerToolCalls(answer.id, [{ call_id: "c1", approved: true }]),
    (error) => error instanceof ConverseError && error.code === "not_pending",
  );
  service.silently(() => service.end(answer));
  assert.equal(await conversation.answerToolCalls(answer.id, [{ call_id: "c1", approved: true }]), null);
});

// Cursors

test("news have no id, and a stream continues behind the last event that has one", async () => {
  const answer = service.silently(() => service.begin());
  const received = { conversation: [], message: [] };
  for (const [name, watch] of [["conversation", watchConversation], ["message", watchMessage]]) {
    const onEvent = (event) => received[name].push(event);
    keep(watch({ ...options(), messageId: answer.id, onEvent }));
  }
  await service.until(() => service.streams.size === 2);
  service.wait(answer, "queued");
  service.append(answer, "Hi");
  service.wait(answer, "running");
  await service.until(() => service.streams.size === 2);
  while (Object.values(received).some(({ length }) => length < 3)) await new Promise(setImmediate);
  const ids = (events) => events.map(({ id }) => id);
  const [conversationId] = ids(received.conversation.slice(1));
  assert.deepEqual(ids(received.conversation), ["", conversationId, conversationId]);
  assert.deepEqual(ids(received.message), ["", `${answer.id}.0`, `${answer.id}.0`]);
  service.breakStreams();
  await service.requested("events", 2);
  await service.requested("message events", 2);
  assert.equal(service.of("events")[1].query.after, conversationId);
  assert.equal(service.of("message events")[1].query.after, `${answer.id}.0`);
  service.tellWork(answer);
});
