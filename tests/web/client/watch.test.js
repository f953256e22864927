// Watching: from the last event on, over whatever happens to connections.

import assert from "node:assert/strict";
import { createServer } from "node:http";
import { afterEach, test } from "node:test";

import {
  ConverseError,
  watchConversation,
  watchMessage,
} from "../../../converse_mongo/web/client/index.js";

const ID = "6b0584864f3cb2a7c6ce844a";
const servers = new Set();

afterEach(async () => {
  for (const server of servers) {
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
  }
  servers.clear();
});

/** Starts a server that answers the requests one by one with `answers`; the last one again. */
async function serve(...answers) {
  const requests = [];
  const server = createServer((request, response) => {
    const answer = answers[Math.min(requests.length, answers.length - 1)];
    requests.push(request);
    answer(response, request);
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  servers.add(server);
  return { url: `http://127.0.0.1:${server.address().port}/api`, requests };
}

const HEAD = { "content-type": "text/event-stream; charset=utf-8" };
const FIRST = "retry: 4\n\n";

function sent(id, type = "chunk.received") {
  return `id: ${id}\nevent: ${type}\ndata: ${JSON.stringify({ type, text: `é ${id}` })}\n\n`;
}

/** Answers with events, and then ends the stream, breaks it off, or leaves it open. */
function stream(ids, then = "end", more = "") {
  return (response) => {
    response.writeHead(200, HEAD);
    response.write(FIRST + ids.map((id) => sent(id)).join("") + more, () => {
      if (then === "end") response.end();
      else if (then === "break") response.destroy();
    });
  };
}

function refuse(status, body, headers = {}) {
  return (response) => {
    response.writeHead(status, { "content-type": "application/json", ...headers });
    response.end(JSON.stringify(body));
  };
}

/** Watches until `count` events have come; then closes. */
function collect(url, count, options = {}) {
  const events = [];
  const states = [];
  let enough;
  const complete = new Promise((resolve) => {
    enough = resolve;
  });
  const watch = watchConversation({
    url,
    conversationId: ID,
    onEvent: (event) => {
      events.push(event);
      if (events.length === count) enough();
    },
    onState: (state, error) => states.push([state, error]),
    ...options,
  });
  return { watch, events, states, complete };
}

const ids = (events) => events.map((event) => event.id);
const after = (request) => new URL(request.url, "http://x").searchParams.get("after");

test("events come once and in order, from the last one on", async () => {
  const { url, requests } = await serve(
    stream(["a", "b"], "end"),
    stream(["c"], "break"),
    stream(["d"], "stay"),
  );
  const { watch, events, states, complete } = collect(url, 4);
  await complete;
  watch.close();
  assert.equal(await watch.closed, null);
  assert.deepEqual(ids(events), ["a", "b", "c", "d"]);
  assert.equal(events[0].text, "é a");
  assert.equal(watch.cursor(), "d");
  assert.deepEqual(requests.map(after), [null, "b", "c"]);
  assert.equal(requests[0].url, `/api/conversations/${ID}/events`);
  assert.equal(states[0][0], "connecting");
  assert.deepEqual(states.at(-1), ["closed", null]);
  assert.ok(states.some(([state]) => state === "waiting"));
});

test("a deploy: errors of a proxy, a page that is no stream, and then the service", async () => {
  const page = (response) => {
    response.writeHead(200, { "content-type": "text/html" });
    response.end("<html>Log in</html>");
  };
  const { url, requests } = await serve(
    stream(["a"]),
    refuse(502, "bad gateway"),
    refuse(503, { error: { code: "unavailable", message: "Later." } }),
    page,
    (response) => response.destroy(),
    stream(["b"], "stay"),
  );
  const { watch, events, complete } = collect(url, 2, { after: "z" });
  await complete;
  watch.close();
  assert.deepEqual(ids(events), ["a", "b"]);
  assert.deepEqual(requests.map(after), ["z", "a", "a", "a", "a", "a"]);
});

test("Retry-After is waited for", async () => {
  const { url } = await serve(
    refuse(503, { error: { code: "unavailable", message: "Later." } }, { "retry-after": "0.2" }),
    stream(["a"], "stay"),
  );
  const begun = performance.now();
  const { watch, states, complete } = collect(url, 1);
  await complete;
  watch.close();
  assert.ok(performance.now() - begun >= 199);
  const [, error] = states.find(([state]) => state === "waiting");
  assert.equal(error.code, "unavailable");
});

test("what is not there is not asked for again", async () => {
  const { url, requests } = await serve(
    refuse(404, { error: { code: "not_found", message: "There is no such thing." } }),
  );
  const { watch, states } = collect(url, 1);
  const error = await watch.closed;
  assert.ok(error instanceof ConverseError);
  assert.deepEqual([error.status, error.code], [404, "not_found"]);
  assert.equal(error.message, "There is no such thing.");
  assert.deepEqual(states.at(-1), ["closed", error]);
  assert.equal(requests.length, 1);
});

test("nothing to resume is the end", async () => {
  const { url, requests } = await serve((response) => response.writeHead(204).end());
  assert.equal(await collect(url, 1).watch.closed, null);
  assert.equal(requests.length, 1);
});

test("a message is watched to its end", async () => {
  const { url, requests } = await serve(
    stream(["m.0"], "stay", sent("m.end", "message.completed") + sent("beyond")),
  );
  const events = [];
  const watch = watchMessage({
    url,
    conversationId: ID,
    messageId: "m",
    onEvent: (event) => events.push(event),
  });
  assert.equal(await watch.closed, null);
  assert.deepEqual(ids(events), ["m.0", "m.end"]);
  assert.equal(requests[0].url, `/api/conversations/${ID}/messages/m/events`);
});

test("a connection without a sign of life is taken for dead", async () => {
  const { url, requests } = await serve((response, request) =>
    stream([after(request) === "a" ? "b" : "a"], "stay")(response),
  );
  const { watch, events, complete } = collect(url, 2, { silence: 60 });
  await complete;
  watch.close();
  assert.deepEqual(ids(events), ["a", "b"]);
  assert.equal(after(requests.at(-1)), "a");
});

test("the network is back: it does not wait any longer", async () => {
  const { url } = await serve(
    refuse(503, {}, { "retry-after": "60" }),
    stream(["a"], "stay"),
  );
  globalThis.addEventListener ??= () => {};
  const bus = new EventTarget();
  const saved = [globalThis.addEventListener, globalThis.removeEventListener];
  globalThis.addEventListener = bus.addEventListener.bind(bus);
  globalThis.removeEventListener = bus.removeEventListener.bind(bus);
  try {
    const { watch, complete } = collect(url, 1, {
      onState: (state) => {
        if (state === "waiting") setImmediate(() => bus.dispatchEvent(new Event("online")));
      },
    });
    await complete;
    watch.close();
    await watch.closed;
  } finally {
    [globalThis.addEventListener, globalThis.removeEventListener] = saved;
  }
});

test("a listener that throws closes the watch with its error", async () => {
  const { url, requests } = await serve(stream(["a", "b"], "stay"));
  const trouble = new RangeError("mine");
  const { watch } = collect(url, 1, {
    onEvent: () => {
      throw trouble;
    },
  });
  assert.equal(await watch.closed, trouble);
  assert.equal(watch.cursor(), null);
  assert.equal(requests.length, 1);
});

test("closed from its own listener, it hears no more", async () => {
  const { url } = await serve(stream(["a", "b", "c"], "stay"));
  const events = [];
  const watch = watchConversation({
    url,
    conversationId: ID,
    onEvent: (event) => {
      events.push(event);
      watch.close();
    },
  });
  assert.equal(await watch.closed, null);
  assert.deepEqual(ids(events), ["a"]);
});

test("a signal closes it, while it waits too", async () => {
  const { url } = await serve(refuse(503, {}, { "retry-after": "60" }));
  const stopping = new AbortController();
  const { watch } = collect(url, 1, {
    signal: stopping.signal,
    onState: (state) => {
      if (state === "waiting") stopping.abort();
    },
  });
  assert.equal(await watch.closed, null);
  const aborted = collect(url, 1, { signal: stopping.signal });
  assert.equal(await aborted.watch.closed, null);
});

test("headers are sent with each request", async () => {
  const { url, requests } = await serve(stream(["a"]), stream(["b"], "stay"));
  let count = 0;
  const { watch, complete } = collect(url, 2, {
    headers: () => ({ authorization: `token ${(count += 1)}` }),
  });
  await complete;
  watch.close();
  const given = requests.map((request) => request.headers.authorization);
  assert.deepEqual(given, ["token 1", "token 2"]);
  assert.equal(requests[0].headers.accept, "text/event-stream");
});

test("text is cut in the middle of a character", async () => {
  const bytes = new TextEncoder().encode(FIRST + sent("a"));
  const { url } = await serve((response) => {
    response.writeHead(200, HEAD);
    let index = 0;
    const next = () => {
      if (index < bytes.length) response.write(bytes.slice(index, (index += 1)), next);
    };
    next();
  });
  const { watch, events, complete } = collect(url, 1);
  await complete;
  watch.close();
  assert.equal(events[0].text, "é a");
});
