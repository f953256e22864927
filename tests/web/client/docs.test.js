// The documentation is true: its JavaScript has the types of the client, and its main parts run.

import "./dom.js";

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { afterEach, beforeEach, test } from "node:test";

import { createElement } from "react";
import { createRoot } from "react-dom/client";
import ts from "typescript";

import { check, readBlocks } from "./checking.js";
import { ID, Service, created, refuse, stopServers } from "./service.js";

const HERE = fileURLToPath(new URL(".", import.meta.url));
const SCRIPT = /<script type="module">(.*?)<\/script>/gs;

/** What the pages leave to who reads them. */
const NAMES = `
  declare const id: string, answerId: string;
  declare function show(shown: unknown): void;
  declare function append(messageId: string | undefined, text: string): void;
  declare function showConnection(state: import("converse-mongo").State): void;
  declare function showList(list: unknown): void;
  declare function showUnread(conversationId: string): void;
  declare function freshToken(): Promise<string>;
  declare function useChat(options: object): unknown;
  declare class WorkflowChatTransport {
    constructor(options: { api: string, prepareSendMessagesRequest: (request: any) => object });
  }
`;

const BLOCKS = ["browser.md", "fastapi.md"].flatMap(readBlocks);

function find(language, part) {
  const found = BLOCKS.filter((each) => each.language === language && each.code.includes(part));
  assert.ok(found.length > 0, `no block has ${part}`);
  return found[0].code;
}

/** Runs a block as a module; gives what it exports, and what is named in `exported`. */
async function run(code, exported = "") {
  const { outputText } = ts.transpileModule(`${code}\nexport { ${exported} };`, {
    compilerOptions: {
      module: ts.ModuleKind.ESNext,
      target: ts.ScriptTarget.ES2022,
      jsx: ts.JsxEmit.ReactJSX,
    },
  });
  const resolved = outputText
    .replaceAll('"/client/index.js"', '"converse-mongo"')
    .replace(/(from |import\()"([^"]+)"/g, (_, before, name) => {
      return `${before}"${import.meta.resolve(name)}"`;
    });
  return await import(`data:text/javascript,${encodeURIComponent(resolved)}`);
}

let service;
const { fetch } = globalThis;
const closing = [];

beforeEach(async () => {
  service = await Service.start();
  // As in a page of the service.
  globalThis.fetch = (address, ...more) => fetch(new URL(address, service.origin), ...more);
  globalThis.id = ID;
});

afterEach(async () => {
  for (const close of closing.splice(0)) close();
  globalThis.fetch = fetch;
  document.documentElement.innerHTML = "";
  await stopServers();
});

/** Waits until the document is so. */
async function drawn(condition) {
  await new Promise((resolve) => {
    const look = () => {
      if (!condition()) return;
      observer.disconnect();
      resolve();
    };
    const observer = new window.MutationObserver(look);
    observer.observe(document, { subtree: true, childList: true, characterData: true });
    look();
  });
}

const items = () => [...document.querySelectorAll("li")].map(({ textContent }) => textContent);

test("the blocks have the types of the client", () => {
  const client = "../../../converse_mongo/web/client/";
  const files = new Map([[`${HERE}names.d.ts`, NAMES]]);
  for (const [index, { page, language, code }] of BLOCKS.entries()) {
    if (language === "html") continue;
    const text = `${code.replaceAll('"/client/', `"${client}`)}\nexport {};`;
    files.set(`${HERE}${page}.${index}.jsx`, text);
  }
  assert.ok(files.size > 8, `${files.size}`);
  // Were nothing found here, nothing would be checked.
  const wrong = 'import { openConversation } from "converse-mongo"; openConversation({ url: "" });';
  files.set(`${HERE}wrong.js`, wrong);
  const [found, ...others] = check(ts, HERE, files);
  assert.deepEqual(others, []);
  assert.match(found, /wrong\.js:1 .*conversationId/s);
});

test("the page says what there is to import", async () => {
  const names = [
    ...Object.keys(await import("converse-mongo")),
    ...Object.keys(await import("converse-mongo/react")),
  ];
  const page = readFileSync(new URL("../../../docs/howto/browser.md", import.meta.url), "utf8");
  assert.deepEqual(names.filter((name) => !page.includes(name)), []);
});

test("the import map names what is served", () => {
  const [, map] = /<script type="importmap">(.*?)<\/script>/s.exec(find("html", "importmap"));
  assert.deepEqual(JSON.parse(map), { imports: { "converse-mongo": "/client/index.js" } });
});

test("the page without a build step shows a conversation, and sends", async () => {
  const html = find("html", "<form");
  const [[, script]] = html.matchAll(SCRIPT);
  document.write(html.replace(SCRIPT, ""));
  globalThis.location = { hash: `#${ID}` };
  service.say("question");
  const served = globalThis.fetch;
  let logins = 0;
  globalThis.fetch = (address, ...more) => {
    if (address !== "/login") return served(address, ...more);
    logins += 1;
    return Promise.resolve(new Response(null, { status: 204 }));
  };
  const { chat } = await run(script, "chat");
  closing.push(() => chat.close());
  const answer = service.begin();
  service.append(answer, "an ", "answer");
  await drawn(() => items().includes("assistant: an answer"));
  assert.deepEqual(items(), ["user: question", "assistant: an answer"]);
  assert.equal(document.getElementById("status").textContent, "");

  const text = document.getElementById("text");
  const submit = () => {
    const event = new window.Event("submit", { cancelable: true });
    document.getElementById("form").dispatchEvent(event);
    assert.equal(event.defaultPrevented, true);
  };
  text.value = "more";
  submit();
  assert.deepEqual([items().length, text.value], [2, "more"]); // the answer is still being written
  service.end(answer, "failed", { error: "It failed." });
  await drawn(() => items().includes("assistant: an answer (It failed.)"));
  // The session has ended.
  service.next("send", refuse(401), refuse(409, "conflict", "Not so fast."));
  submit();
  assert.deepEqual([items().at(-1), text.value], ["user: more", ""]);
  const { body } = await service.requested("send");
  assert.equal(body.content, "more");
  await drawn(() => items().includes("user: more (Not so fast.)"));
  assert.equal(logins, 1);

  service.next("events", refuse(401), refuse(404, "not_found", "Not found."));
  service.breakStreams();
  await drawn(() => document.getElementById("status").textContent === "Not found.");
  assert.equal(logins, 2);
});

test("a classic script shows a conversation", async () => {
  service.say("question");
  const shown = new Promise((resolve) => {
    globalThis.show = (messages) => messages.length > 0 && resolve(messages);
  });
  let chat;
  globalThis.keep = (opened) => {
    closing.push(() => opened.close());
    chat = opened;
  };
  const code = find("javascript", 'import("/client/index.js")');
  await run(code.replace("  chat.subscribe", "  keep(chat);\n  chat.subscribe"));
  const [message] = await shown;
  assert.equal(message, chat.getSnapshot().messages[0]);
});

test("events are watched from the history on", async () => {
  service.say("question");
  const answer = service.begin();
  const shown = [];
  const states = [];
  globalThis.show = (messages) => shown.push(...messages.map(({ content }) => content));
  globalThis.showConnection = (state) => states.push(state);
  const appended = new Promise((resolve) => {
    globalThis.append = (...given) => resolve(given);
  });
  const { watch } = await run(find("javascript", "after: page.cursor"), "watch");
  closing.push(watch.close);
  await service.requested("events");
  service.append(answer, "text");
  assert.deepEqual(await appended, [answer.id, "text"]);
  assert.deepEqual(shown, ["question", ""]);
  assert.deepEqual(states, ["connecting", "open"]);
});

test("a list is loaded whenever there is something new", async () => {
  let listed = 0;
  const unread = [];
  let told = () => {};
  const until = async (count) => {
    while (listed < count) await new Promise((resolve) => (told = resolve));
  };
  const served = globalThis.fetch;
  globalThis.fetch = (address, ...more) =>
    address === "/conversations" ? Promise.resolve(Response.json(["a"])) : served(address, ...more);
  globalThis.showList = (list) => {
    assert.deepEqual(list, ["a"]);
    listed += 1;
    told();
  };
  globalThis.showUnread = (conversationId) => unread.push(conversationId);
  const { watch } = await run(find("javascript", "watchOwner({"), "watch");
  closing.push(watch.close);
  await until(1);
  service.tellOwner({ type: "conversation.updated", conversation_id: ID, title: "new" });
  await until(2);
  service.tellOwner({ type: "message.completed", conversation_id: ID, message_id: "b" });
  await until(3);
  assert.deepEqual(unread, [ID]);
  service.breakStreams();
  await until(4); // the connection that was made again
  assert.deepEqual(service.of("owner events")[0].query, {});
});

/** Renders a component of the page. */
function render(component, props) {
  const container = document.createElement("div");
  document.documentElement.append(container);
  const root = createRoot(container);
  closing.push(() => root.unmount());
  root.render(createElement(component, props));
  return container;
}

const button = (text) =>
  [...document.querySelectorAll("button")].find(({ textContent }) => textContent === text);

test("the component shows a conversation, and does what its user wants", async () => {
  service.say("question");
  const answer = service.begin();
  const { Chat } = await run(find("jsx", "function Chat"));
  const container = render(Chat, { conversationId: ID });
  service.append(answer, "half");
  await drawn(() => items().includes("half") && button("Stop"));
  button("Stop").click();
  await service.requested("stop all");
  service.end(answer, "failed", { error: "It failed." });
  await drawn(() => button("Try again"));
  service.answering = true;
  button("Try again").click();
  await drawn(() => items().length === 2 && !button("Try again"));
  const again = [...service.stored.values()].at(-1);
  assert.equal(again.replaces, answer.id);
  service.append(again, "whole");
  service.end(again);
  await drawn(() => items().includes("whole") && !button("Stop"));

  service.next("send", refuse(413));
  const input = container.querySelector("input");
  const set = Object.getOwnPropertyDescriptor(Object.getPrototypeOf(input), "value").set;
  set.call(input, "more"); // as a user does, whom React hears
  input.dispatchEvent(new window.Event("input", { bubbles: true }));
  await drawn(() => !button("Send").disabled);
  button("Send").click();
  await drawn(() => button("Send again"));
  assert.match(items().at(-1), /^more \(.+\.\)Send again$/);
  button("Send again").click();
  await drawn(() => !button("Send again") && items().length === 4);
  assert.deepEqual(items(), ["question", "whole", "more", ""]);

  service.next("events", refuse(404, "not_found", "Not found."));
  service.breakStreams();
  await drawn(() => container.querySelector('[role="alert"]'));
  assert.equal(container.querySelector('[role="alert"]').textContent, "Not found.");
  assert.deepEqual(items(), ["question", "whole", "more", ""]);
});

test("the component shows one answer", async () => {
  const answer = service.begin();
  service.append(answer, "half");
  const { Answer } = await run(find("jsx", "function Answer"));
  const container = render(Answer, { conversationId: ID, messageId: answer.id });
  await drawn(() => container.textContent === "half");
  assert.equal(container.firstChild.getAttribute("aria-busy"), "true");
  await service.until(() => service.streams.size === 1);
  service.tell(created(answer));
  service.append(answer, " and half");
  service.end(answer);
  await drawn(() => container.firstChild.getAttribute("aria-busy") === "false");
  assert.equal(container.textContent, "half and half");
});

test("the list marks which conversations wait for people", async () => {
  const waits = { type: "message.suspended", conversation_id: ID, message_id: "b" };
  service.waiting = [{ ...waits, pending: [{ call_id: "c", wanted: "approval" }] }];
  const shown = new Promise((resolve) => {
    globalThis.show = resolve;
  });
  const { owner } = await run(find("javascript", "openOwner({"), "owner");
  closing.push(owner.close);
  assert.deepEqual(await shown, [ID]);

  const { Conversations } = await run(find("jsx", "function Conversations"));
  const conversations = [{ id: ID, title: "One" }, { id: "other", title: "Two" }];
  render(Conversations, { conversations });
  await drawn(() => items()[0] === "One Waits for you");
  service.tellOwner({ ...waits, type: "message.queued" });
  await drawn(() => items()[0] === "One ");
  assert.equal(items()[1], "Two ");
});

test("the component shows the parts of an answer", async () => {
  const answer = service.begin();
  service.append(answer, { event: "start", fields: { kind: "tool_call", name: "search" } });
  const { Parts } = await run(find("jsx", "function Parts"));
  const container = render(Parts, { conversationId: ID, messageId: answer.id });
  await drawn(() => container.textContent.includes("search: input-streaming"));
  const shown = container.querySelector("details");
  service.append(answer, { part: 0, delta: "{}" }, { part: 0, event: "set", fields: { input: {}, output: 1 } });
  service.append(answer, "It is one.");
  service.end(answer);
  await drawn(() => container.textContent === "search: output-available{}It is one.");
  assert.equal(container.querySelector("details"), shown);
});

test("whoever follows the events has the parts", async () => {
  const answer = service.begin();
  service.append(answer, "a");
  let records = [];
  Object.assign(globalThis, { answerId: answer.id, show: (shown) => (records = shown) });
  await run(find("javascript", "PartLog.fromSnapshot"));
  await service.until(() => service.streams.size === 1);
  service.append(answer, { event: "start", fields: { kind: "step" } }, "b");
  service.end(answer);
  await service.until(() => service.streams.size === 0);
  assert.deepEqual(records.map(({ part, kind }) => [part, kind]), [[0, "text"], [1, "step"], [2, "text"]]);
});
