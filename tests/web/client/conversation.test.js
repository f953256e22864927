// A conversation for user interfaces: what is shown, over whatever the service and the user do.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { afterEach, beforeEach, mock, test } from "node:test";

import { ConverseError, openConversation, readFile } from "converse-mongo";
import {
  ID,
  Service,
  chunk,
  created,
  drop,
  ended,
  json,
  refuse,
  shownAs,
  stopServers,
  until,
} from "./service.js";

let service;
let child = null;
const opened = new Set();

beforeEach(async () => {
  service = await Service.start();
});

afterEach(async () => {
  for (const conversation of opened) conversation.close();
  opened.clear();
  child?.kill();
  child = null;
  await stopServers();
});

/** Opens the conversation; keeps each snapshot that its listeners are told of. */
function open(options = {}) {
  const conversation = openConversation({
    url: service.url,
    conversationId: ID,
    retry: 8,
    interval: 0,
    ...options,
  });
  opened.add(conversation);
  const seen = [conversation.getSnapshot()];
  conversation.subscribe(() => seen.push(conversation.getSnapshot()));
  return { conversation, seen };
}

/** Opens it, and waits until it streams. */
async function follow(options) {
  const found = open(options);
  await service.until(() => service.streams.size > 0);
  await shown(found.conversation, ({ status }) => status === "open");
  return found;
}

/** Waits for a snapshot with which a condition holds. */
async function shown(conversation, condition) {
  await until(conversation.subscribe, () => condition(conversation.getSnapshot()));
  return conversation.getSnapshot();
}

async function shownTexts(conversation, ...texts) {
  const wanted = JSON.stringify(texts);
  return await shown(conversation, (snapshot) => JSON.stringify(contents(snapshot)) === wanted);
}

/** Has something said that nothing else depends on, and waits until it is shown. */
async function barrier(conversation, text = "barrier") {
  service.say(text, { role: "assistant" });
  return await shown(conversation, (snapshot) => contents(snapshot).includes(text));
}

const contents = ({ messages }) => messages.map(({ content }) => content);
const statuses = ({ messages }) => messages.map(({ status }) => status);
const last = ({ messages }) => messages.at(-1);
const count = (snapshot, text) => contents(snapshot).filter((each) => each === text).length;

// Following

test("the newest page is loaded, and followed from its cursor", async () => {
  service.say("one");
  service.say("two", { role: "assistant" });
  const { conversation, seen } = open();
  assert.deepEqual(conversation.getSnapshot(), {
    status: "loading",
    error: null,
    messages: [],
    hasOlder: false,
    typing: false,
  });
  await shownTexts(conversation, "one", "two");
  assert.equal(conversation.getSnapshot().status, "open");
  const [page] = service.of("page");
  assert.deepEqual(page.query, { limit: "50" });
  const { query } = await service.requested("events");
  assert.deepEqual(query, { after: `${ID}.2` });
  service.say("three");
  await shownTexts(conversation, "one", "two", "three");
  assert.deepEqual(seen.map(({ status }) => status), ["loading", "open", "open"]);
  assert.equal(service.of("page").length, 1);
});

test("what is said between the page and the stream is not missed", async () => {
  service.say("one");
  const held = service.hold("events");
  const { conversation } = open();
  await held.arrived;
  service.say("two");
  held.release();
  await shownTexts(conversation, "one", "two");
});

test("chunks join to the text, up to the end of the message", async () => {
  const { conversation } = await follow();
  const message = service.begin({ metadata: { model: "small" } });
  let snapshot = await shown(conversation, ({ messages }) => messages.length === 1);
  assert.deepEqual(last(snapshot), {
    ...{ id: message.id, conversation_id: ID, position: 0, role: "assistant" },
    ...{ status: "streaming", content: "", parts: [], chunk_count: 0 },
    metadata: { model: "small" },
    ...{ replaces: null, error: null, stop_reason: null },
    ...{ created_at: message.created_at, completed_at: null },
  });
  assert.equal(snapshot.typing, true);
  service.append(message, "Use ", "é😀");
  snapshot = await shownTexts(conversation, "Use é😀");
  assert.deepEqual([last(snapshot).status, last(snapshot).chunk_count], ["streaming", 2]);
  service.append(message, "", " open()");
  await shownTexts(conversation, "Use é😀 open()");
  service.end(message, "completed", { metadata: { finish_reason: "stop" } });
  snapshot = await shown(conversation, ({ typing }) => !typing);
  assert.deepEqual(last(snapshot), shownAs(message));
  assert.deepEqual(service.of("message"), []);
});

test("a message that streams already goes on from the page", async () => {
  const message = service.begin();
  service.append(message, "a", "b");
  const { conversation } = await follow();
  assert.equal(conversation.getSnapshot().typing, true);
  service.append(message, "c");
  await shownTexts(conversation, "abc");
  assert.deepEqual(service.of("message"), []);
});

for (const [status, fields] of [
  ["failed", { error: "The answer could not be completed." }],
  ["cancelled", { stop_reason: "The user pressed stop." }],
]) {
  test(`a message that ends as ${status} says why, and keeps its text`, async () => {
    const { conversation } = await follow();
    const message = service.begin();
    service.append(message, "half");
    service.end(message, status, { metadata: { tokens: 1 }, ...fields });
    const snapshot = await shown(conversation, ({ messages }) => messages[0]?.status === status);
    assert.deepEqual(last(snapshot), shownAs({ ...message, content: "half" }));
    assert.equal(snapshot.typing, false);
  });
}

test("messages stand in the order of their positions", async () => {
  const { conversation } = await follow();
  const [one, two] = service.silently(() => [service.say("one"), service.say("two")]);
  service.tell(created(two), created(one));
  await shownTexts(conversation, "one", "two");
});

test("two messages that stream at once do not mingle", async () => {
  const { conversation } = await follow();
  const [left, right] = [service.begin(), service.begin()];
  for (const text of ["1", "2", "3"]) {
    service.append(left, `l${text}`);
    service.append(right, `r${text}`);
  }
  await shownTexts(conversation, "l1l2l3", "r1r2r3");
});

test("events of types to come are let pass", async () => {
  const { conversation } = await follow();
  const message = service.begin();
  const named = { conversation_id: ID, message_id: message.id };
  service.tell(
    { type: "message.pinned", ...named, chunk_count: 0 },
    { type: "conversation.pinned", conversation_id: ID },
  );
  service.append(message, "a");
  const snapshot = await shownTexts(conversation, "a");
  assert.equal(last(snapshot).status, "streaming");
  assert.deepEqual(service.of("message"), []);
});

// Snapshots

test("a snapshot is never changed, and keeps what stayed the same", async () => {
  const question = service.say("question");
  const { conversation } = await follow();
  const before = conversation.getSnapshot();
  assert.equal(conversation.getSnapshot(), before);
  assert.ok(Object.isFrozen(before) && Object.isFrozen(before.messages));
  assert.ok(before.messages.every(Object.isFrozen));

  const answer = service.begin();
  service.append(answer, "a");
  const then = await shownTexts(conversation, "question", "a");
  service.append(answer, "b");
  const now = await shownTexts(conversation, "question", "ab");
  assert.ok(Object.isFrozen(now) && now.messages.every(Object.isFrozen));
  assert.deepEqual(contents(before), ["question"]);
  assert.deepEqual(contents(then), ["question", "a"]);
  assert.equal(now.messages[0], before.messages[0]);
  assert.notEqual(now.messages[1], then.messages[1]);

  service.breakStreams();
  const lost = await shown(conversation, ({ status }) => status === "reconnecting");
  assert.equal(lost.messages, now.messages);
  assert.equal(before.messages[0].id, question.id);
});

test("what was seen before changes nothing, and is told to nobody", async () => {
  const { conversation, seen } = await follow();
  const message = service.begin();
  const chunks = service.append(message, "a", "b");
  const before = await shownTexts(conversation, "ab");
  const told = seen.length;
  service.tell(created(message), ...chunks);
  // It is a connection later that all of it has been read for sure.
  service.endStreams();
  await service.requested("events", 2);
  await shown(conversation, ({ status }) => status === "open");
  assert.deepEqual(seen.slice(told).map(({ status }) => status), ["reconnecting", "open"]);
  assert.equal(conversation.getSnapshot().messages, before.messages);
  service.end(message);
  const after = await shown(conversation, ({ typing }) => !typing);
  service.tell(...chunks, { ...ended(message), type: "message.failed", error: "late" });
  await barrier(conversation);
  assert.equal(conversation.getSnapshot().messages[0], after.messages[0]);
});

test("a burst of chunks is one notification", async () => {
  const { conversation, seen } = await follow();
  const message = service.begin();
  await shown(conversation, ({ messages }) => messages.length === 1);
  const told = seen.length;
  const texts = Array.from({ length: 50 }, (_, index) => `${index} `);
  service.append(message, ...texts);
  await shownTexts(conversation, texts.join(""));
  assert.equal(seen.length, told + 1);
});

test("changes that come by themselves are told at an interval, and what a user does at once", async () => {
  const { conversation, seen } = await follow({ interval: 60_000 });
  const told = seen.length;
  const timers = mock.method(globalThis, "setTimeout");
  const message = service.begin();
  service.append(message, "a");
  service.endStreams();
  await service.requested("events", 2); // so it was read
  mock.restoreAll();
  const long = timers.mock.calls.filter(({ arguments: [, time] }) => time > 50_000);
  assert.ok(long.length <= 1, "a timer for each change");
  assert.equal(seen.length, told);
  void conversation.send("now");
  assert.equal(seen.length, told + 1);
  assert.deepEqual(contents(conversation.getSnapshot()), ["a", "now"]);
});

test("between two notifications of a stream there is the interval", async () => {
  const { conversation } = await follow({ interval: 50 });
  const times = [];
  conversation.subscribe(() => times.push(performance.now()));
  const message = service.begin();
  while (times.length < 4) {
    service.append(message, "a");
    await new Promise(setImmediate);
  }
  const pauses = times.slice(1).map((time, index) => time - times[index]);
  assert.ok(pauses.every((pause) => pause > 40), String(pauses)); // timers are not that exact
});

test("a listener that throws is its own trouble", async () => {
  const { conversation, seen } = await follow();
  const trouble = new RangeError("mine");
  const thrown = [];
  const queue = globalThis.queueMicrotask;
  mock.method(globalThis, "queueMicrotask", (task) => {
    queue(() => {
      try {
        task();
      } catch (error) {
        thrown.push(error);
      }
    });
  });
  try {
    const broken = openConversation({ url: service.url, conversationId: ID, interval: 0 });
    opened.add(broken);
    broken.subscribe(() => {
      throw trouble;
    });
    let heard = 0;
    broken.subscribe(() => {
      heard += 1;
    });
    await shown(broken, ({ status }) => status === "open");
    service.say("one");
    await shownTexts(broken, "one");
    assert.equal(heard, 2);
  } finally {
    mock.restoreAll();
  }
  assert.deepEqual(thrown, [trouble, trouble]);
  assert.equal(last(await shownTexts(conversation, "one")).role, "user");
  assert.equal(seen.at(-1), conversation.getSnapshot());
});

test("a listener that was ended hears nothing more, from within another one too", async () => {
  const { conversation } = await follow();
  const heard = [];
  const ends = [];
  const listener = () => heard.push("twice");
  ends.push(conversation.subscribe(listener), conversation.subscribe(listener));
  void conversation.send("one");
  assert.deepEqual(heard, ["twice", "twice"]);
  ends[0]();
  ends[0]();
  void conversation.send("two");
  assert.equal(heard.length, 3);

  conversation.subscribe(() => ends.forEach((end) => end()));
  ends.push(conversation.subscribe(() => heard.push("behind")));
  void conversation.send("three");
  assert.ok(!heard.includes("behind"));

  conversation.subscribe(() => conversation.close());
  conversation.subscribe(() => heard.push("closed"));
  void conversation.send("four");
  assert.ok(!heard.includes("closed"));
});

// Sending

test("what is said is shown at once, and is stored then", async () => {
  const { conversation } = await follow();
  const held = service.hold("send");
  const sending = conversation.send("hello");
  const snapshot = conversation.getSnapshot();
  const { id, created_at, ...pending } = last(snapshot);
  assert.deepEqual(pending, {
    ...{ conversation_id: ID, position: null, role: "user", status: "pending" },
    ...{ content: "hello", chunk_count: 0, metadata: {}, replaces: null },
    parts: [{ part: 0, kind: "text", fields: {}, text: "hello" }],
    ...{ error: null, stop_reason: null, completed_at: null },
  });
  assert.ok(Date.parse(created_at) <= Date.now());
  assert.equal(snapshot.typing, true);
  const { body, headers } = await held.arrived;
  assert.deepEqual(body, { content: "hello", request_id: id });
  assert.equal(headers["content-type"], "application/json");
  held.release();
  const message = await sending;
  assert.deepEqual(message, shownAs([...service.stored.values()][0]));
  assert.equal(last(conversation.getSnapshot()), message);
  assert.equal(conversation.getSnapshot().typing, false);
});

test("an answer comes with the response, and is followed", async () => {
  const { conversation, seen } = await follow();
  service.next("send", (response) => {
    const [message, answer] = service.silently(() => [service.say("hello"), service.begin()]);
    json({ message, answer }, 201)(response);
  });
  await conversation.send("hello");
  const [, answer] = service.stored.values();
  assert.equal(last(conversation.getSnapshot()).id, answer.id);
  assert.equal(conversation.getSnapshot().typing, true);
  service.tell(...[...service.stored.values()].map(created));
  service.append(answer, "Hi", ".");
  await shownTexts(conversation, "hello", "Hi.");
  service.end(answer);
  await shown(conversation, ({ typing }) => !typing);
  assert.ok(seen.every(({ messages }) => messages.length <= 2));
  assert.deepEqual(service.of("message"), []);
});

test("the event of what is said comes before the response: one message, not two", async () => {
  const { conversation, seen } = await follow();
  const told = seen.length;
  const held = service.hold("send");
  const sending = conversation.send("hello");
  await held.arrived;
  const stored = service.say("hello");
  const { messages } = await shown(conversation, (snapshot) => last(snapshot).id === stored.id);
  assert.equal(messages.length, 1);
  held.release(json({ message: stored, answer: null }, 201));
  const message = await sending;
  // It is the same message, so nothing of the list is drawn again.
  assert.equal(message, messages[0]);
  assert.equal(conversation.getSnapshot().messages, messages);
  await barrier(conversation);
  assert.ok(seen.slice(told).every((snapshot) => count(snapshot, "hello") === 1));
});

test("the response comes before the event: one message, not two", async () => {
  const { conversation, seen } = await follow();
  const told = seen.length;
  let stored;
  service.next("send", (response) => {
    stored = service.silently(() => service.say("hello"));
    json({ message: stored, answer: null }, 201)(response);
  });
  const message = await conversation.send("hello");
  service.tell(created(stored));
  await barrier(conversation);
  assert.equal(conversation.getSnapshot().messages[0], message);
  assert.ok(seen.slice(told).every((snapshot) => count(snapshot, "hello") === 1));
});

test("the page comes before the response, and has what is said: one message, not two", async () => {
  const page = service.hold("page");
  const held = service.hold("send");
  const { conversation, seen } = open();
  const sending = conversation.send("hello");
  await Promise.all([page.arrived, held.arrived]);
  const stored = service.say("hello");
  page.release();
  await shown(conversation, ({ status }) => status === "open");
  held.release(json({ message: stored, answer: null }, 201));
  await sending;
  await barrier(conversation);
  assert.ok(seen.slice(1).every((snapshot) => count(snapshot, "hello") === 1));
});

test("the page has what was said before, in the same words: they are two messages", async () => {
  service.say("yes");
  const held = service.hold("page");
  const { conversation } = open();
  await held.arrived;
  await conversation.send("yes");
  const sending = service.hold("send");
  void conversation.send("yes");
  await sending.arrived;
  held.release();
  const snapshot = await shown(conversation, ({ status }) => status === "open");
  assert.deepEqual(statuses(snapshot), ["completed", "completed", "pending"]);
  sending.release();
  await shown(conversation, ({ messages }) => messages.every((each) => each.status !== "pending"));
  assert.equal(count(conversation.getSnapshot(), "yes"), 3);
});

for (const first of ["event", "response"]) {
  test(`the same text twice at once is two messages all the time, the ${first} first`, async () => {
    const { conversation, seen } = await follow();
    const held = [service.hold("send"), service.hold("send")];
    const sending = [conversation.send("yes"), conversation.send("yes")];
    const told = seen.length - 1;
    const ids = [];
    for (const [index, each] of held.entries()) {
      await each.arrived;
      const stored = service.silently(() => service.say("yes"));
      ids.push(stored.id);
      if (first === "event") {
        service.tell(created(stored));
        await shown(conversation, ({ messages }) => messages.some(({ id }) => id === stored.id));
      }
      each.release(json({ message: stored, answer: null }, 201));
      await sending[index];
      if (first === "response") service.tell(created(stored));
    }
    const { messages } = await barrier(conversation);
    assert.deepEqual(messages.map(({ id }) => id).slice(0, 2), ids);
    assert.ok(seen.slice(told).every((snapshot) => count(snapshot, "yes") === 2));
  });
}

test("somebody else says the same meanwhile: nothing is lost", async () => {
  const { conversation } = await follow();
  const [first, second] = [service.hold("send"), service.hold("send")];
  const sending = [conversation.send("yes"), conversation.send("yes")];
  await first.arrived;
  service.say("no");
  const other = service.say("yes");
  const own = service.say("yes");
  const wanted = ["completed", "completed", "completed", "pending"];
  await shown(conversation, ({ messages }) => messages.some(({ id }) => id === own.id));
  assert.deepEqual(statuses(conversation.getSnapshot()), wanted);
  first.release(json({ message: own, answer: null }, 201));
  await sending[0];
  assert.deepEqual(statuses(conversation.getSnapshot()), wanted);
  await second.arrived;
  second.release();
  const message = await sending[1];
  const ids = conversation.getSnapshot().messages.map(({ id }) => id);
  assert.deepEqual(ids.slice(1), [other.id, own.id, message.id]);
});

test("somebody else says something else meanwhile: both are shown", async () => {
  const { conversation } = await follow();
  const held = service.hold("send");
  const sending = conversation.send("mine");
  await held.arrived;
  service.say("theirs");
  await shownTexts(conversation, "theirs", "mine");
  held.release();
  await sending;
  await shownTexts(conversation, "theirs", "mine");
});

test("what is sent again waits behind what is being sent, and is told apart from it", async () => {
  const { conversation, seen } = await follow();
  service.next("send", refuse(413));
  const unsent = await conversation.send("one");
  const held = service.hold("send");
  const sending = conversation.send("two");
  const again = conversation.resend(unsent.id);
  await held.arrived;
  const told = seen.length;
  const stored = service.say("two");
  await shown(conversation, ({ messages }) => messages.some(({ id }) => id === stored.id));
  held.release(json({ message: stored, answer: null }, 201));
  await Promise.all([sending, again]);
  await shownTexts(conversation, "two", "one");
  for (const snapshot of seen.slice(told)) {
    assert.deepEqual([count(snapshot, "one"), count(snapshot, "two")], [1, 1]);
  }
});

test("trouble that passes: it is sent again as the same request", async () => {
  const { conversation, seen } = await follow();
  const told = seen.length;
  let stored;
  service.next(
    "send",
    (response, { body }) => {
      stored = service.say(body.content); // and the response is lost
      drop(response);
    },
    refuse(503, "unavailable"),
    (response) => response.writeHead(200, { "content-type": "text/html" }).end("<p>Log in</p>"),
    (response) => json({ message: stored, answer: null }, 201)(response),
  );
  const message = await conversation.send("hello");
  assert.deepEqual(message, shownAs(stored));
  const ids = service.of("send").map(({ body }) => body.request_id);
  assert.equal(ids.length, 4);
  assert.equal(new Set(ids).size, 1);
  await barrier(conversation);
  assert.ok(seen.slice(told).every((snapshot) => count(snapshot, "hello") === 1));
});

test("files are sent with a message, shown at once, and kept if it cannot be sent", async () => {
  const { conversation } = await follow();
  const address = { url: "https://example.org/a.png", media_type: "image/png" };
  const own = await readFile(new File([new Uint8Array([0, 255, 128])], "b.pdf", { type: "application/pdf" }));
  service.next("send", refuse(413, "too_large", "This file is too large: b.pdf."));
  const sending = conversation.send("see", { files: [address, own] });
  const [text, ...files] = last(conversation.getSnapshot()).parts;
  assert.deepEqual([text.kind, text.text, text.part], ["text", "see", 0]);
  assert.deepEqual(files.map(({ part, kind, fields }) => [part, kind, fields]), [
    [1, "file", address],
    [2, "file", { ...own, name: "b.pdf", size: 3 }],
  ]);
  const unsent = await sending;
  assert.deepEqual([unsent.status, unsent.error], ["unsent", "This file is too large: b.pdf."]);
  assert.deepEqual(unsent.parts, [text, ...files]);
  const sent = await conversation.resend(unsent.id);
  assert.equal(sent.status, "completed");
  const bodies = service.of("send").map(({ body }) => body);
  assert.deepEqual(bodies[1], {
    content: "see",
    files: [
      { ...address, name: null },
      { url: "data:application/pdf;base64,AP+A", media_type: "application/pdf", name: "b.pdf" },
    ],
    request_id: unsent.id,
  });
  assert.deepEqual(bodies[0], bodies[1]);
  await conversation.send("", { files: [address] });
  assert.equal(service.of("send").at(-1).body.content, "");
  await conversation.send("alone");
  assert.equal("files" in service.of("send").at(-1).body, false);
});

test("a file of any size and type is read", async () => {
  const large = new Uint8Array(100_001).fill(7);
  const { url, ...about } = await readFile(new Blob([large], { type: "text/plain;charset=utf-8" }));
  assert.deepEqual(about, { media_type: "text/plain", name: null, size: 100_001 });
  const [head, encoded] = url.split(",");
  assert.equal(head, "data:text/plain;base64");
  assert.deepEqual(new Uint8Array(Buffer.from(encoded, "base64")), large);
  assert.equal((await readFile(new File([], "a"))).url, "data:application/octet-stream;base64,");
});

test("what cannot be sent is unsent, and is sent again as the same request", async () => {
  const { conversation } = await follow({ patience: 0 });
  service.next("send", refuse(503, "unavailable", "Not now."));
  const unsent = await conversation.send("hello");
  assert.deepEqual([unsent.status, unsent.error, unsent.content], ["unsent", "Not now.", "hello"]);
  assert.equal(last(conversation.getSnapshot()), unsent);
  assert.equal(conversation.getSnapshot().typing, false);
  assert.ok(Object.isFrozen(unsent));
  service.say("hello"); // in another tab
  const { messages } = await shown(conversation, (snapshot) => count(snapshot, "hello") === 2);
  assert.equal(messages[1], unsent);

  const held = service.hold("send");
  const sending = conversation.resend(unsent.id);
  const pending = last(conversation.getSnapshot());
  assert.deepEqual([pending.status, pending.error, pending.id], ["pending", null, unsent.id]);
  assert.equal(conversation.resend(unsent.id) instanceof Promise, true); // the same one
  await held.arrived;
  held.release();
  const message = await sending;
  assert.deepEqual(statuses(conversation.getSnapshot()), ["completed", "completed"]);
  assert.equal(last(conversation.getSnapshot()), message);
  const ids = service.of("send").map(({ body }) => body.request_id);
  assert.deepEqual(ids, [unsent.id, unsent.id]);
  await assert.rejects(conversation.resend(unsent.id), /No unsent message has the id/);
  await assert.rejects(conversation.resend("unknown"), /No unsent message has the id/);
});

test("what is not an answer of the routes is explained to the user of the page", async () => {
  const { conversation } = await follow({ patience: 0 });
  const page = (status) => (response) =>
    response.writeHead(status, { "content-type": "text/html" }).end("<p>nginx</p>");
  for (const [answer, text] of [
    [drop, "The service could not be reached. Try again."],
    [page(502), "The service is not available at the moment. Try again."],
    [page(401), "You are not signed in. Sign in, then try again."],
    [page(403), "The service refused the request."],
    [page(200), "The service could not answer. Try again."],
  ]) {
    service.next("send", answer);
    const { status, error } = await conversation.send("hello");
    assert.deepEqual([status, error], ["unsent", text]);
  }
});

for (const [status, code] of [[404, "not_found"], [409, "conflict"], [413, "too_large"]]) {
  test(`what is refused with ${status} is not tried again`, async () => {
    const { conversation } = await follow();
    service.next("send", refuse(status, code, "No."));
    const message = await conversation.send("hello");
    assert.deepEqual([message.status, message.error], ["unsent", "No."]);
    assert.deepEqual(statuses(conversation.getSnapshot()), ["unsent"]);
    assert.equal(service.of("send").length, 1);
  });
}

test("what is said first is sent first, and is not in the way of the next when it fails", async () => {
  const { conversation, seen } = await follow();
  const held = service.hold("send");
  const sending = ["one", "two", "three"].map((text) => conversation.send(text));
  const pending = conversation.getSnapshot();
  assert.deepEqual(contents(pending), ["one", "two", "three"]);
  assert.deepEqual(statuses(pending), ["pending", "pending", "pending"]);
  await held.arrived;
  await barrier(conversation);
  assert.equal(service.of("send").length, 1);
  held.release(refuse(413));
  const results = await Promise.all(sending);
  assert.deepEqual(results.map(({ status }) => status), ["unsent", "completed", "completed"]);
  assert.deepEqual(service.of("send").map(({ body }) => body.content), ["one", "two", "three"]);
  await shownTexts(conversation, "barrier", "two", "three", "one");
  assert.ok(seen.slice(4).every((snapshot) => count(snapshot, "two") === 1));
});

test("a caller names the request: said twice, it is sent once", async () => {
  const { conversation } = await follow();
  const held = service.hold("send");
  const sending = [1, 2].map(() => conversation.send("hello", { requestId: "mine" }));
  assert.deepEqual(contents(conversation.getSnapshot()), ["hello"]);
  const { body } = await held.arrived;
  assert.equal(body.request_id, "mine");
  held.release();
  const [left, right] = await Promise.all(sending);
  assert.equal(left, right);
  assert.equal(service.of("send").length, 1);
});

test("pages without TLS have no randomUUID, and make up ids all the same", async () => {
  const { conversation } = await follow();
  const saved = Object.getOwnPropertyDescriptor(Crypto.prototype, "randomUUID");
  Object.defineProperty(Crypto.prototype, "randomUUID", { value: undefined, configurable: true });
  try {
    await Promise.all([conversation.send("one"), conversation.send("two")]);
  } finally {
    Object.defineProperty(Crypto.prototype, "randomUUID", saved);
  }
  const ids = service.of("send").map(({ body }) => body.request_id);
  assert.ok(ids.every((id) => /^[0-9a-f]{32}$/.test(id)) && ids[0] !== ids[1], String(ids));
});

// Stopping, and answers instead of others

test("answers are stopped, one or all", async () => {
  const { conversation } = await follow();
  const message = service.begin();
  assert.deepEqual(await conversation.stop(message.id), { id: message.id, status: "streaming" });
  await conversation.stop(message.id, "enough");
  assert.deepEqual(await conversation.stop(), { stopped: [] });
  await conversation.stop(null, "enough");
  assert.deepEqual(service.of("stop").map(({ body }) => body), [{}, { reason: "enough" }]);
  assert.deepEqual(service.of("stop all").map(({ body }) => body), [{}, { reason: "enough" }]);
  service.next("stop", refuse(404, "not_found"));
  await assert.rejects(conversation.stop("other"), (error) => {
    assert.ok(error instanceof ConverseError);
    assert.deepEqual([error.status, error.code], [404, "not_found"]);
    return true;
  });
});

test("a stop while a message is being sent names its request", async () => {
  const { conversation } = await follow();
  const held = service.hold("send");
  const sending = conversation.send("Hi", { requestId: "r1" });
  await held.arrived;
  const stopping = conversation.stop(null, "enough");
  await service.requested("stop all", 2);
  assert.deepEqual(service.of("stop all").map(({ body }) => body), [
    { reason: "enough", request_id: "r1" },
    { reason: "enough" },
  ]);
  assert.deepEqual(await stopping, { stopped: [] });
  await conversation.stop("r1");
  assert.deepEqual(service.of("stop all")[2].body, { request_id: "r1" });
  assert.equal(service.of("stop").length, 0);
  held.release();
  assert.equal((await sending).status, "completed");
});

test("what was not sent when it is stopped is not sent", async () => {
  const { conversation } = await follow();
  const held = service.hold("send");
  const first = conversation.send("one", { requestId: "r1" });
  const others = ["r2", "r3"].map((requestId) => conversation.send(requestId, { requestId }));
  await held.arrived;
  await conversation.stop("r2");
  const [, second, third] = conversation.getSnapshot().messages;
  assert.deepEqual([second.status, third.status], ["unsent", "pending"]);
  assert.equal(second.error, "You stopped this message before it was sent.");
  assert.equal(service.of("stop all").length, 0);
  await conversation.stop();
  assert.deepEqual(service.of("stop all").map(({ body }) => body), [{ request_id: "r1" }, {}]);
  held.release();
  assert.equal((await first).status, "completed");
  assert.deepEqual((await Promise.all(others)).map(({ status }) => status), ["unsent", "unsent"]);
  assert.deepEqual(service.of("send").map(({ body }) => body.content), ["one"]);
  assert.equal((await conversation.resend("r2")).content, "r2");
  assert.deepEqual(service.of("send").map(({ body }) => body.content), ["one", "r2"]);
});

test("what was stopped before it was sent, and sent again at once, is sent once", async () => {
  const { conversation } = await follow();
  const held = service.hold("send");
  const first = conversation.send("one");
  const second = conversation.send("two", { requestId: "r2" });
  await held.arrived;
  await conversation.stop("r2");
  const again = conversation.resend("r2");
  held.release();
  await first;
  assert.equal((await second).status, "unsent");
  assert.equal((await again).status, "completed");
  assert.deepEqual(service.of("send").map(({ body }) => body.content), ["one", "two"]);
});

test("a message that was stopped and refused is sent again as another one", async () => {
  const { conversation } = await follow();
  const held = service.hold("send");
  const sending = conversation.send("Hi", { requestId: "r1" });
  await held.arrived;
  await conversation.stop();
  held.release(refuse(409, "conflict"));
  assert.equal((await sending).status, "unsent");
  assert.equal((await conversation.resend("r1")).status, "completed");
  const ids = service.of("send").map(({ body }) => body.request_id);
  assert.equal(ids.length, 2);
  assert.notEqual(ids[1], "r1");
  assert.deepEqual(conversation.getSnapshot().messages.map(({ content }) => content), ["Hi"]);
});

test("a stop while another answer is asked for stops it once it is known", async () => {
  service.say("question");
  const first = service.begin({ content: "half", chunk_count: 1 });
  service.end(first, "failed", { error: "It failed." });
  service.answering = true;
  const { conversation } = await follow();
  const held = service.hold("retry");
  const retrying = conversation.retry(first.id);
  await held.arrived;
  await conversation.stop(null, "enough");
  assert.equal(service.of("stop").length, 0);
  held.release();
  const answer = await retrying;
  assert.deepEqual(service.of("stop").map(({ body, path }) => [body, path.includes(answer.id)]), [
    [{ reason: "enough" }, true],
  ]);
});

test("an answer that another is given instead of is not shown", async () => {
  service.say("question");
  const first = service.begin({ content: "half", chunk_count: 1 });
  service.end(first, "failed", { error: "It failed." });
  service.answering = true;
  const { conversation, seen } = await follow();
  const answer = await conversation.retry(first.id);
  assert.deepEqual(service.of("retry").map(({ body }) => body), [{}]);
  assert.equal(answer.replaces, first.id);
  assert.equal(last(conversation.getSnapshot()), answer);
  assert.equal(conversation.getSnapshot().messages.length, 2);
  service.append([...service.stored.values()].at(-1), "whole");
  await shownTexts(conversation, "question", "whole");
  assert.ok(seen.every(({ messages }) => messages.length <= 2));

  const elsewhere = service.begin({ replaces: answer.id });
  const snapshot = await shown(conversation, (each) => last(each).id === elsewhere.id);
  assert.equal(snapshot.messages.length, 2);
});

test("another answer that is not given is an error, or nothing", async () => {
  const answer = service.say("done", { role: "assistant" });
  const { conversation } = await follow();
  assert.equal(await conversation.retry(answer.id), null);
  service.next("retry", refuse(409, "conflict", "More was said since."));
  await assert.rejects(conversation.retry(answer.id), /More was said since/);
  assert.deepEqual(contents(conversation.getSnapshot()), ["done"]);
});

// The history

test("older messages are loaded page by page", async () => {
  for (const text of ["0", "1", "2", "3", "4"]) service.say(text);
  const { conversation } = await follow({ limit: 2 });
  const newest = await shownTexts(conversation, "3", "4");
  assert.equal(newest.hasOlder, true);
  await Promise.all([conversation.loadOlder(), conversation.loadOlder()]);
  const older = conversation.getSnapshot();
  assert.deepEqual([contents(older), older.hasOlder], [["1", "2", "3", "4"], true]);
  assert.equal(older.messages[2], newest.messages[0]);
  service.say("5");
  await shownTexts(conversation, "1", "2", "3", "4", "5");
  await conversation.loadOlder();
  const oldest = conversation.getSnapshot();
  assert.deepEqual([contents(oldest).slice(0, 2), oldest.hasOlder], [["0", "1"], false]);
  await conversation.loadOlder();
  assert.deepEqual(service.of("page").map(({ query }) => query), [
    { limit: "2" },
    { limit: "2", before: "3" },
    { limit: "2", before: "1" },
  ]);
});

test("pages that have nothing to show are passed over", async () => {
  service.say("question");
  const first = service.say("first", { role: "assistant" });
  service.say("second", { role: "assistant", replaces: first.id });
  service.say("thanks");
  const { conversation } = await follow({ limit: 1 });
  assert.deepEqual(contents(conversation.getSnapshot()), ["thanks"]);
  service.next("page", json({ messages: [], before: 3 })); // what tools were told, say
  await conversation.loadOlder();
  assert.deepEqual(contents(conversation.getSnapshot()), ["second", "thanks"]);
  await conversation.loadOlder();
  assert.deepEqual(contents(conversation.getSnapshot()), ["question", "second", "thanks"]);
  assert.equal(service.of("page").length, 5);
});

test("the first load goes on until there is something to show", async () => {
  for (const text of ["question", "older"]) service.say(text);
  service.next("page", json({ messages: [], before: 9, cursor: `${ID}.2` }));
  const held = service.hold("page");
  const { conversation, seen } = open({ limit: 1 });
  await held.arrived;
  assert.deepEqual(seen.map(({ status }) => status), ["loading"]);
  held.release(refuse(503, "unavailable", "Busy."));
  const found = await shownTexts(conversation, "older");
  assert.equal(found.hasOlder, true);
  await shown(conversation, ({ status }) => status === "open");
  assert.deepEqual(service.of("page").map(({ query }) => query), [
    { limit: "1" },
    { limit: "1", before: "9" },
    { limit: "1", before: "9" },
  ]);
  service.say("live");
  await shownTexts(conversation, "older", "live");
});

test("older messages that cannot be loaded can be asked for again", async () => {
  for (const text of ["0", "1"]) service.say(text);
  const { conversation } = await follow({ limit: 1, patience: 0 });
  service.next("page", refuse(403, "forbidden", "No."), drop);
  await assert.rejects(conversation.loadOlder(), (error) => error.status === 403);
  await assert.rejects(conversation.loadOlder());
  assert.equal(conversation.getSnapshot().status, "open");
  await conversation.loadOlder();
  assert.deepEqual(contents(conversation.getSnapshot()), ["0", "1"]);
});

test("what is heard of older messages while they are loaded is not lost", async () => {
  const [streaming, quiet] = [service.begin(), service.say("quiet")];
  service.append(streaming, "a");
  service.say("newest");
  const { conversation } = await follow({ limit: 1 });
  const held = service.hold("page");
  const loading = conversation.loadOlder();
  await held.arrived;
  const read = structuredClone([streaming, quiet]);
  service.append(streaming, "b");
  await barrier(conversation);
  const again = service.hold("message");
  held.release(json({ messages: read, before: null }));
  await loading;
  assert.deepEqual(contents(conversation.getSnapshot()).slice(0, 2), ["a", "quiet"]);
  await again.arrived;
  const loaded = structuredClone(streaming);
  service.append(streaming, "c"); // comes before what was loaded, and is not in it
  await barrier(conversation, "another");
  again.release(json(loaded));
  await shown(conversation, (snapshot) => contents(snapshot)[0] === "abc");
  service.append(streaming, "d");
  service.end(streaming);
  await shown(conversation, (snapshot) => statuses(snapshot)[0] === "completed");
  assert.equal(contents(conversation.getSnapshot())[0], "abcd");
  assert.deepEqual(service.of("message").map(({ path }) => path.split("/")[4]), [streaming.id]);
});

// Messages that are loaded again

test("a message that was saved is loaded again", async () => {
  const message = service.say("one");
  const other = service.say("two");
  const { conversation } = await follow();
  const before = conversation.getSnapshot();
  service.update(message, { rating: 1 });
  await shown(conversation, ({ messages }) => messages[0].metadata.rating === 1);
  assert.equal(conversation.getSnapshot().messages[1], before.messages[1]);

  const held = service.hold("message");
  service.update(message, { rating: 2 });
  await held.arrived;
  const read = structuredClone(message);
  service.update(message, { rating: 3 });
  service.update(other, { rating: 4 });
  await shown(conversation, ({ messages }) => messages[1].metadata.rating === 4);
  held.release(json(read));
  await shown(conversation, ({ messages }) => messages[0].metadata.rating === 3);
  assert.equal(service.of("message").length, 4);
});

test("a message that was saved while it streams keeps its text", async () => {
  const { conversation } = await follow();
  const message = service.begin();
  service.append(message, "a");
  await shownTexts(conversation, "a");
  service.next("message", json({ ...message, content: "", chunk_count: 0, metadata: { n: 1 } }));
  service.update(message, { n: 1 });
  const saved = await shown(conversation, (snapshot) => last(snapshot).metadata.n === 1);
  assert.deepEqual([last(saved).content, last(saved).chunk_count], ["a", 1]);
  service.append(message, "b");
  await shownTexts(conversation, "ab");
  // And one that has ended does not stream again.
  service.end(message);
  const { messages } = await shown(conversation, ({ typing }) => !typing);
  const held = service.hold("message");
  service.update(message, { n: 1 });
  await held.arrived;
  held.release(json({ ...message, status: "streaming", completed_at: null }));
  await held.gone;
  await barrier(conversation);
  assert.equal(conversation.getSnapshot().messages[0], messages[0]);
});

test("chunks that are missing are loaded, and none that comes meanwhile is lost", async () => {
  const { conversation, seen } = await follow();
  const message = service.begin();
  service.append(message, "a");
  await shownTexts(conversation, "a");
  const held = service.hold("message");
  const [, behind] = service.silently(() => service.append(message, "b", "c"));
  service.tell(behind);
  await held.arrived;
  const read = structuredClone(message);
  service.append(message, "d");
  service.append(message, "e");
  await barrier(conversation);
  held.release(json(read));
  await shown(conversation, (snapshot) => contents(snapshot)[0] === "abcde");
  service.append(message, "f");
  await shown(conversation, (snapshot) => contents(snapshot)[0] === "abcdef");
  const texts = new Set(seen.map((snapshot) => contents(snapshot)[0]));
  assert.ok([...texts].every((text) => text === undefined || "abcdef".startsWith(text)));
});

test("a secondary that is behind answers: it is asked again", async () => {
  const { conversation } = await follow();
  const message = service.begin();
  await shown(conversation, ({ messages }) => messages.length === 1);
  service.next("message", json(structuredClone(message)), drop);
  const [, behind] = service.silently(() => service.append(message, "a", "b"));
  service.tell(behind);
  await shownTexts(conversation, "ab");
  assert.equal(service.of("message").length, 3);
});

for (const [name, changes] of [
  ["ended too", {}],
  ["not ended yet", { status: "streaming", completed_at: null, metadata: {} }],
]) {
  test(`the end comes before chunks, and what is loaded has ${name}`, async () => {
    const { conversation, seen } = await follow();
    const message = service.begin();
    service.silently(() => service.append(message, "a", "b"));
    const held = service.hold("message");
    service.end(message, "cancelled", { stop_reason: "enough", metadata: { n: 1 } });
    await held.arrived;
    assert.deepEqual(statuses(conversation.getSnapshot()), ["streaming"]);
    held.release(json({ ...message, ...changes }));
    const snapshot = await shownTexts(conversation, "ab");
    assert.deepEqual(last(snapshot), shownAs(message));
    assert.ok(seen.every((each) => statuses(each)[0] !== "cancelled" || each === snapshot));
    await barrier(conversation);
    assert.equal(service.of("message").length, 1);
  });
}

test("parts grow as text does, over missing chunks, a reload and a redaction", async () => {
  const { conversation, seen } = await follow();
  const message = service.begin();
  const start = (kind, fields) => ({ event: "start", fields: { kind, ...fields } });
  service.append(message, "a", start("tool_call", { name: "f", input: 1 }), { part: 1, delta: "1" });
  const { messages } = await shown(conversation, (snapshot) => last(snapshot)?.parts[1]?.text === "1");
  const held = service.hold("message");
  const [, behind] = service.silently(() => service.append(message, start("step"), "b"));
  service.tell(behind);
  await held.arrived;
  const read = service.wire(message);
  service.append(message, { part: 1, event: "set", fields: { output: 2 } });
  await barrier(conversation);
  held.release(json(read));
  await shown(conversation, (snapshot) => snapshot.messages[0].content === "ab");
  const { parts } = conversation.getSnapshot().messages[0];
  assert.deepEqual(parts.map(({ kind }) => kind), ["text", "tool_call", "step", "text"]);
  assert.equal(parts[1].fields.output, 2);
  assert.equal(parts[0], messages[0].parts[0]);
  service.end(message);
  await shown(conversation, ({ typing }) => !typing);
  assert.equal(conversation.getSnapshot().messages[0].parts, parts);

  const gone = { part: 1, kind: "tool_call", fields: {}, text: "", closed: true, redacted: true };
  service.next("message", json({ ...service.wire(message), parts: [parts[0], gone, ...parts.slice(2)] }));
  service.update(message, {});
  const after = await shown(conversation, (snapshot) => snapshot.messages[0].parts[1].redacted);
  assert.deepEqual(after.messages[0].parts.map((each, at) => each === parts[at]), [true, false, true, true]);
  // A page that is opened now has the same.
  const other = (await follow()).conversation.getSnapshot();
  assert.deepEqual(other.messages[0].parts.map(({ kind }) => kind), parts.map(({ kind }) => kind));
  assert.ok(seen.every((snapshot) => snapshot.messages.every((each) => Array.isArray(each.parts))));
});

test("metadata that was saved after the end is not undone by the end", async () => {
  const { conversation } = await follow();
  const message = service.begin();
  const held = service.hold("message");
  service.silently(() => service.append(message, "a"));
  service.end(message, "completed", { metadata: { n: 1 } });
  await held.arrived;
  held.release(json({ ...message, metadata: { n: 2 } }));
  const snapshot = await shown(conversation, ({ messages }) => messages[0]?.content === "a");
  assert.deepEqual(last(snapshot).metadata, { n: 2 });
});

test("a message that was deleted disappears", async () => {
  service.say("question");
  const first = service.say("first", { role: "assistant" });
  const second = service.say("second", { role: "assistant", replaces: first.id });
  const { conversation } = await follow();
  await shownTexts(conversation, "question", "second");
  service.stored.delete(second.id);
  service.update(second, {});
  await shownTexts(conversation, "question", "first");
  assert.equal(conversation.getSnapshot().status, "open");
  service.tell(chunk(second, 0, { content: "late" }), ended(second));
  await barrier(conversation);
  assert.deepEqual(contents(conversation.getSnapshot()), ["question", "first", "barrier"]);
});

test("a message that may not be loaded stays as it is", async () => {
  const message = service.say("one");
  const { conversation } = await follow();
  const held = service.hold("message");
  service.update(message, { n: 1 });
  await held.arrived;
  held.release(refuse(403));
  await held.gone;
  await barrier(conversation);
  assert.deepEqual(last({ messages: conversation.getSnapshot().messages.slice(0, 1) }).metadata, {});
  service.update(message, { n: 2 });
  await shown(conversation, ({ messages }) => messages[0].metadata.n === 2);
});

// Connections

test("a lost connection is told, and nothing is missed over it", async () => {
  const { conversation, seen } = await follow();
  const message = service.begin();
  service.append(message, "a");
  await shownTexts(conversation, "a");
  const told = seen.length;
  service.next("events", refuse(502));
  service.breakStreams();
  service.append(message, "b");
  const lost = await shown(conversation, ({ status }) => status === "reconnecting");
  assert.ok(lost.error instanceof Error);
  const back = await shown(conversation, ({ status }) => status === "open");
  assert.equal(back.error, null);
  await shownTexts(conversation, "ab");
  const names = seen.slice(told).map(({ status }) => status);
  assert.deepEqual([...new Set(names)], ["reconnecting", "open"]);
  assert.deepEqual(service.of("events").map(({ query }) => query.after.split(".")[1]), ["0", "2", "2"]);
});

test("a stream that ended in order is no error, and is connected again", async () => {
  const { conversation, seen } = await follow();
  service.endStreams();
  await service.requested("events", 2);
  await shown(conversation, ({ status }) => status === "open");
  const { error } = seen.find(({ status }) => status === "reconnecting");
  assert.equal(error, null);
  await barrier(conversation);
});

test("a conversation that is not there any more is an error, and is left alone", async () => {
  service.say("one");
  const { conversation } = await follow();
  service.next("events", refuse(404, "not_found", "Not found."));
  service.breakStreams();
  const snapshot = await shown(conversation, ({ status }) => status === "error");
  assert.ok(snapshot.error instanceof ConverseError);
  assert.deepEqual([snapshot.error.status, snapshot.error.code], [404, "not_found"]);
  assert.deepEqual(contents(snapshot), ["one"]);
  await barrier((await follow()).conversation);
  assert.equal(service.of("events").length, 3); // two, and that of the other
  assert.equal(conversation.getSnapshot(), snapshot);
});

test("a conversation that is not there is an error", async () => {
  service.next("page", refuse(404, "not_found"));
  const { conversation, seen } = open();
  const snapshot = await shown(conversation, ({ status }) => status === "error");
  assert.ok(snapshot.error instanceof ConverseError);
  assert.deepEqual(seen.map(({ status }) => status), ["loading", "error"]);
  assert.equal(service.of("events").length, 0);
});

test("what goes wrong while it loads is told, and tried again", async () => {
  service.say("one");
  service.next("page", drop, refuse(503, "unavailable", "Later."));
  const { conversation, seen } = open();
  await shownTexts(conversation, "one");
  const loading = seen.filter(({ status }) => status === "loading");
  assert.deepEqual(loading.map(({ error }) => error === null), [true, false, false]);
  assert.equal(loading[2].error.message, "Later.");
  assert.deepEqual([seen.at(-1).status, seen.at(-1).error], ["open", null]);
});

test("headers go with each request, and the url may end with a slash", async () => {
  let number = 0;
  const headers = async () => ({ authorization: `token ${(number += 1)}` });
  const { conversation } = await follow({ headers, url: `${service.url}/` });
  await conversation.send("one");
  const given = service.requests.map((request) => request.headers.authorization);
  assert.deepEqual(given, ["token 1", "token 2", "token 3"]);
});

// Closing

test("closed, it asks for nothing and tells nothing any more", async () => {
  const message = service.begin();
  const { conversation, seen } = await follow();
  const snapshot = conversation.getSnapshot();
  const held = service.hold("message");
  service.update(message, { n: 1 });
  await held.arrived;
  service.append(message, "a");
  conversation.close();
  conversation.close();
  const told = seen.length;
  await Promise.all([held.gone, service.until(() => service.streams.size === 0)]);
  const asked = service.requests.length;
  const closed = /The conversation was closed/;
  await assert.rejects(conversation.send("one"), closed);
  await assert.rejects(conversation.resend("one"), closed);
  await assert.rejects(conversation.stop(), closed);
  await assert.rejects(conversation.retry(message.id), closed);
  await conversation.loadOlder(); // there is none
  await barrier((await follow()).conversation);
  assert.equal(service.requests.length, asked + 2); // those of the other
  assert.equal(seen.length, told);
  assert.equal(conversation.getSnapshot().messages.length, snapshot.messages.length);
});

test("closed while it loads, it gives up", async () => {
  const held = service.hold("page");
  const { conversation, seen } = open();
  await held.arrived;
  conversation.close();
  await held.gone;
  await barrier((await follow()).conversation);
  assert.deepEqual(seen.map(({ status }) => status), ["loading"]);
  assert.equal(service.of("events").length, 1); // that of the other
});

test("closed while older messages are loaded, it gives up", async () => {
  service.say("one");
  service.say("two");
  const { conversation } = await follow({ limit: 1 });
  const held = service.hold("page");
  const loading = conversation.loadOlder();
  await held.arrived;
  conversation.close();
  await assert.rejects(loading, /The conversation was closed/);
  await held.gone;
});

test("what is being sent when it is closed still arrives, and what waits behind does not", async () => {
  const { conversation } = await follow();
  const held = service.hold("send");
  const sending = [conversation.send("one"), conversation.send("two")];
  await held.arrived;
  conversation.close();
  const snapshot = conversation.getSnapshot();
  await service.until(() => service.streams.size === 0);
  held.release();
  const [one, two] = await Promise.all(sending);
  assert.deepEqual([one.status, two.status], ["completed", "unsent"]);
  assert.equal(conversation.getSnapshot(), snapshot);
  assert.equal(service.of("send").length, 1);
});

const SCRIPT = `
import { openConversation } from "converse-mongo";

const [url, conversationId] = process.argv.slice(1);
const conversation = openConversation({ url, conversationId, limit: 1 });
const shown = (condition) => new Promise((resolve) => {
  const look = () => condition(conversation.getSnapshot()) && resolve();
  conversation.subscribe(look);
  look();
});
await shown(({ messages }) => messages.length === 2);
const sending = conversation.send("never");
const loading = conversation.loadOlder().catch(() => {});
await shown(({ status }) => status === "reconnecting");
conversation.close();
console.log((await sending).status, await loading);
`;

test("closed, it keeps no process running", { timeout: 10_000 }, async () => {
  service.say("one");
  service.say("two");
  const busy = refuse(503, "unavailable", "Later.", { "retry-after": "60" });
  child = spawn(process.execPath, ["--input-type=module", "--eval", SCRIPT, service.url, ID], {
    cwd: import.meta.dirname,
    stdio: ["ignore", "pipe", "inherit"],
  });
  const exit = once(child, "exit");
  let printed = "";
  child.stdout.on("data", (text) => {
    printed += text;
  });
  await service.until(() => service.streams.size > 0);
  service.next("send", busy);
  service.next("page", busy);
  service.next("events", busy);
  service.say("three");
  await Promise.all([service.requested("send"), service.requested("page", 2)]);
  service.breakStreams();
  assert.deepEqual(await exit, [0, null]);
  assert.equal(printed, "unsent undefined\n");
});
