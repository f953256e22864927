/**
 * Shows the parts of a message: its text, and what the answer has beside it, folded.
 *
 * Whatever is in a part comes from a model, a tool or another user: it is shown as text.
 */

import { toolCallState } from "/client/index.js";
import { readError } from "./errors.js";
import { Text, element } from "./text.js";

const LONGEST_VALUE = 20_000;
const LONGEST_NAME = 200;
const REMOVED = "This content was removed.";
const ADDRESS = /^https?:\/\//i;
const OWN_FILE = /^data:[^,]{0,300};base64,/i;
export const IMAGES = new Set(["image/png", "image/jpeg", "image/gif", "image/webp", "image/avif"]);
const SOURCES = new Set(["source_url", "source_document"]);
const UNSEEN = new Set(["step", "hidden"]);
const STATES = {
  "input-streaming": "Preparing…",
  "input-available": "Waiting…",
  "approval-requested": "Needs approval",
  "approval-responded": "Approved",
  "running": "Working…",
  "output-available": "Done",
  "output-error": "Failed",
  "output-denied": "Not allowed",
  "interrupted": "Stopped",
};
const STALLED = new Set(["input-streaming", "running"]); // unless somebody is at it
const OPEN_STATES = new Set(Object.keys(STATES).slice(0, 5));

/** The parts of a message in an element. `onToggle` is called when the reader folds one. */
export class Parts {
  constructor(onToggle) {
    this.level = new Level(onToggle);
    this.node = this.level.node;
  }

  /**
   * Shows parts; what did not change stays as it is.
   *
   * @param {readonly object[]} parts
   * @param {{streams: boolean, written: boolean, files: string | null}} state Whether more may follow,
   *     whether somebody is writing it now, and the address of the message's own files, but for their
   *     numbers; `null` if it is not stored.
   * @returns {boolean} Whether the reader sees that something goes on.
   */
  draw(parts, state) {
    const children = new Map();
    for (const part of parts) {
      if (!children.has(part.parent)) children.set(part.parent, []);
      children.get(part.parent).push(part);
    }
    return this.level.draw({ children, ...state }, undefined);
  }
}

/** The parts with one parent: of the answer, or of one sub-agent. */
class Level {
  constructor(onToggle) {
    this.onToggle = onToggle;
    this.node = element("div", { className: "parts" });
    this.views = new Map();
    this.sources = new Sources();
  }

  draw(all, parent) {
    const parts = all.children.get(parent) ?? [];
    const gone = new Set(this.views.keys());
    const nodes = [];
    let isBusy = false;
    for (const part of parts) {
      const Kind = viewOf(part, all);
      if (Kind === null) continue;
      let view = this.views.get(part.part);
      if (view?.constructor !== Kind) {
        view?.node.remove();
        view = new Kind(this.onToggle);
        this.views.set(part.part, view);
      }
      gone.delete(part.part);
      isBusy = view.draw(part, all) || isBusy;
      nodes.push(view.node);
    }
    for (const number of gone) {
      this.views.get(number).node.remove();
      this.views.delete(number);
    }
    if (this.sources.draw(parts.filter(({ kind }) => SOURCES.has(kind)))) {
      nodes.push(this.sources.node);
    } else {
      this.sources.node.remove();
    }
    nodes.forEach((node, index) => {
      const here = this.node.children[index];
      if (here !== node) this.node.insertBefore(node, here ?? null);
    });
    return isBusy;
  }
}

/** The class of what shows a part; `null` if there is nothing to see. */
function viewOf(part, all) {
  const { kind, text, redacted } = part;
  if (UNSEEN.has(kind) || SOURCES.has(kind)) return null;
  if (redacted) return RemovedView;
  if (kind === "text") return text === "" ? null : TextView;
  if (kind === "reasoning") return text === "" && !grows(part, all) ? null : ReasoningView;
  if (kind === "tool_call") return ToolCallView;
  return kind === "file" ? FileView : DataView;
}

function grows({ closed }, { written }) {
  return written && closed !== true;
}

class RemovedView {
  node = element("p", { className: "removed", textContent: REMOVED });

  draw() {
    return false;
  }
}

class TextView {
  constructor() {
    this.markdown = new Text();
    this.node = this.markdown.node;
  }

  draw(part, all) {
    const growing = grows(part, all);
    if (this.part !== part || this.growing !== growing) this.markdown.show(part.text, growing);
    this.part = part;
    this.growing = growing;
    return growing;
  }
}

class FileView {
  node = element("p", { className: "file" });

  draw(part, { files }) {
    if (this.part === part) return false;
    this.part = part;
    const { name, url, media_type: type, size } = part.fields;
    const isImage = IMAGES.has(type);
    const label = line(name) || (isImage ? "Image" : "File");
    const facts = [line(type), typeof size === "number" ? bytes(size) : ""].filter(Boolean).join(", ");
    const isOwn = OWN_FILE.test(url) || part.values?.url !== undefined;
    // Others see who loads an image from their sites: those are links, which the reader follows or not.
    const address = files === null ? null : `${files}${part.part}`;
    const link = isOwn ? ownLink(address, label) : linkTo(url, label);
    this.node.replaceChildren(link);
    if (facts !== "") this.node.append(" ", element("span", { className: "soft", textContent: facts }));
    if (isOwn && isImage && address !== null) this.node.prepend(preview(address, label));
    return false;
  }
}

/** Something folded: it is drawn while it is open, since nobody sees it before. */
class FoldedView {
  constructor(onToggle) {
    this.name = element("span", { className: "fold-name" });
    this.state = element("span", { className: "fold-state" });
    this.body = element("div", { className: "fold-body" });
    const title = element("span", { className: "fold-title" }, this.name, " ", this.state);
    const summary = element("summary", {}, title);
    this.node = element("details", { className: "fold" }, summary, this.body);
    this.isOwn = false; // whether the next event is not of the reader
    this.node.addEventListener("toggle", () => {
      if (this.node.open) this.drawBody(this.part, this.all);
      if (!this.isOwn) onToggle();
      this.isOwn = false;
    });
  }

  /** Folds or unfolds it without the reader. */
  fold(isFolded) {
    if (this.node.open !== isFolded) return;
    this.isOwn = true;
    this.node.open = !isFolded;
  }

  draw(part, all) {
    const isBusy = this.drawSummary(part, all);
    this.node.classList.toggle("busy-fold", isBusy);
    this.part = part;
    this.all = all;
    if (this.node.open) this.drawBody(part, all);
    return isBusy;
  }

  say(name, state = "") {
    if (this.name.textContent !== name) this.name.textContent = name;
    if (this.state.textContent !== state) this.state.textContent = state;
  }
}

class ReasoningView extends FoldedView {
  constructor(onToggle) {
    super(onToggle);
    this.node.classList.add("reasoning");
  }

  drawSummary(part, all) {
    const growing = grows(part, all);
    this.say(growing ? "Thinking…" : "Thought for a while");
    return growing;
  }

  drawBody(part, all) {
    this.text ??= new TextView();
    this.text.draw(part, all);
    if (!this.text.node.isConnected) this.body.append(this.text.node);
  }
}

class ToolCallView extends FoldedView {
  constructor(onToggle) {
    super(onToggle);
    this.input = new Value();
    this.output = new Value();
    this.error = new ErrorView(onToggle);
    this.nested = new Level(onToggle);
    this.body.append(this.input.node, this.nested.node, this.output.node, this.error.node);
  }

  drawSummary(call, { streams, written }) {
    const state = toolCallState(call, !streams);
    const isStalled = !written && STALLED.has(state);
    this.say(nameOf(call), STATES[isStalled ? "input-available" : state]);
    const before = this.node.dataset.state;
    if (state !== before) {
      this.node.dataset.state = state;
      // Readers must see what they approve.
      if (state === "approval-requested") this.fold(false);
      else if (before === "approval-requested" && !this.node.contains(document.activeElement)) this.fold(true);
    }
    return written && OPEN_STATES.has(state);
  }

  drawBody(part, all) {
    this.nested.draw(all, part.part);
    if (this.drawn === part) return;
    this.drawn = part;
    const { fields, text, values = {} } = part;
    if ("input" in fields || !text) this.input.draw("Input", fields, values, "input");
    else this.input.draw("Input", { input: text }, {}, "input");
    this.output.draw(fields.preliminary === true ? "Result so far" : "Result", fields, values, "output");
    const hasError = "error" in fields || "error" in values;
    this.error.draw(hasError ? readable(fields, values, "error") : "");
  }
}

/** What went wrong, as a sentence; what else a service has said of it is folded. */
class ErrorView {
  constructor(onToggle) {
    this.message = element("p");
    this.all = new Value();
    const title = element("span", { className: "fold-title", textContent: "Details" });
    this.fold = element("details", { className: "fold" }, element("summary", {}, title), this.all.node);
    this.fold.addEventListener("toggle", onToggle);
    this.node = element("div", { className: "error" }, this.message);
  }

  draw(text) {
    const { message, all } = readError(text);
    this.node.hidden = text === "";
    this.message.textContent = message;
    if (all === null) {
      this.fold.remove();
      return;
    }
    this.all.draw("Error", { all }, {}, "all");
    this.node.append(this.fold);
  }
}

class DataView extends FoldedView {
  drawSummary({ kind, fields }) {
    this.say(words(kind === "data" ? fields.name : kind) || "Data");
    return false;
  }

  drawBody(part) {
    if (this.drawn === part) return;
    this.drawn = part;
    this.value ??= new Value();
    const { kind, fields, values = {} } = part;
    if (kind === "data") this.value.draw("Data", fields, values, "data");
    else this.value.draw("Data", { fields }, {}, "fields");
    if (!this.value.node.isConnected) this.body.append(this.value.node);
  }
}

/** A value of JSON, with its name above it. */
class Value {
  constructor() {
    this.label = element("p", { className: "label" });
    // Long values scroll. Keyboard users can scroll them only if they are focusable.
    this.value = element("pre", { tabIndex: 0 });
    this.value.setAttribute("role", "group");
    this.node = element("div", { className: "value" }, this.label, this.value);
  }

  draw(label, fields, values, name) {
    this.node.hidden = !(name in fields || name in values);
    if (this.node.hidden) return;
    this.label.textContent = label;
    this.value.setAttribute("aria-label", label);
    const text = readable(fields, values, name);
    const shown = this.value.firstChild;
    // What is selected stays selected if the text only grows.
    if (shown && text.startsWith(shown.data)) shown.appendData(text.slice(shown.data.length));
    else this.value.textContent = text;
  }
}

/** The sources of an answer, each once. */
class Sources {
  constructor() {
    this.node = element("ul", { className: "sources" });
    this.node.setAttribute("aria-label", "Sources");
    this.parts = [];
  }

  draw(parts) {
    const isSame = parts.length === this.parts.length && parts.every((each, at) => each === this.parts[at]);
    this.parts = parts;
    if (isSame) return parts.length > 0;
    const known = new Set();
    const items = [];
    for (const { fields, redacted } of parts) {
      const { url, title, filename } = fields;
      const label = redacted ? REMOVED : line(title) || line(filename) || addressOf(url)?.host || line(url) || "Source";
      const key = redacted || typeof url !== "string" ? label : url;
      if (known.has(key)) continue;
      known.add(key);
      items.push(element("li", {}, redacted ? label : linkTo(url, label)));
    }
    this.node.replaceChildren(...items);
    return items.length > 0;
  }
}

/** A link to a file that a message has itself; text until it is stored. */
function ownLink(address, label) {
  if (address === null) return element("span", { textContent: label });
  return element("a", { href: address, download: label, textContent: label });
}

/** An image that is gone if it cannot be shown: its name is below it. */
function preview(address, label) {
  const image = element("img", { className: "preview", alt: label, loading: "lazy" });
  image.addEventListener("error", () => image.remove());
  image.src = address;
  return image;
}

/** What a tool call is named for its reader. */
export function nameOf({ fields }) {
  return line(fields.title) || words(fields.name) || "Tool";
}

/** A link that opens in a tab of its own; text if the address is not one of the web. */
function linkTo(url, label) {
  const address = addressOf(url);
  if (address === null) return element("span", { textContent: label });
  const link = element("a", { href: address.href, target: "_blank", textContent: label });
  link.rel = "noopener noreferrer nofollow";
  return link;
}

/** An address of the web; `null` if it is none. */
function addressOf(url) {
  try {
    return ADDRESS.test(url) ? new URL(url) : null;
  } catch {
    return null;
  }
}

/** A string in one line; "" for what is none. */
function line(value) {
  return typeof value === "string" ? value.trim().replace(/\s+/g, " ").slice(0, LONGEST_NAME) : "";
}

/** The name of a tool as words. */
function words(name) {
  const text = line(typeof name === "string" ? name.replace(/[_-]+/g, " ") : name);
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/** A field as text, as far as people read. */
function readable(fields, values, name) {
  if (!(name in fields)) return `This is too large to be shown (${bytes(values[name]?.size)}).`;
  const value = fields[name];
  const text = typeof value === "string" ? value : JSON.stringify(value, null, 2);
  const more = text.length - LONGEST_VALUE;
  if (more <= 0) return text;
  return `${text.slice(0, LONGEST_VALUE)}\n… and ${more.toLocaleString("en-US")} more characters`;
}

/** A size in bytes, in words. */
export function bytes(size) {
  if (!(size >= 1000)) return `${Number(size) || 0} bytes`;
  const [unit, divisor] = size < 1e6 ? ["kB", 1e3] : ["MB", 1e6];
  return `${(size / divisor).toFixed(size / divisor < 10 ? 1 : 0)} ${unit}`;
}
