// Prints what is wrong with the types of the programs in the how-to on the AI SDK, a line each.

import { fileURLToPath } from "node:url";

import ts from "typescript";

import { check, readBlocks } from "../client/checking.js";

const HERE = fileURLToPath(new URL(".", import.meta.url));

/** What the page leaves to who reads it. */
const NAMES = `
  declare const id: string, messages: import("ai").UIMessage[];
  declare const useChat: typeof import("@ai-sdk/react").useChat;
  declare const WorkflowChatTransport:
    typeof import("@ai-sdk/workflow/client").WorkflowChatTransport;
  declare function Part(options: { part: any }): import("react").ReactNode;
`;

const files = new Map([[`${HERE}names.d.ts`, NAMES]]);
for (const [index, { page, code }] of readBlocks("ai-sdk.md").entries()) {
  files.set(`${HERE}${page}.${index}.jsx`, `${code}\nexport {};`);
}
// Were nothing found here, nothing would be checked.
const wrong = 'import { useChat } from "@ai-sdk/react"; useChat({ id: 1 }); export {};';
files.set(`${HERE}wrong.jsx`, wrong);
for (const line of check(ts, HERE, files)) console.log(line);
