// One chat as an application shows it with the AI SDK. There is no transport of its own here, no
// callback and no line that adapts anything: the endpoints have to be what useChat expects. What
// the SDK cannot do is the documented one: its stop() only disconnects, so the answer is stopped by
// a request besides.

import { useChat } from "@ai-sdk/react";
import { StrictMode, useEffect, useState } from "react";
import { createRoot } from "react-dom/client";

const id = new URLSearchParams(location.search).get("chat");

function Message({ message }) {
  return (
    <li data-role={message.role} data-id={message.id}>
      {message.parts.map((part, index) => (
        <p key={index} data-state={part.state}>
          {part.type === "text" ? part.text : `[${part.type}]`}
        </p>
      ))}
      {message.metadata && <code>{JSON.stringify(message.metadata)}</code>}
    </li>
  );
}

function Chat({ stored }) {
  const { messages, status, error, sendMessage, regenerate, stop } = useChat({
    id,
    messages: stored,
    resume: true,
  });
  const [question, setQuestion] = useState("");
  const [stopping, setStopping] = useState(false);
  // Two in StrictMode, which this page is there for as well.
  useEffect(() => {
    document.body.dataset.effects = Number(document.body.dataset.effects ?? 0) + 1;
  }, []);

  const ask = (event) => {
    event.preventDefault();
    sendMessage({ text: question });
    setQuestion("");
  };
  const stopAnswer = async () => {
    // The answer may end before stop() is called, which would stop what is sent between the two.
    setStopping(true);
    try {
      const headers = { "content-type": "application/json" };
      await fetch(`/api/chat/${id}/stop`, { method: "POST", headers });
      await stop();
    } finally {
      setStopping(false);
    }
  };

  const busy = stopping || status === "submitted" || status === "streaming";
  return (
    <main data-status={status}>
      <ol>
        {messages.map((message) => (
          <Message key={message.id} message={message} />
        ))}
      </ol>
      {error && <p role="alert">{error.message}</p>}
      <p>
        Status: <output>{status}</output>{" "}
        {busy && <button onClick={stopAnswer}>Stop</button>}
        {!busy && messages.length > 0 && <button onClick={() => regenerate()}>Again</button>}
      </p>
      <form onSubmit={ask}>
        <input
          aria-label="Question"
          value={question}
          onChange={(event) => setQuestion(event.target.value)}
        />
        <button disabled={busy}>Send</button>
      </form>
    </main>
  );
}

const response = await fetch(`/api/chat/${id}`);
createRoot(document.getElementById("root")).render(
  <StrictMode>
    {response.ok ? (
      <Chat stored={await response.json()} />
    ) : (
      <p role="alert">There is no such chat: {response.status}</p>
    )}
  </StrictMode>,
);
