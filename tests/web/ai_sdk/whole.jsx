// One chat with all that the documentation tells pages to do: files, approvals, and a tool that the
// page runs. With `own` in its address, the chat is followed by the client of this library instead.
// What it shows is in `window.shown`, for tests.

import { useChat } from "@ai-sdk/react";
import {
  DefaultChatTransport,
  lastAssistantMessageIsCompleteWithApprovalResponses,
  lastAssistantMessageIsCompleteWithToolCalls,
} from "ai";
import { useConversation } from "converse-mongo/react";
import { StrictMode, useLayoutEffect, useRef, useState } from "react";
import { createRoot } from "react-dom/client";

const query = new URLSearchParams(location.search);
const id = query.get("chat");
const transport = new DefaultChatTransport({ api: "/api/chat" });

function useShown(shown) {
  useLayoutEffect(() => {
    window.shown = shown;
  });
}

function Chat({ stored }) {
  const [transient, setTransient] = useState([]);
  const [text, setText] = useState("");
  const files = useRef(null);
  const chat = useChat({
    id,
    messages: stored,
    transport,
    resume: true,
    sendAutomaticallyWhen: (options) =>
      lastAssistantMessageIsCompleteWithApprovalResponses(options) ||
      lastAssistantMessageIsCompleteWithToolCalls(options),
    onToolCall: ({ toolCall }) => {
      if (toolCall.toolName !== "locate") return;
      const output = { city: "Paris" };
      void chat.addToolOutput({ tool: "locate", toolCallId: toolCall.toolCallId, output });
    },
    onData: ({ type, data }) => type === "data-moment" && setTransient((all) => [...all, data]),
  });
  const { messages, status, error } = chat;
  useShown({ messages, status, error: error?.message ?? null, transient });
  const send = (event) => {
    event.preventDefault();
    chat.sendMessage({ text, files: files.current.files });
    setText("");
  };
  const asked = messages.flatMap(({ parts }) =>
    parts.filter((part) => part.state === "approval-requested"),
  );
  return (
    <main data-status={status}>
      <pre>{JSON.stringify(messages, null, 1)}</pre>
      {error && <p role="alert">{error.message}</p>}
      {asked.map(({ approval }) => (
        <button
          key={approval.id}
          onClick={() => chat.addToolApprovalResponse({ id: approval.id, approved: true })}
        >
          Approve
        </button>
      ))}
      <form onSubmit={send}>
        <input type="file" ref={files} aria-label="File" />
        <input aria-label="Question" value={text} onChange={({ target }) => setText(target.value)} />
        <button>Send</button>
      </form>
    </main>
  );
}

function Own() {
  const { messages, status } = useConversation(id, { url: "/api" });
  useShown({ messages, status });
  return <main data-status={status}>{messages.length}</main>;
}

const stored = query.has("own") ? null : await (await fetch(`/api/chat/${id}`)).json();
createRoot(document.getElementById("root")).render(
  <StrictMode>{stored === null ? <Own /> : <Chat stored={stored} />}</StrictMode>,
);
