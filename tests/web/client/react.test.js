// The hooks: what a component is given, and that it leaves nothing behind.

import "./dom.js";

import assert from "node:assert/strict";
import { afterEach, beforeEach, mock, test } from "node:test";

import { ConverseError } from "converse-mongo";
import { useConversation, useOwner, useStreamingMessage } from "converse-mongo/react";
import { Activity, StrictMode, createElement, useEffect } from "react";
import { flushSync } from "react-dom";
import { createRoot, hydrateRoot } from "react-dom/client";
import { renderToString } from "react-dom/server";

import { ID, Service, created, drop, refuse, shownAs, stopServers, until } from "./service.js";

let service;
let complaints;
const roots = new Set();

beforeEach(async () => {
  service = await Service.start();
  complaints = mock.method(console, "error", () => {});
});

afterEach(async () => {
  for (const root of roots) root.unmount();
  roots.clear();
  const said = complaints.mock.calls.map((call) => call.arguments);
  mock.restoreAll();
  await stopServers();
  assert.deepEqual(said, []); // what React warns of
});

/**
 * A component that uses a hook: keeps what each render was given, and tells of what was shown.
 * `use` takes the properties of the component.
 */
function probe(use) {
  const renders = [];
  const listeners = new Set();

  function Probe(props) {
    const value = use(props);
    renders.push(value);
    useEffect(() => {
      for (const listener of [...listeners]) listener();
    });
    return createElement("p", null, JSON.stringify(value.messages ?? value.message ?? []));
  }

  const container = document.createElement("div");
  let root = null;
  let wrapper = (element) => element;
  return {
    Probe,
    container,
    renders,
    latest: () => renders.at(-1),
    wrap(next) {
      wrapper = next;
      return this;
    },
    render(props = {}) {
      if (root === null) roots.add((root = createRoot(container)));
      flushSync(() => root.render(wrapper(createElement(Probe, props))));
    },
    hydrate(props) {
      container.innerHTML = renderToString(createElement(Probe, props));
      roots.add((root = hydrateRoot(container, createElement(Probe, props))));
    },
    unmount() {
      root.unmount();
      roots.delete(root);
    },
    /** Waits until what was rendered last is so. */
    async until(condition) {
      await until(
        (listener) => {
          listeners.add(listener);
          return () => listeners.delete(listener);
        },
        () => renders.length > 0 && condition(renders.at(-1)),
      );
      return renders.at(-1);
    },
  };
}

const strict = (element) => createElement(StrictMode, null, element);
const options = () => ({ url: service.url, retry: 8, interval: 0 });
const conversationProbe = () =>
  probe(({ id = ID, ...more }) => useConversation(id, { ...options(), ...more }));
const messageProbe = () =>
  probe(({ id = ID, messageId, ...more }) =>
    useStreamingMessage(id, messageId, { ...options(), ...more }),
  );
const contents = ({ messages }) => messages.map(({ content }) => content);
const isOpen = ({ status }) => status === "open";
const streaming = (count = 1) => service.until(() => service.streams.size === count);

/** Opens another component, and waits until it is told something: so what came before is over. */
async function barrier() {
  const other = conversationProbe();
  const count = service.streams.size;
  other.render();
  await streaming(count + 1);
  service.say("barrier", { role: "assistant" });
  await other.until((value) => contents(value).includes("barrier"));
  other.unmount();
  await streaming(count);
}

// useConversation

test("a conversation is followed while the component is mounted", async () => {
  service.say("question");
  const { render, renders, container, unmount, ...component } = conversationProbe();
  render();
  assert.deepEqual([renders[0].status, contents(renders[0])], ["loading", []]);
  await component.until((value) => contents(value).includes("question"));
  await streaming();
  const answer = service.begin();
  service.append(answer, "a", "b");
  await component.until((value) => contents(value)[1] === "ab");
  assert.match(container.textContent, /"content":"ab"/);
  service.end(answer);
  const { typing, messages } = await component.until((value) => !value.typing);
  assert.deepEqual([typing, messages.at(-1)], [false, shownAs(answer)]);

  unmount();
  await streaming(0);
  const [asked, shown] = [service.requests.length, renders.length];
  service.say("unheard");
  await barrier();
  assert.equal(service.requests.length, asked + 2); // those of the other
  assert.equal(renders.length, shown);
});

test("in strict mode it is opened once, and closed", async () => {
  const component = conversationProbe().wrap(strict);
  const fetch = mock.fn(globalThis.fetch);
  component.render({ fetch });
  await component.until(isOpen);
  await streaming();
  await barrier();
  assert.equal(fetch.mock.callCount(), 2); // the page and the stream
  component.unmount();
  await streaming(0);
});

test("hidden, it is closed; shown again, it opens again", async () => {
  let mode = "visible";
  const component = conversationProbe().wrap((element) =>
    createElement(Activity, { mode }, element),
  );
  component.render();
  await component.until(isOpen);
  await streaming();
  mode = "hidden";
  component.render();
  await streaming(0);
  service.say("meanwhile");
  mode = "visible";
  component.render();
  await component.until((value) => contents(value).length === 1);
  await streaming();
});

test("unmounted while it loads, it gives up; mounted again, it opens again", async () => {
  const held = service.hold("page");
  const component = conversationProbe();
  component.render();
  await held.arrived;
  component.unmount();
  await held.gone;
  assert.equal(component.renders.length, 1);
  const again = conversationProbe();
  again.render();
  await again.until(isOpen);
  assert.equal(service.of("page").length, 2);
});

test("another id closes the one, and opens the other with nothing of the one", async () => {
  service.say("one");
  const component = conversationProbe();
  component.render({ id: "first" });
  await component.until((value) => contents(value).length === 1);
  await streaming();
  const before = component.latest();
  const count = component.renders.length;
  component.render({ id: "second" });
  const [between] = component.renders.slice(count);
  assert.deepEqual([between.status, contents(between)], ["loading", []]);
  assert.notEqual(between.send, before.send);
  await component.until((value) => contents(value).length === 1);
  await service.requested("events", 2);
  await streaming(1);
  const paths = service.of("events").map(({ path }) => path);
  assert.deepEqual(paths, ["/conversations/first/events", "/conversations/second/events"]);
});

test("another url opens it anew", async () => {
  const component = conversationProbe();
  component.render();
  await component.until(isOpen);
  await streaming();
  component.render({ url: service.origin }); // the same service
  await service.requested("events", 2);
  await streaming(1);
});

test("without an id it waits", async () => {
  const component = conversationProbe();
  component.render({ id: null });
  const waiting = component.latest();
  assert.deepEqual([waiting.status, contents(waiting)], ["loading", []]);
  await assert.rejects(waiting.send("one"), /The conversation is not open/);
  await barrier();
  assert.equal(service.of("page").length, 1); // that of the other
  component.render({ id: ID });
  await component.until(isOpen);
  await streaming();
  component.render({ id: null });
  assert.deepEqual(contents(component.latest()), []);
  await streaming(0);
});

test("it renders again when there is something new, and only then", async () => {
  service.say("one");
  const component = conversationProbe();
  component.render();
  await component.until(isOpen);
  await streaming();
  assert.deepEqual(component.renders.map(({ status }) => status), ["loading", "open"]);
  const [known] = service.stored.values();
  service.tell(created(known), created(known));
  await barrier();
  await component.until((value) => contents(value).length === 2);
  assert.equal(component.renders.length, 3);
  assert.equal(component.renders[2].messages[0], component.renders[1].messages[0]);
});

test("a parent that renders again opens nothing and changes nothing", async () => {
  const component = conversationProbe();
  component.render();
  await component.until(isOpen);
  await streaming();
  const before = component.latest();
  component.render({ headers: {} });
  component.render({ headers: () => ({}) });
  assert.equal(component.renders.length, 4);
  assert.equal(component.latest(), before);
  await barrier();
  assert.equal(service.of("page").length, 2); // one, and that of the other
});

test("headers and fetch are those of the last render", async () => {
  const component = conversationProbe();
  component.render({ headers: { authorization: "first" } });
  await component.until(isOpen);
  await streaming();
  let fetched = 0;
  const fetch = (...request) => {
    fetched += 1;
    return globalThis.fetch(...request);
  };
  component.render({ headers: async () => ({ authorization: "second" }), fetch });
  await component.latest().send("one");
  component.render({});
  await component.latest().send("two");
  const given = service.requests.map(({ headers }) => headers.authorization);
  assert.deepEqual(given, ["first", "first", "second", undefined]);
  assert.equal(fetched, 1);
});

test("actions are the same functions all the time, and act", async () => {
  for (const text of ["0", "1"]) service.say(text);
  service.answering = true;
  const component = conversationProbe();
  component.render({ limit: 1 });
  const names = ["send", "resend", "stop", "retry", "loadOlder", "answerToolCalls"];
  const actions = names.map((name) => component.renders[0][name]);
  const [send, resend, stop, retry, loadOlder, answerToolCalls] = actions;
  await component.until((value) => isOpen(value) && value.hasOlder);
  await loadOlder();
  service.next("send", refuse(413));
  const unsent = await send("2");
  assert.equal(unsent.status, "unsent");
  await component.until((value) => value.messages.at(-1).status === "unsent");
  const message = await resend(unsent.id);
  assert.equal(message.content, "2");
  const { messages } = await component.until((value) => value.messages.length === 4);
  assert.deepEqual(contents({ messages }), ["0", "1", "2", ""]);
  await stop(messages[3].id, "enough");
  await stop();
  assert.deepEqual(service.of("stop").map(({ body }) => body), [{ reason: "enough" }]);
  assert.equal(service.of("stop all").length, 1);
  const answer = await retry(messages[3].id);
  await component.until((value) => value.messages.at(-1).id === answer.id);
  await answerToolCalls(answer.id, [{ call_id: "c", output: 1 }]);
  assert.deepEqual(service.of("answers")[0].body.answers, [{ call_id: "c", output: 1 }]);
  for (const render of component.renders) {
    assert.deepEqual(names.map((name) => render[name]), actions);
  }
});

test("what is said is rendered at once", async () => {
  const component = conversationProbe();
  component.render();
  await component.until(isOpen);
  const held = service.hold("send");
  const sending = component.latest().send("hello");
  await component.until(({ messages }) => messages[0]?.status === "pending");
  await held.arrived;
  held.release();
  await sending;
  const { messages } = await component.until((value) => value.messages[0]?.status === "completed");
  assert.equal(messages.length, 1);
});

test("a refusal is the status error, and trouble on the way is told", async () => {
  service.next("page", refuse(404, "not_found"));
  const component = conversationProbe();
  component.render();
  const { error, status } = await component.until((value) => value.error !== null);
  assert.ok(error instanceof ConverseError);
  assert.deepEqual([error.status, status], [404, "error"]);

  const other = conversationProbe();
  other.render();
  await other.until(isOpen);
  await streaming();
  service.next("events", drop);
  service.breakStreams();
  await other.until((value) => value.status === "reconnecting" && value.error !== null);
  await other.until((value) => value.status === "open" && value.error === null);
});

test("on a server it renders what there is before it is loaded, and asks for nothing", async () => {
  service.say("one");
  const component = conversationProbe();
  const html = renderToString(createElement(component.Probe));
  assert.equal(html, "<p>[]</p>");
  await assert.rejects(component.latest().send("two"), /The conversation is not open/);
  component.hydrate({});
  await component.until((value) => contents(value).length === 1);
  assert.equal(service.of("page").length, 1);
});

// useStreamingMessage

test("a message is followed to its end", async () => {
  const message = service.begin();
  service.append(message, "a");
  const component = messageProbe();
  component.render({ messageId: message.id });
  assert.deepEqual(component.latest(), { message: null, status: "loading", error: null });
  await component.until((value) => value.message?.content === "a");
  await streaming();
  service.append(message, "b", "c");
  await component.until((value) => value.message.content === "abc");
  service.breakStreams();
  service.append(message, "d");
  await component.until((value) => value.message.content === "abcd");
  await streaming();
  service.end(message, "cancelled", { stop_reason: "enough" });
  const ended = await component.until((value) => value.status === "ended");
  assert.deepEqual(ended, { message: shownAs(message), status: "ended", error: null });
  await streaming(0);
  const after = service.of("message events").map(({ query }) => query.after);
  // The cursors of the server: that of the loaded message, and that of the last event.
  assert.deepEqual(after, ["opaque.0", `${message.id}.2`]);
  const seen = new Set(component.renders.map(({ status }) => status));
  assert.deepEqual([...seen], ["loading", "open", "reconnecting", "ended"]);
  assert.ok(Object.isFrozen(ended) && Object.isFrozen(ended.message));
});

test("a message that has no text yet is followed from its beginning", async () => {
  const message = service.begin();
  const component = messageProbe();
  component.render({ messageId: message.id });
  await streaming();
  service.append(message, "a");
  await component.until((value) => value.message?.content === "a");
  assert.deepEqual(service.of("message events")[0].query, {});
});

test("a message that has ended is loaded, and not watched", async () => {
  const message = service.say("whole", { role: "assistant" });
  const component = messageProbe();
  component.render({ messageId: message.id });
  await component.until((value) => value.status === "ended");
  assert.deepEqual(component.renders.map(({ status }) => status), ["loading", "ended"]);
  await barrier();
  assert.equal(service.of("message events").length, 0);
});

test("chunks of a message that are missing are loaded", async () => {
  const message = service.begin();
  const component = messageProbe();
  component.render({ messageId: message.id });
  await streaming();
  const [, behind] = service.silently(() => service.append(message, "a", "b"));
  service.tell(behind);
  await component.until((value) => value.message?.content === "ab");
  service.silently(() => service.append(message, "c"));
  service.end(message);
  const { message: ended } = await component.until((value) => value.status === "ended");
  assert.deepEqual(ended, shownAs(message));
  assert.equal(service.of("message").length, 3);
});

test("a lost connection of a message is told, and one that was made again", async () => {
  const message = service.begin();
  const component = messageProbe();
  component.render({ messageId: message.id });
  await streaming();
  service.next("message events", drop);
  service.breakStreams();
  await component.until((value) => value.status === "reconnecting" && value.error !== null);
  const { error } = await component.until((value) => value.status === "open");
  assert.equal(error, null);
});

test("a message that was loaded after its end has no trouble any more", async () => {
  const message = service.begin();
  const component = messageProbe();
  component.render({ messageId: message.id });
  await streaming();
  const [, behind] = service.silently(() => service.append(message, "a", "b"));
  const end = service.silently(() => service.end(message));
  service.tell(behind);
  const ended = await component.until((value) => value.status === "ended");
  assert.deepEqual(ended.message, shownAs(message));
  service.next("message events", drop);
  service.breakStreams();
  await service.requested("message events", 3);
  service.tell(end);
  await streaming(0);
  assert.equal(component.latest(), ended);
});

test("told that nothing is left, it loads the message once more", async () => {
  const message = service.begin();
  service.append(message, "a");
  service.next("message events", (response) => {
    service.silently(() => service.end(message));
    response.writeHead(204).end();
  });
  const component = messageProbe();
  component.render({ messageId: message.id });
  const { message: ended } = await component.until((value) => value.status === "ended");
  assert.deepEqual(ended, shownAs(message));
});

test("a message that is not there, or not any more, is an error", async () => {
  const component = messageProbe();
  component.render({ messageId: "unknown" });
  const { error } = await component.until((value) => value.status === "error");
  assert.deepEqual([error.status, error.code], [404, "not_found"]);

  const message = service.begin();
  const other = messageProbe();
  other.render({ messageId: message.id });
  await streaming();
  service.append(message, "a");
  await other.until((value) => value.message?.content === "a");
  service.stored.delete(message.id);
  service.endStreams();
  const gone = await other.until((value) => value.status === "error");
  assert.deepEqual([gone.error.status, gone.message.content], [404, "a"]);

  service.next("message events", refuse(403, "forbidden"));
  const forbidden = messageProbe();
  forbidden.render({ messageId: service.begin().id });
  const refused = await forbidden.until((value) => value.status === "error");
  assert.equal(refused.error.status, 403);
});

test("what goes wrong while a message loads is told, and tried again", async () => {
  const message = service.say("whole");
  service.next("message", refuse(503, "unavailable", "Later."));
  const component = messageProbe();
  component.render({ messageId: message.id });
  await component.until((value) => value.error?.message === "Later.");
  assert.equal(component.latest().status, "loading");
  const { error } = await component.until((value) => value.status === "ended");
  assert.equal(error, null);
});

test("a message in strict mode is opened once; unmounted, it is closed", async () => {
  const message = service.begin();
  const component = messageProbe().wrap(strict);
  const fetch = mock.fn(globalThis.fetch);
  component.render({ messageId: message.id, fetch });
  await streaming();
  assert.equal(fetch.mock.callCount(), 2); // the message and its stream
  component.unmount();
  await streaming(0);
  service.append(message, "unheard");
  await barrier();
  assert.equal(service.of("message events").length, 1);
  assert.ok(component.renders.every((value) => !value.message?.content));
});

test("another message takes the place of the one; without an id it waits", async () => {
  const [one, two] = [service.begin(), service.begin()];
  service.append(one, "one");
  service.append(two, "two");
  const component = messageProbe();
  component.render({ messageId: undefined });
  assert.equal(component.latest().status, "loading");
  component.render({ messageId: one.id });
  await component.until((value) => value.message?.content === "one");
  await streaming();
  const count = component.renders.length;
  component.render({ messageId: two.id });
  assert.equal(component.renders[count].message, null);
  await component.until((value) => value.message?.content === "two");
  await service.requested("message events", 2);
  await streaming(1);
  component.render({ messageId: null });
  assert.equal(component.latest().message, null);
  await streaming(0);
  component.render({ id: null, messageId: one.id });
  await barrier();
  assert.equal(service.of("message").length, 2);
});

// useOwner

const suspended = (id) => ({ type: "message.suspended", conversation_id: ID, message_id: id, pending: [] });

test("all conversations are followed while the component is mounted", async () => {
  service.waiting = [suspended("a")];
  const heard = [];
  const component = probe(({ tag }) =>
    useOwner({
      ...options(),
      onOpened: ({ waiting }) => heard.push([tag, waiting.length]),
      onEvent: ({ message_id: id }) => heard.push([tag, id]),
    }),
  ).wrap(strict);
  component.render({ tag: 1 });
  assert.deepEqual(component.latest(), { status: "loading", error: null, waiting: [] });
  const { waiting } = await component.until(isOpen);
  assert.deepEqual(waiting, service.waiting);
  component.render({ tag: 2 }); // whose functions are called from now on
  assert.equal(component.latest().waiting, waiting);
  service.tellOwner(suspended("b"));
  await component.until((value) => value.waiting.length === 2);
  assert.deepEqual(heard, [[1, 1], [2, "b"]]);
  component.unmount();
  await streaming(0);
  assert.equal(service.of("owner events").length, 1);
});

test("another address of all conversations takes the place of the one", async () => {
  const component = probe(({ path = "" }) => useOwner({ ...options(), url: service.url + path }));
  component.render();
  await component.until(isOpen);
  component.render({ path: "/" });
  await component.until(isOpen);
  await service.requested("owner events", 2);
  await streaming(1);
});
