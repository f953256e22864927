/**
 * Renders text as nodes: paragraphs, lists, headings and code, and no markup from the text itself.
 *
 * All text becomes text nodes, so there is no markup to escape. An answer is drawn repeatedly while
 * it grows; only the blocks that changed are created again.
 */

// Each of these matches in one way only, so that no text takes longer than its length: what follows
// a mark is not part of the pattern, and inline marks are looked for one by one.
const FENCE = /^ {0,3}(`{3,}|~{3,})/;
const LANGUAGE = /^[\w+#.-]*/;
const HEADING = /^(#{1,6})\s/;
const BULLET = /^\s{0,3}[-*+]\s/;
const NUMBER = /^\s{0,3}(\d{1,9})[.)]\s/;
const MARK = /`+|\*\*|https?:\/\//g;
const LINK = /[^\s<>"'`]*/y;
const AFTER_LINK = ".,;:!?)]";

/** Splits a text into blocks, each with its source. */
function blocksOf(text) {
  const lines = text.split("\n");
  const blocks = [];
  let index = 0;
  const add = (kind, from, fields) => {
    blocks.push({ kind, source: kind + lines.slice(from, index).join("\n"), ...fields });
  };
  while (index < lines.length) {
    const from = index;
    const line = lines[index];
    const fence = fenceOf(line);
    if (line.trim() === "") {
      index += 1;
    } else if (fence) {
      const body = [];
      index += 1;
      while (index < lines.length && !isEnd(lines[index], fence.marks)) body.push(lines[index++]);
      index += 1; // a fence that is still open extends to the end
      add("code", from, { language: fence.language, text: body.join("\n") });
    } else if (HEADING.test(line)) {
      index += 1;
      const [mark, marks] = HEADING.exec(line);
      add("heading", from, { level: marks.length, text: line.slice(mark.length).trim() });
    } else if (BULLET.test(line) || NUMBER.test(line)) {
      const pattern = BULLET.test(line) ? BULLET : NUMBER;
      const items = []; // each of lines
      const start = pattern === NUMBER ? Number(NUMBER.exec(line)[1]) : 1;
      while (index < lines.length) {
        const next = lines[index];
        const item = pattern.exec(next);
        if (item) items.push([next.slice(item[0].length).trim()]);
        else if (/^\s/.test(next) && next.trim() !== "") items.at(-1).push(next.trim());
        else break;
        index += 1;
      }
      const kind = pattern === BULLET ? "bullets" : "numbers";
      add(kind, from, { items: items.map((each) => each.join("\n")), start });
    } else {
      while (index < lines.length && isPlain(lines[index])) index += 1;
      add("paragraph", from, { text: lines.slice(from, index).join("\n") });
    }
  }
  return blocks;
}

/** The marks and the language of a line that begins code; `null` of all others. */
function fenceOf(line) {
  const found = FENCE.exec(line);
  if (!found) return null;
  const rest = line.slice(found[0].length).trimStart();
  return rest.includes("`") ? null : { marks: found[1], language: LANGUAGE.exec(rest)[0] };
}

function isEnd(line, fence) {
  const trimmed = line.trim();
  return trimmed.startsWith(fence) && trimmed.replaceAll(fence[0], "") === "";
}

function isPlain(line) {
  return line.trim() !== "" && !fenceOf(line) && !HEADING.test(line) && !BULLET.test(line) &&
    !NUMBER.test(line);
}

/** Creates an element with properties and children. */
export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/** Appends a text, with its code, strong text and links. */
function inline(parent, text) {
  const marks = [...text.matchAll(MARK)];
  const closing = closingMarks(marks, text);
  let from = 0;
  marks.forEach((mark, index) => {
    const at = mark.index;
    if (at < from) return; // inside of what is shown already
    const end = closing.get(index);
    let node = null;
    let until = end === undefined ? at : marks[end].index + marks[end][0].length;
    if (mark[0].startsWith("http")) {
      const address = linkAt(at, mark[0], text);
      if (address === null) return;
      const link = { href: address, textContent: address, target: "_blank" };
      node = element("a", { ...link, rel: "noopener noreferrer nofollow" });
      until = at + address.length;
    } else if (end !== undefined) {
      const inner = text.slice(at + mark[0].length, marks[end].index);
      if (mark[0] === "**") node = inline(element("strong"), inner);
      else node = element("code", { textContent: inner });
    }
    if (node === null) return;
    parent.append(text.slice(from, at), node);
    from = until;
  });
  parent.append(text.slice(from));
  return parent;
}

/** The index of the mark that closes each mark of code and strong text, by the index of that. */
function closingMarks(marks, text) {
  const closing = new Map();
  const later = new Map(); // the nearest mark behind, by what it closes
  for (let index = marks.length - 1; index >= 0; index -= 1) {
    const { 0: mark, index: at } = marks[index];
    const end = later.get(mark);
    if (mark === "**") {
      const opens = /\S/.test(text.charAt(at + 2));
      if (opens && end !== undefined && marks[end].index > at + 2) closing.set(index, end);
      if (/\S/.test(text.charAt(at - 1))) later.set(mark, index);
    } else if (mark[0] === "`") {
      if (end !== undefined) closing.set(index, end);
      later.set(mark, index);
    }
  }
  return closing;
}

/** The address at an index, without what ends the sentence that it is in; `null` if it is empty. */
function linkAt(at, scheme, text) {
  LINK.lastIndex = at;
  const address = LINK.exec(text)[0];
  let end = address.length;
  while (AFTER_LINK.includes(address[end - 1])) end -= 1;
  return end > scheme.length ? address.slice(0, end) : null;
}

function nodeFor(block) {
  switch (block.kind) {
    case "code":
      return codeBlock(block);
    case "heading":
      // The page has its own h1 and h2.
      return inline(element(`h${Math.min(block.level + 2, 6)}`), block.text);
    case "bullets":
    case "numbers": {
      const list = element(block.kind === "bullets" ? "ul" : "ol");
      if (block.kind === "numbers") list.start = block.start;
      list.append(...block.items.map((item) => inline(element("li"), item)));
      return list;
    }
    default:
      return inline(element("p"), block.text);
  }
}

function codeBlock(block) {
  const head = element("div", { className: "code-head" });
  head.append(element("span", { textContent: block.language || "code" }));
  const code = element("code", { textContent: block.text });
  const copy = copyButton(() => code.textContent, "Copy code");
  if (copy) head.append(copy);
  // Wide code scrolls. Keyboard users can scroll it only if it is focusable.
  const body = element("pre", { tabIndex: 0 }, code);
  body.setAttribute("role", "group");
  body.setAttribute("aria-label", "Code");
  const node = element("div", { className: "code" }, head, body);
  node.update = (next) => {
    code.textContent = next.text;
    head.firstChild.textContent = next.language || "code";
  };
  return node;
}

/** Creates a button that copies a text; returns `null` if the browser does not let pages copy. */
export function copyButton(text, label = "Copy") {
  if (!navigator.clipboard) return null;
  const button = element("button", { type: "button", className: "quiet", textContent: label });
  let timer;
  button.addEventListener("click", async () => {
    let told = "Copied";
    try {
      await navigator.clipboard.writeText(text());
    } catch {
      told = "Could not copy";
    }
    button.textContent = told;
    clearTimeout(timer);
    timer = setTimeout(() => {
      button.textContent = label;
    }, 1500);
  });
  return button;
}

/** Shows a text in an element, and keeps the blocks that did not change. */
export function showText(parent, text) {
  const blocks = blocksOf(text);
  const shown = parent.shownBlocks ?? [];
  blocks.forEach((block, index) => {
    const before = shown[index];
    if (before?.source === block.source) {
      block.node = before.node;
    } else if (before?.kind === "code" && block.kind === "code") {
      block.node = before.node; // keeps its scroll position and its focus
      block.node.update(block);
    } else {
      block.node = nodeFor(block);
      if (before) before.node.replaceWith(block.node);
      else parent.append(block.node);
    }
  });
  for (const gone of shown.slice(blocks.length)) gone.node.remove();
  parent.shownBlocks = blocks;
}
