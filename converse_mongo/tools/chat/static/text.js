/**
 * Renders text as nodes: paragraphs, lists, headings and code, and no markup from the text itself.
 *
 * All text becomes text nodes, so there is no markup to escape. An answer is drawn repeatedly while
 * it grows; only the blocks that changed are created again.
 */

const FENCE = /^ {0,3}(```+|~~~+)\s*([\w+#.-]*)[^`]*$/;
const HEADING = /^(#{1,6})\s+(.*)$/;
const BULLET = /^\s{0,3}[-*+]\s+(.*)$/;
const NUMBER = /^\s{0,3}(\d{1,9})[.)]\s+(.*)$/;
const INLINE = /(`+)([^`](?:.*?[^`])?)\1(?!`)|\*\*(\S(?:.*?\S)?)\*\*|(https?:\/\/[^\s<>"'`]*[^\s<>"'`.,;:!?)\]])/gs;

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
    const fence = FENCE.exec(line);
    if (line.trim() === "") {
      index += 1;
    } else if (fence) {
      const body = [];
      index += 1;
      while (index < lines.length && !isEnd(lines[index], fence[1])) body.push(lines[index++]);
      index += 1; // a fence that is still open extends to the end
      add("code", from, { language: fence[2], text: body.join("\n") });
    } else if (HEADING.test(line)) {
      index += 1;
      const [, marks, heading] = HEADING.exec(line);
      add("heading", from, { level: marks.length, text: heading });
    } else if (BULLET.test(line) || NUMBER.test(line)) {
      const pattern = BULLET.test(line) ? BULLET : NUMBER;
      const items = [];
      const start = pattern === NUMBER ? Number(NUMBER.exec(line)[1]) : 1;
      while (index < lines.length) {
        const item = pattern.exec(lines[index]);
        if (item) items.push(item.at(-1));
        else if (/^\s+\S/.test(lines[index])) items[items.length - 1] += `\n${lines[index].trim()}`;
        else break;
        index += 1;
      }
      add(pattern === BULLET ? "bullets" : "numbers", from, { items, start });
    } else {
      while (index < lines.length && isPlain(lines[index])) index += 1;
      add("paragraph", from, { text: lines.slice(from, index).join("\n") });
    }
  }
  return blocks;
}

function isEnd(line, fence) {
  const trimmed = line.trim();
  return trimmed.startsWith(fence) && trimmed.replaceAll(fence[0], "") === "";
}

function isPlain(line) {
  return line.trim() !== "" && !FENCE.test(line) && !HEADING.test(line) && !BULLET.test(line) &&
    !NUMBER.test(line);
}

/** Creates an element with properties and children. */
export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function inline(parent, text) {
  let from = 0;
  for (const match of text.matchAll(INLINE)) {
    parent.append(text.slice(from, match.index));
    from = match.index + match[0].length;
    if (match[2] !== undefined) {
      parent.append(element("code", { textContent: match[2] }));
    } else if (match[3] !== undefined) {
      inline(parent.appendChild(element("strong")), match[3]);
    } else {
      const link = { href: match[4], textContent: match[4], target: "_blank" };
      parent.append(element("a", { ...link, rel: "noopener noreferrer nofollow" }));
    }
  }
  parent.append(text.slice(from));
  return parent;
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
