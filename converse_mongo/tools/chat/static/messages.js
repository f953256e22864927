/** Shows the messages of a conversation, and updates them while they stream. */

import { Parts } from "./parts.js";
import { button, copyButton, element } from "./text.js";
import { Waits, isWritten } from "./waits.js";

const INTERRUPTED = "The answer stopped because the process that wrote it is gone. Try again.";
const ENDS = new Set(["completed", "failed", "cancelled"]);
const LONGEST_ANNOUNCEMENT = 1500;

/**
 * A list of messages.
 *
 * `actions` has `retry(message)`, `resend(message)` and `answer(message, callId, approved)`, called for
 * the buttons; `announce(text)`, called when a visible answer ends, starts again, or waits for its
 * reader; `toggled()`, called when a part
 * was folded or unfolded; and `left()`, called when the element that had the focus is gone.
 */
export class MessageList {
  constructor(place, actions) {
    this.place = place;
    this.actions = actions;
    this.clear();
  }

  clear() {
    this.views = new Map();
    this.waiting = null;
    this.awaited = false; // the reader is waiting for an answer
    this.place.replaceChildren();
  }

  draw(messages, { waiting }) {
    const replaced = new Set(messages.map((each) => each.replaces).filter(Boolean));
    const shown = messages.filter((each) => !replaced.has(each.id));
    const last = shown.at(-1);
    const focused = this.place.contains(document.activeElement) ? document.activeElement : null;
    const gone = new Map(this.views);
    shown.forEach((message, index) => {
      let view = this.views.get(message.id);
      gone.delete(message.id);
      const isNew = !view;
      if (isNew) {
        view = new MessageView(message, this.actions);
        this.views.set(message.id, view);
      }
      view.draw(message, message === last);
      // It ended before it was drawn for the first time.
      const awaited = this.awaited || gone.has(message.replaces);
      if (isNew && message === last && awaited && view.isEnded()) view.tellEnd();
      const here = this.place.children[index];
      if (here !== view.node) this.place.insertBefore(view.node, here ?? null);
    });
    for (const [id, view] of gone) {
      view.node.remove();
      this.views.delete(id);
    }
    this.awaited = last?.role === "user" || last?.status === "streaming";
    this.drawWaiting(waiting && last?.role === "user");
    if (focused !== null && !focused.checkVisibility()) this.actions.left();
  }

  /** Shows that an answer is expected, until the answer itself appears. */
  drawWaiting(waiting) {
    if (!waiting) {
      this.waiting?.remove();
      this.waiting = null;
      return;
    }
    this.waiting ??= element("li", { className: "message assistant" }, typing());
    if (this.place.lastChild !== this.waiting) this.place.append(this.waiting);
  }
}

class MessageView {
  constructor(message, actions) {
    this.actions = actions;
    this.message = null;
    const who = message.role === "user" ? "You" : "Answer";
    this.parts = new Parts(() => actions.toggled());
    this.again = element("span", { className: "soft", textContent: "Starting again", hidden: true });
    this.typing = typing(this.again);
    this.waits = new Waits({
      answer: (callId, approved) => actions.answer(this.message, callId, approved),
      announce: (text) => actions.announce(text),
    });
    this.error = element("p", { className: "error" });
    this.facts = element("span", { className: "facts" });
    this.retry = button("Try again", () => actions.retry(this.message));
    this.resend = button("Send again", () => actions.resend(this.message));
    this.copy = copyButton(() => this.message.content);
    this.foot = element("div", { className: "foot" }, this.retry, this.resend);
    if (this.copy) this.foot.append(this.copy);
    this.foot.append(this.facts);
    this.node = element(
      "li",
      { className: `message ${message.role}` },
      element("h2", { className: "unseen", textContent: who }),
      this.parts.node,
      this.typing,
      this.waits.node,
      this.error,
      this.foot,
    );
  }

  draw(message, isLast) {
    const before = this.message;
    this.message = message;
    const { status, content, role, parts } = message;
    const streams = status === "streaming";
    const answer = role === "assistant";
    this.node.dataset.status = status;
    const written = isWritten(message);
    const isBusy = this.parts.draw(parts, { streams, written, files: filesOf(message) });
    if (before !== null && streams) this.drawAgain(before.parts, parts);
    this.typing.hidden = !(answer && written && !isBusy);
    this.waits.draw(message);

    const error = errorOf(message);
    this.error.hidden = error === "";
    if (this.error.textContent !== error) this.error.textContent = error;
    this.retry.hidden = !(answer && isLast && (status === "failed" || status === "cancelled"));
    this.resend.hidden = status !== "unsent";
    if (this.copy) this.copy.hidden = !answer || streams || content === "";
    const facts = factsOf(message);
    if (this.facts.textContent !== facts) this.facts.textContent = facts;
    this.foot.hidden = [...this.foot.children].every((each) => each.hidden || each === this.facts) &&
      facts === "";

    if (before?.status === "streaming" && this.isEnded()) this.tellEnd();
  }

  /** Says that an answer starts again, until there is something new. */
  drawAgain(before, parts) {
    if (before === parts) return;
    const [old, now] = [before, parts].map((each) => new Set(each.map(({ part }) => part)));
    if (before.some(({ part }) => !now.has(part))) {
      this.again.hidden = false;
      this.actions.announce("The answer is starting again.");
    } else if (parts.some(({ part }) => !old.has(part))) {
      this.again.hidden = true;
    }
  }

  isEnded() {
    return this.message.role === "assistant" && ENDS.has(this.message.status);
  }

  tellEnd() {
    this.actions.announce(this.spoken());
  }

  /** Returns the text that screen readers announce at the end of an answer. */
  spoken() {
    const { status, content } = this.message;
    const text = content.length > LONGEST_ANNOUNCEMENT
      ? `${content.slice(0, LONGEST_ANNOUNCEMENT)} The answer continues.`
      : content;
    if (status === "completed") return `Answer: ${text}`;
    if (status === "cancelled") return `The answer was stopped. ${text}`;
    return `${errorOf(this.message)} ${text}`;
  }
}

function typing(...more) {
  const dots = element("span", { className: "dots" }, element("i"), element("i"), element("i"));
  dots.setAttribute("aria-hidden", "true");
  return element(
    "p",
    { className: "typing" },
    dots,
    element("span", { className: "unseen", textContent: "The answer is being written" }),
    ...more,
  );
}

/** The address of the files that a message has itself, but for their numbers; `null` without one. */
function filesOf({ conversation_id: conversation, id, position }) {
  if (position === null) return null;
  return `/api/conversations/${conversation}/messages/${id}/files/`;
}

function errorOf(message) {
  if (message.status === "unsent") {
    // What the server says of files names them.
    const why = message.parts.some(({ kind }) => kind === "file") ? message.error : null;
    return ["This could not be sent.", why].filter(Boolean).join(" ");
  }
  if (message.status !== "failed") return "";
  return message.error?.startsWith("interrupted") ? INTERRUPTED : message.error || "The answer failed.";
}

/** Returns the line below an answer: the model, its cost, and how it ended. */
function factsOf(message) {
  if (message.role === "user") return message.status === "pending" ? "Sending" : "";
  if (message.status === "streaming") return "";
  const { model, usage, duration, finish_reason: reason } = message.metadata ?? {};
  const facts = [];
  if (message.status === "cancelled") facts.push(message.stop_reason ?? "Stopped");
  if (reason === "length") facts.push("Cut off: the answer reached the length limit");
  if (typeof model === "string") facts.push(model);
  const tokens = usage?.completion_tokens;
  if (typeof tokens === "number") facts.push(tokens === 1 ? "1 token" : `${tokens} tokens`);
  if (typeof duration === "number") facts.push(`${duration.toFixed(1)} s`);
  return facts.join(" · ");
}
