// The transport for the AI SDK: what it asks for. tests/web/ai_sdk tests it with the SDK.

import assert from "node:assert/strict";
import { afterEach, beforeEach, test } from "node:test";

import { ConverseTransport } from "converse-mongo/ai-sdk";
import { ID, json, listen, refuse, stopServers } from "./service.js";

const RUN = `run_${ID}_6b0584864f3cb2a7c6ce8400`;

let requests;
let answers;
let transport;

beforeEach(async () => {
  requests = [];
  answers = [];
  const origin = await listen(async (request, response) => {
    let body = "";
    for await (const piece of request) body += piece;
    const { method, url, headers } = request;
    requests.push({ asked: `${method} ${url}`, headers, body: body && JSON.parse(body) });
    await answers.shift()(response);
  });
  transport = new ConverseTransport({
    api: `${origin}/api/chat`,
    headers: { authorization: "ada" },
    retry: 8,
  });
});

afterEach(stopServers);

const asked = () => requests.map((each) => each.asked);

/** A stream of parts, with or without an end of its connection. */
function stream(parts, run = RUN) {
  return (response) => {
    response.writeHead(200, { "content-type": "text/event-stream", "x-workflow-run-id": run });
    response.end(["retry: 8", ...parts.map((part) => `data: ${JSON.stringify(part)}`), ""].join("\n\n"));
  };
}

/** Holds the next request: it has come once `held` is resolved, and is answered by `release`. */
function hold() {
  let release;
  const held = new Promise((resolve) => {
    answers.push(async (response) => {
      resolve();
      await new Promise((go) => (release = go));
      stream([])(response);
    });
  });
  return { held, release: () => release() };
}

async function read(parts) {
  const found = [];
  for await (const part of parts) found.push(part.type);
  return found;
}

const question = { id: "q1", role: "user", parts: [{ type: "text", text: "Hi" }] };
const sending = { chatId: ID, trigger: "submit-message", messageId: undefined };

test("ids of chats never leave the path", async () => {
  const lost = { status: 404, message: "There is no such conversation." };
  for (const id of ["", ".", ".."]) {
    await assert.rejects(transport.load(id), lost);
    await assert.rejects(transport.reconnectToStream({ chatId: id }), lost);
    await assert.rejects(transport.stop(id), lost);
  }
  assert.deepEqual(requests, []);
  answers.push(refuse(404, "not_found", "Not found."));
  await assert.rejects(transport.load("a/../../b?c#d"), { message: "Not found." });
  assert.deepEqual(asked(), ["GET /api/chat/a%2F..%2F..%2Fb%3Fc%23d"]);
});

test("pages are loaded one before the other, and what the newest lacks is resumed", async () => {
  answers.push(json([1], 200, { "x-converse-before": "7", "x-converse-resume": "9" }));
  answers.push(json([0], 200, {}));
  assert.deepEqual(await transport.load(ID, { limit: 1 }), { messages: [1], before: 7 });
  assert.deepEqual(await transport.load(ID, { before: 7 }), { messages: [0], before: null });
  answers.push((response) => response.writeHead(204).end());
  assert.equal(await transport.reconnectToStream({ chatId: ID }), null);
  answers.push(stream([]), stream([{ type: "start" }, { type: "finish" }]));
  const resumed = await transport.reconnectToStream({ chatId: ID, headers: { "x-more": "yes" } });
  assert.deepEqual(await read(resumed), ["start", "finish"]);
  assert.equal(await transport.reconnectToStream({ chatId: ID }), null); // it has all
  assert.deepEqual(asked(), [
    `GET /api/chat/${ID}?limit=1`,
    `GET /api/chat/${ID}?before=7`,
    `GET /api/chat/${ID}/stream?resume=9`,
    `GET /api/chat/${ID}/stream?resume=9`,
    `GET /api/chat/${RUN}/stream?startIndex=0`,
  ]);
  assert.equal(requests[4].headers["x-more"], "yes");
  assert.ok(requests.every(({ headers }) => headers.authorization === "ada"));
});

test("the last message is sent alone, and a broken stream goes on behind what came", async () => {
  answers.push(stream([]), stream([{ type: "start" }]), stream([]), stream([{ type: "finish" }]));
  const parts = await transport.sendMessages({
    ...sending,
    messages: [{ id: "older" }, question],
    body: { id: "another", more: 1 },
  });
  assert.deepEqual(await read(parts), ["start", "finish"]);
  assert.deepEqual(requests[0].body, {
    more: 1,
    id: ID,
    messages: [question],
    trigger: "submit-message",
  });
  assert.deepEqual(asked(), [
    "POST /api/chat",
    ...[0, 1, 1].map((index) => `GET /api/chat/${RUN}/stream?startIndex=${index}`),
  ]);
});

test("a stop names the question, and the answer once it has an id", async () => {
  const { held, release } = hold();
  const leaving = new AbortController();
  const abortSignal = leaving.signal;
  const sent = transport.sendMessages({ ...sending, messages: [question], abortSignal });
  await held;
  answers.push(json({ stopped: [] }));
  await transport.stop(ID, "enough");
  leaving.abort(new Error("left"));
  await assert.rejects(sent, { message: "left" });
  const stopped = new Promise((resolve) => {
    answers.push((response) => {
      json({ stopped: [] })(response);
      resolve();
    });
  });
  release();
  await stopped;
  assert.deepEqual(asked(), ["POST /api/chat", ...Array(2).fill(`POST /api/chat/${ID}/stop`)]);
  assert.deepEqual(requests[1].body, { messageId: "q1", reason: "enough" });
  assert.deepEqual(requests[2].body, { messageId: RUN.split("_")[2] });
});

test("a page that is loaded meanwhile does not make it forget the question", async () => {
  const { held, release } = hold();
  const sent = transport.sendMessages({ ...sending, messages: [question] });
  await held;
  answers.push(json([], 200, { "x-converse-resume": "0" }), json({ stopped: [] }));
  await transport.load(ID);
  await transport.stop(ID);
  assert.deepEqual(requests[2].body, { messageId: "q1" });
  answers.push(json({ stopped: [] }), stream([{ type: "finish" }]));
  release();
  await read(await sent);
  assert.deepEqual(requests[3].body, { messageId: RUN.split("_")[2] });
});

test("errors are sentences for users", async () => {
  answers.push(refuse(409, "conflict", "An answer is being written."));
  const sent = transport.sendMessages({ ...sending, messages: [question] });
  await assert.rejects(sent, { message: "An answer is being written.", status: 409 });
  assert.equal(await transport.reconnectToStream({ chatId: ID }), null);
});
