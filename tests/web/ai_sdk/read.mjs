// Reads streams as the AI SDK does: each line of the standard input has one, as a list of parts.
//
// For each it prints one line: the parts and the metadata of the message that the page has then.

import { createInterface } from "node:readline";
import { parseJsonEventStream, readUIMessageStream, uiMessageChunkSchema } from "ai";

// A step that begins does not make the page show anything; this does.
const SHOW = { type: "message-metadata", messageMetadata: { shown: true } };

async function read(parts, message) {
  const frames = [...parts, SHOW].map((part) => `data: ${JSON.stringify(part)}\n\n`).join("");
  const stream = parseJsonEventStream({
    stream: new Blob([frames]).stream(),
    schema: uiMessageChunkSchema,
  }).pipeThrough(
    new TransformStream({
      transform(result, controller) {
        if (!result.success) throw result.error;
        controller.enqueue(result.value);
      },
    }),
  );
  let last = null;
  const errors = [];
  const onError = (error) => errors.push(String(error));
  for await (const each of readUIMessageStream({ message, stream, onError })) last = each;
  if (errors.length > 0) return { errors, sent: parts };
  delete last.metadata.shown;
  return { parts: last.parts, metadata: last.metadata, id: last.id };
}

for await (const line of createInterface({ input: process.stdin })) {
  const { parts, message } = JSON.parse(line);
  console.log(JSON.stringify(await read(parts, message)));
}
