// Drives the endpoints with the AI SDK's own client, as a page would that shows one chat.
//
//   node drive.mjs BASE CHAT_ID TRANSPORT ACTION...
//
// It begins with the stored messages, as after a reload, does what each ACTION says, and prints
// what the client has in the end as one line of JSON. Before that it prints a line each time that
// the text of the last message grows.
//
// The transport is that of the SDK ("default"), that of its workflows ("workflow"), or that of the
// client of converse_mongo ("converse"). Actions:
//
//   send:TEXT        asks, and waits for the end of the answer
//   begin:TEXT       asks
//   lose:TEXT        asks, and the request is lost
//   unheard:TEXT     asks, and the first response is lost
//   file:TEXT        asks, with a file
//   older            loads what the history has before the page
//   cut:COUNT        the next streams break after so many parts, one after the other
//   edit:TEXT        changes the last question on the page
//   approve:ID       allows the tool call whose request has the id; deny:ID does not
//   output:ID:JSON   gives the output of a tool that the page runs
//   until:TEXT       waits until the last message has the text, and nothing is received
//   regenerate, resume, stop, wait (for a line on the standard input), settle

import { createInterface } from "node:readline";
import { Chat } from "@ai-sdk/react";
import { WorkflowChatTransport } from "@ai-sdk/workflow/client";
import {
  DefaultChatTransport,
  lastAssistantMessageIsCompleteWithApprovalResponses as areApproved,
  lastAssistantMessageIsCompleteWithToolCalls as haveOutputs,
} from "ai";
import { ConverseTransport } from "converse-mongo/ai-sdk";

const [base, id, kind, ...actions] = process.argv.slice(2);
const api = `${base}/chat`;
const headers = { authorization: "ada" };

// A browser: it keeps cookies, and its connections break.
const cookies = new Map();
const cuts = [];
let lost = false;
let unheard = false;

async function browse(url, init = {}) {
  if (lost && init.method === "POST") throw new TypeError("fetch failed");
  if (unheard && init.method === "POST") {
    unheard = false;
    const response = await fetch(url, init);
    await response.body.cancel();
    throw new TypeError("fetch failed");
  }
  const cookie = [...cookies].map((pair) => pair.join("=")).join("; ");
  const response = await fetch(url, { ...init, headers: { ...init.headers, cookie } });
  for (const line of response.headers.getSetCookie()) {
    const [name, value] = line.split(";")[0].split("=");
    if (/max-age=0/i.test(line)) cookies.delete(name);
    else cookies.set(name, value);
  }
  const streams = response.headers.get("x-vercel-ai-ui-message-stream") !== null;
  const skipped = kind === "converse" && init.method === "POST"; // it reads nothing of that one
  const count = streams && !skipped ? cuts.shift() : undefined;
  return count === undefined ? response : new Response(cut(response.body, count), response);
}

function cut(body, count) {
  let text = "";
  const decoder = new TextDecoder();
  const reader = body.getReader();
  return new ReadableStream({
    async pull(controller) {
      const { done, value } = await reader.read();
      if (done) return controller.close();
      text += decoder.decode(value, { stream: true });
      const whole = text.split("\n\n").slice(0, -1);
      const events = whole.filter((each) => each.startsWith("data:"));
      if (events.length < count) return;
      const head = events.slice(0, count).map((each) => `${each}\n\n`);
      controller.enqueue(new TextEncoder().encode(head.join("")));
      await reader.cancel();
      await new Promise((resolve) => setTimeout(resolve, 20)); // so that what came is read
      controller.error(new TypeError("network error"));
    },
  });
}

// What is to be lost is not tried again.
const patience = actions.some((action) => action.startsWith("lose:")) ? 0 : 30_000;

const transports = {
  default: () => new DefaultChatTransport({ api, headers, fetch: browse }),
  converse: () => new ConverseTransport({ api, headers, fetch: browse, retry: 20, patience }),
  workflow: () =>
    new WorkflowChatTransport({
      api,
      fetch: browse,
      // It sends neither the id nor the type of its body by itself.
      prepareSendMessagesRequest: ({ id, messages, trigger, messageId }) => ({
        body: { id, messages, trigger, messageId },
        headers: { ...headers, "content-type": "application/json" },
      }),
      prepareReconnectToStreamRequest: ({ api }) => ({ api, headers }),
    }),
};
const transport = transports[kind]();

async function load(before = null) {
  const limit = 4; // so that a few messages are several pages
  if (kind === "converse") return await transport.load(id, { limit, before });
  const query = new URLSearchParams({ limit, ...(before === null ? {} : { before }) });
  const response = await browse(`${api}/${id}?${query}`, { headers });
  const older = response.headers.get("x-converse-before");
  return { messages: await response.json(), before: older };
}

let { messages, before } = await load();
const sendAutomaticallyWhen = (options) => areApproved(options) || haveOutputs(options);
const chat = new Chat({ id, messages, transport, sendAutomaticallyWhen });

const textOf = (message) =>
  message.parts.filter((part) => part.type === "text").map((part) => part.text).join("");
let shown = "";
chat["~registerMessagesCallback"](() => {
  const last = chat.messages.at(-1);
  const now = last === undefined ? "" : textOf(last);
  if (last?.role === "assistant" && now !== shown) {
    shown = now;
    console.log(JSON.stringify({ id: last.id, text: now }));
  }
});

const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
let begun = Promise.resolve();
const acting = {
  send: (text) => chat.sendMessage({ text }),
  begin: (text) => {
    begun = chat.sendMessage({ text });
  },
  lose: async (text) => {
    lost = true;
    await chat.sendMessage({ text });
    lost = false;
  },
  unheard: (text) => {
    unheard = true;
    return chat.sendMessage({ text });
  },
  file: (text) => {
    const url = "data:text/plain;base64,aGk=";
    const files = [{ type: "file", mediaType: "text/plain", filename: "notes.txt", url }];
    return chat.sendMessage({ text, files });
  },
  older: async () => {
    while (before !== null) {
      ({ messages, before } = await load(before));
      chat.messages = [...messages, ...chat.messages];
    }
  },
  cut: (count) => {
    cuts.push(...count.split(",").map(Number));
  },
  edit: (text) => {
    const index = chat.messages.findLastIndex(({ role }) => role === "user");
    const parts = [{ type: "text", text }];
    const edited = { ...chat.messages[index], parts };
    chat.messages = chat.messages.map((each, at) => (at === index ? edited : each));
  },
  approve: (id) => chat.addToolApprovalResponse({ id, approved: true }),
  deny: (id) => chat.addToolApprovalResponse({ id, approved: false, reason: "no" }),
  output: (text) => {
    const [toolCallId, ...output] = text.split(":");
    const tool = "of the page";
    return chat.addToolOutput({ tool, toolCallId, output: JSON.parse(output.join(":")) });
  },
  until: async (text) => {
    const is = () => chat.status === "ready" && textOf(chat.messages.at(-1)) === text;
    while (!is()) {
      if (chat.status === "error") throw chat.error;
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
  },
  regenerate: () => chat.regenerate(),
  resume: () => chat.resumeStream(),
  stop: async () => {
    await transport.stop(id);
    await chat.stop();
  },
  wait: async () => {
    console.log(JSON.stringify({ waits: true }));
    await lines.next();
  },
  settle: () => begun,
};
for (const action of actions) {
  const [name, ...text] = action.split(":");
  await acting[name](text.join(":"));
}

const shownMessages = chat.messages.map((message) => ({
  id: message.id,
  role: message.role,
  text: textOf(message),
  metadata: message.metadata ?? null,
  parts: message.parts,
}));
const { status, error } = chat;
const found = JSON.stringify({ status, error: error?.message ?? null, messages: shownMessages });
process.stdout.write(`${found}\n`, () => process.exit(0)); // a long line is not written at once
