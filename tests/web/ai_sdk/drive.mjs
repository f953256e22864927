// Drives the endpoints with the AI SDK's own client, as a page would that shows one chat.
//
//   node drive.mjs BASE CHAT_ID ACTION [TEXT]
//
// It begins with the stored messages, as after a reload, does what ACTION says (send, resume,
// regenerate), and prints what the client has in the end as one line of JSON. Before that it prints
// a line each time that the text of the last message grows.

import { Chat } from "@ai-sdk/react";
import { DefaultChatTransport } from "ai";

const [base, id, action, text] = process.argv.slice(2);
const headers = { authorization: "ada" };
const stored = await fetch(`${base}/chat/${id}`, { headers });
const chat = new Chat({
  id,
  messages: await stored.json(),
  transport: new DefaultChatTransport({ api: `${base}/chat`, headers }),
});

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

if (action === "send") await chat.sendMessage({ text });
else if (action === "resume") await chat.resumeStream();
else if (action === "regenerate") await chat.regenerate();
else throw new Error(`${action} is no action`);

const messages = chat.messages.map((message) => ({
  id: message.id,
  role: message.role,
  text: textOf(message),
  metadata: message.metadata ?? null,
}));
console.log(JSON.stringify({ status: chat.status, error: chat.error?.message ?? null, messages }));
