// Watching: from the last event on, over whatever happens to connections.

import assert from "node:assert/strict";
import { afterEach, mock, test } from "node:test";

import * as client from "converse-mongo";
import { FIRST, HEAD, ID, Service, drop, frame, json, listen, stopServers } from "./service.js";

const { ConverseError } = client;
const watches = new Set();

/** The function of the client, whose watches do not outlive the test. */
function kept(start) {
  return (options) => {
    const watch = start(options);
    watches.add(watch);
    return watch;
  };
}

const watchConversation = kept(client.watchConversation);
const watchMessage = kept(client.watchMessage);
const watchOwner = kept(client.watchOwner);

afterEach(async () => {
  for (const watch of watches) watch.close();
  watches.clear();
  await stopServers();
});

/** Starts a server that answers the requests one by one with `answers`; the last one again. */
async function serve(...answers) {
  const requests = [];
  const origin = await listen((request, response) => {
    const answer = answers[Math.min(requests.length, answers.length - 1)];
    requests.push(request);
    answer(response, request);
  });
  return { url: `${origin}/api`, requests };
}

function sent(id, type = "chunk.received") {
  return frame({ type, text: `é ${id}` }, id);
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

function refuse(status, body, headers) {
  return json(body, status, headers);
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
    drop,
    stream(["b"], "stay"),
  );
  const { watch, events, complete } = collect(url, 2, { after: "z" });
  await complete;
  watch.close();
  assert.deepEqual(ids(events), ["a", "b"]);
  assert.deepEqual(requests.map(after), ["z", "a", "a", "a", "a", "a"]);
});

for (const [status, code] of [
  [429, "too_many_requests"],
  [503, "unavailable"],
]) {
  test(`Retry-After of a ${status} is waited for`, async () => {
    const { url } = await serve(
      refuse(status, { error: { code, message: "Later." } }, { "retry-after": "0.2" }),
      stream(["a"], "stay"),
    );
    const begun = performance.now();
    const { watch, states, complete } = collect(url, 1);
    await complete;
    watch.close();
    assert.ok(performance.now() - begun >= 199);
    const [, error] = states.find(([state]) => state === "waiting");
    assert.equal(error.code, code);
  });
}

test("what is not there is not asked for again", async () => {
  const { url, requests } = await serve(
    refuse(404, { error: { code: "not_found", message: "Not found." } }),
  );
  const { watch, states } = collect(url, 1);
  const error = await watch.closed;
  assert.ok(error instanceof ConverseError);
  assert.deepEqual([error.status, error.code], [404, "not_found"]);
  assert.equal(error.message, "Not found.");
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

test("a connection without a heartbeat is presumed dead", async () => {
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

test("closed while it connects, it closes that connection", async () => {
  const { url, requests } = await serve(stream(["a"]), stream(["b"], "stay"));
  for (const count of [0, 1]) {
    const states = [];
    const { watch } = collect(url, 2, {
      onState: (state) => {
        states.push(state);
        if (state === "connecting" && requests.length === count) watch.close();
      },
    });
    assert.equal(await watch.closed, null);
    const before = count === 0 ? [] : ["connecting", "open", "waiting"];
    assert.deepEqual(states, [...before, "connecting", "closed"]);
  }
});

/** Has waiting take no time; gives how long it was to take, at most. */
function recordWaits() {
  const waits = [];
  const set = globalThis.setTimeout;
  mock.method(Math, "random", () => 1);
  mock.method(globalThis, "setTimeout", (task, time) => {
    if (time >= 1_000) return set(task, time); // of others, or what watches for silence
    waits.push(time);
    return set(task, 0);
  });
  return waits;
}

test("it waits longer and longer, and begins anew once all is well", async () => {
  const { url } = await serve(
    ...[refuse(502), refuse(502), refuse(502), stream(["a"]), refuse(502), stream(["b"], "stay")],
  );
  const waits = recordWaits();
  try {
    const { watch, complete } = collect(url, 2, { retry: 800 });
    await complete;
    watch.close();
    await watch.closed;
  } finally {
    mock.restoreAll();
  }
  // By then the server has said how long to wait.
  assert.deepEqual(waits, [200, 400, 800, 2, 4]);
});

test("each heartbeat tells that the connection lives", async () => {
  let write;
  const { url } = await serve((response) => {
    stream(["a"], "stay")(response);
    write = (text) => response.write(text);
  });
  const timers = mock.method(globalThis, "setTimeout");
  try {
    const { watch, complete } = collect(url, 2, {
      silence: 12_345,
      onState: (state) => state === "open" && write(`: ping\n\n${sent("b")}`),
    });
    await complete;
    watch.close();
  } finally {
    mock.restoreAll();
  }
  const watchdogs = timers.mock.calls.filter(({ arguments: [, time] }) => time === 12_345);
  assert.ok(watchdogs.length >= 2, `${watchdogs.length}`); // one is the first
});

test("a connection on which little is said is well after a while", async () => {
  let later = 0;
  let end;
  const quiet = (response) => {
    stream([], "stay")(response);
    end = () => response.end();
  };
  const { url } = await serve(refuse(502), refuse(502), quiet, stream(["a"], "stay"));
  const waits = recordWaits();
  const { now } = performance;
  mock.method(performance, "now", () => now.call(performance) + later);
  try {
    const { watch, complete } = collect(url, 1, {
      retry: 8,
      silence: 1_000_000,
      onState: (state) => {
        if (state !== "open") return;
        setImmediate(() => {
          later += 31_000;
          end();
        });
      },
    });
    await complete;
    watch.close();
  } finally {
    mock.restoreAll();
  }
  assert.deepEqual(waits, [2, 4, 2]);
});

// All conversations

/** Watches all conversations of a service; keeps what is called, in order. */
function watchAll(service, options = {}) {
  const calls = [];
  const watch = watchOwner({
    url: service.url,
    retry: 8,
    onOpened: ({ waiting }) => calls.push("opened", ...waiting),
    onEvent: (event) => calls.push(event),
    onState: (state) => calls.push(state),
    ...options,
  });
  return { watch, calls };
}

test("all conversations are watched, and each connection begins with onOpened", async () => {
  const service = await Service.start();
  let told;
  const { watch, calls } = watchAll(service, {
    onEvent: (event) => {
      calls.push(event);
      told();
    },
  });
  const heard = () => new Promise((resolve) => {
    told = resolve;
  });
  await service.until(() => service.streams.size === 1);
  const [made, renamed] = ["created", "updated"].map((name) => ({
    ...{ type: `conversation.${name}`, conversation_id: ID, title: name },
  }));
  let next = heard();
  service.tellOwner(made);
  await next;
  const waits = { type: "message.suspended", conversation_id: ID, message_id: "b1", pending: [] };
  service.waiting = [waits];
  service.breakStreams();
  await service.requested("owner events", 2);
  await service.until(() => service.streams.size === 1);
  next = heard();
  service.tellOwner(renamed);
  await next;
  watch.close();
  assert.equal(await watch.closed, null);
  await service.until(() => service.streams.size === 0);
  assert.deepEqual(calls, [
    ...["connecting", "open", "opened", made],
    ...["waiting", "connecting", "open", "opened", waits, renamed, "closed"],
  ]);
  // There is no cursor to go on from.
  assert.equal("cursor" in watch, false);
  const queries = service.of("owner events").map(({ query }) => query);
  assert.deepEqual(queries, [{}, {}]);
});

test("what onOpened throws closes the watch, and what is refused does", async () => {
  const service = await Service.start();
  const trouble = new RangeError("mine");
  const { watch } = watchAll(service, {
    onOpened: () => {
      throw trouble;
    },
  });
  assert.equal(await watch.closed, trouble);
  service.next("owner events", refuse(404, { error: { code: "not_found", message: "None." } }));
  const other = watchAll(service);
  const error = await other.watch.closed;
  assert.ok(error instanceof ConverseError);
  assert.deepEqual([error.status, other.calls.at(-1)], [404, "closed"]);
  assert.equal(service.of("owner events").length, 2);
});

test("a signal closes the watch of all conversations", async () => {
  const service = await Service.start();
  const stopping = new AbortController();
  const { watch, calls } = watchAll(service, {
    signal: stopping.signal,
    onOpened: () => stopping.abort(),
  });
  assert.equal(await watch.closed, null);
  assert.deepEqual(calls, ["connecting", "open", "closed"]);
});

test("a stream that is opened and ends at once is not asked for all the time", async () => {
  const service = await Service.start();
  const waits = recordWaits();
  try {
    let opened = 0;
    const { watch } = watchAll(service, {
      onOpened: () => {
        opened += 1;
        if (opened === 4) watch.close();
        else service.endStreams();
      },
    });
    await watch.closed;
  } finally {
    mock.restoreAll();
  }
  assert.deepEqual(waits, [2, 4, 8]);
});
