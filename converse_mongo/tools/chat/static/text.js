/** Shows texts in elements, and keeps the nodes of what did not change while a text grows. */

import { blocksOf, nodeOf, offsetOf } from "./markdown.js";

/** Creates an element with properties and children. */
export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/** Creates a button that is pressed once at a time. */
export function button(label, onClick) {
  const made = element("button", { type: "button", className: "quiet", textContent: label });
  let busy = false;
  made.addEventListener("click", async () => {
    if (busy) return;
    // Not `disabled`: that would take the focus away from keyboard users.
    busy = true;
    made.setAttribute("aria-disabled", "true");
    await onClick();
    busy = false;
    made.removeAttribute("aria-disabled");
  });
  return made;
}

/** Creates a button that copies a text; returns `null` if the browser does not let pages copy. */
export function copyButton(text) {
  if (!navigator.clipboard) return null;
  const button = element("button", { type: "button", className: "quiet", textContent: "Copy" });
  button.addEventListener("click", () => copy(button, text()));
  return button;
}

/** Copies a text, and says so on a button for a moment. */
async function copy(button, text) {
  let told = "Copied";
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    told = "Could not copy";
  }
  button.label ??= button.textContent;
  button.textContent = told;
  clearTimeout(button.timer);
  button.timer = setTimeout(() => {
    button.textContent = button.label;
  }, 1500);
}

/**
 * Markdown in an element, which may grow.
 *
 * Blocks that are complete are not parsed again, so that a token costs as much as the block that it
 * is in, however long the text before it is.
 */
export class Text {
  constructor() {
    this.node = element("div", { className: "text" });
    this.text = "";
    this.blocks = []; // that are shown
    this.begin();
    this.node.addEventListener("click", ({ target }) => {
      const button = target.closest(".copy-code");
      if (button) copy(button, button.closest(".code").querySelector("code").textContent);
    });
  }

  /** Forgets which blocks are complete, but not what is shown. */
  begin() {
    this.complete = 0; // the length of the complete blocks
    this.count = 0; // how many there are
    this.references = {}; // what they define
  }

  /**
   * Shows a text.
   *
   * @param {string} source
   * @param {boolean} growing Whether more may follow.
   */
  show(source, growing) {
    const text = source.includes("\r") ? source.replace(/\r\n?/g, "\n") : source;
    if (!text.startsWith(this.text.slice(0, this.complete))) this.begin();
    this.text = text;
    let rest = text.slice(this.complete);
    let env = { references: { ...this.references } };
    let blocks = blocksOf(rest, env, growing);
    if (!growing && this.complete > 0 && Object.keys(env.references ?? {}).length > 0) {
      // Links in complete blocks may be defined further down.
      this.begin();
      rest = text;
      env = {};
      blocks = blocksOf(rest, env, growing);
    }
    blocks.forEach((block, index) => this.put(this.count + index, block));
    this.blocks.length = this.count + blocks.length;
    while (this.node.childElementCount > blocks.length + this.count) this.node.lastChild.remove();
    this.markTip(growing);
    if (growing) this.complete += this.completeIn(rest, blocks, env);
    else this.begin();
  }

  put(index, block) {
    const before = this.blocks[index];
    const node = this.node.children[index];
    this.blocks[index] = block;
    if (!node) {
      this.node.append(nodeOf(block));
    } else if (before.open !== block.open || block.open === "") {
      if (before.open === block.open && before.parts[0] === block.parts[0]) return;
      patch(node, nodeOf(block));
    } else {
      block.parts.forEach((part, at) => {
        if (before.parts[at] === part) return;
        const next = nodeOf(block, part);
        if (node.children[at]) patch(node.children[at], next);
        else node.append(next);
      });
      while (node.childElementCount > block.parts.length) node.lastElementChild.remove();
    }
  }

  /** Marks where the next word will be. */
  markTip(growing) {
    this.tip?.removeAttribute("data-tip");
    this.tip = null;
    if (!growing) return;
    let tip = this.node.lastElementChild;
    while (tip?.matches("ul, ol, li, blockquote") && tip.lastElementChild) {
      tip = tip.lastElementChild;
    }
    if (!tip?.matches("p, h3, h4, h5, h6")) return;
    tip.dataset.tip = "";
    this.tip = tip;
  }

  /** The length of the blocks that no further text can change. */
  completeIn(rest, blocks, env) {
    // The first two lines of the block behind them are complete: that is a block of its own.
    const lines = rest.split("\n").length - 1;
    const index = blocks.findLastIndex(({ line }) => line + 2 <= lines);
    if (index < 1) return 0;
    const length = offsetOf(blocks[index].line, rest);
    this.count += index;
    if (Object.keys(env.references ?? {}).length > 0) {
      const known = { references: { ...this.references } };
      blocksOf(rest.slice(0, length), known, false);
      this.references = known.references;
    }
    return length;
  }
}

/** Makes an element like another, and keeps its nodes as far as they are alike. */
function patch(shown, next) {
  if (shown.nodeName !== next.nodeName) {
    shown.replaceWith(next);
  } else if (shown.nodeType === Node.TEXT_NODE) {
    const { data } = next;
    // What is selected stays selected if the text only grows.
    if (data.startsWith(shown.data)) shown.appendData(data.slice(shown.data.length));
    else shown.data = data;
  } else if (shown.localName !== "button") { // one may say that it has copied something
    for (const { name } of [...shown.attributes]) {
      if (!next.hasAttribute(name)) shown.removeAttribute(name);
    }
    for (const { name, value } of next.attributes) {
      if (shown.getAttribute(name) !== value) shown.setAttribute(name, value);
    }
    const after = [...next.childNodes];
    const before = [...shown.childNodes];
    after.forEach((node, index) => {
      if (before[index]) patch(before[index], node);
      else shown.append(node);
    });
    for (const node of before.slice(after.length)) node.remove();
  }
}
