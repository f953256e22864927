/** Shows what an answer waits for that nobody is writing now: its turn, or its reader. */

import { nameOf } from "./parts.js";
import { button, element } from "./text.js";

const IN_LINE = "Waiting in line";
const AGAIN = "Starting again";
export const FOR_YOU = "Waits for you";
const FOR_OTHERS = "Waits for an answer";

/** Whether an answer that has not ended is being written now. */
export function isWritten({ status, work }) {
  return status === "streaming" && (work === undefined || work.state === "running");
}

/** What the reader is to approve, of what an answer waits for. */
export function approvalsOf({ pending }) {
  return (pending ?? []).filter(({ wanted }) => wanted === "approval");
}

/**
 * What an answer waits for, in an element. `answer(callId, approved)` is called for the buttons, and
 * `announce(text)` when the answer begins to wait for its reader, or is to start again.
 */
export class Waits {
  constructor({ answer, announce }) {
    this.answer = answer;
    this.announce = announce;
    this.text = element("span", { className: "soft" });
    this.calls = element("ul", { className: "calls" });
    this.node = element("div", { className: "waits", hidden: true }, this.text, this.calls);
    this.rows = new Map();
  }

  draw(message) {
    const { status, work, parts } = message;
    const waits = status === "streaming" && !isWritten(message);
    this.node.hidden = !waits;
    const approvals = waits ? approvalsOf(work) : [];
    const text = waits ? textOf(work, approvals) : "";
    if (this.text.textContent !== text) {
      this.text.textContent = text;
      if (text === FOR_YOU) this.announce("The answer waits for you: approve or decline.");
      if (text === AGAIN) this.announce("The answer is starting again.");
    }
    this.drawCalls(approvals, parts);
  }

  drawCalls(approvals, parts) {
    const gone = new Set(this.rows.keys());
    approvals.forEach(({ call_id: id }, index) => {
      gone.delete(id);
      const call = parts.findLast(({ kind, fields }) => kind === "tool_call" && fields.call_id === id);
      const name = call === undefined ? "Tool" : nameOf(call);
      let row = this.rows.get(id);
      if (row === undefined) this.rows.set(id, (row = this.row(id)));
      if (row.name.textContent !== name) row.name.textContent = name;
      for (const [action, label] of [[row.approve, "Approve"], [row.decline, "Decline"]]) {
        action.setAttribute("aria-label", `${label}: ${name}`);
      }
      if (this.calls.children[index] !== row.node) {
        this.calls.insertBefore(row.node, this.calls.children[index] ?? null);
      }
    });
    for (const id of gone) {
      this.rows.get(id).node.remove();
      this.rows.delete(id);
    }
    this.calls.hidden = approvals.length === 0;
  }

  row(id) {
    const name = element("span");
    const approve = button("Approve", () => this.answer(id, true));
    const decline = button("Decline", () => this.answer(id, false));
    return { name, approve, decline, node: element("li", {}, name, approve, decline) };
  }
}

function textOf({ state, attempt }, approvals) {
  if (state === "waiting") return approvals.length > 0 ? FOR_YOU : FOR_OTHERS;
  return attempt > 1 ? AGAIN : IN_LINE;
}
