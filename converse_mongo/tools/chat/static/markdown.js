/**
 * Makes nodes of Markdown: markdown-it parses it, highlight.js colors code, and DOMPurify lets only
 * the elements and attributes below through.
 *
 * Raw HTML in a text is text. Nothing is loaded: images are links.
 */

import "/vendor/purify.js"; // defines the global below
import hljs from "/vendor/highlight.js";
import MarkdownIt from "/vendor/markdown-it.js";
import completed from "/vendor/remend.js";

const { DOMPurify } = globalThis;

const MAX_COLORED = 20_000;
const MAX_COMPLETED = 4_000;
const ADDRESS = /^(?:https?:\/\/|mailto:)/i;
const LANGUAGE = /^[\w+#.-]{1,30}/;
const TASK = /^\[([ xX])\]\s+/;
const MARK_ALONE = /^\s*(?:[-*+=#>|~`_:\s]+|\d{1,9}[.)]\s*)$/;
const OPENING_MARK = /(?<=^|\s)(?:[*_~`]{1,3}|!?\[)$/;
const OPEN_IMAGE = /^!\[[^\]]*(?:\]|\]\([^)]*)?$/;
const OUTER = new Set(["bullet_list_open", "ordered_list_open", "blockquote_open"]);
const BLANK = /^\s*$/;

const SAFE = {
  RETURN_DOM_FRAGMENT: true,
  ALLOWED_TAGS: [
    ..."a br button code del div em h3 h4 h5 h6 hr li ol p pre s span strong".split(" "),
    ..."blockquote table tbody td th thead tr ul #text".split(" "),
  ],
  ALLOWED_ATTR: "aria-label class href rel role start tabindex target type".split(" "),
  ADD_URI_SAFE_ATTR: "aria-label rel role start tabindex target type".split(" "),
  ALLOW_ARIA_ATTR: false,
  ALLOW_DATA_ATTR: false,
  ALLOWED_URI_REGEXP: ADDRESS,
};

const COMPLETED = {
  linkMode: "text-only",
  comparisonOperators: false,
  htmlTags: false,
  images: false,
  katex: false,
  setextHeadings: false,
  singleTilde: false,
};

const parser = new MarkdownIt({ html: false, linkify: true });
parser.linkify.set({ fuzzyLink: false, fuzzyEmail: false, fuzzyIP: false });
parser.linkify.add("ftp:", null).add("//", null);
parser.validateLink = (address) => ADDRESS.test(address);
// Lines stay as they were written: people paste code and poems.
parser.inline.ruler.at("newline", (state, silent) => {
  if (state.src[state.pos] !== "\n") return false;
  if (!silent) state.push("softbreak", "br", 0);
  state.pos += 1;
  return true;
});
parser.core.ruler.push("chat", ({ tokens, Token }) => adapt(tokens, Token));

const { escapeHtml } = parser.utils;
const { rules } = parser.renderer;
rules.softbreak = rules.hardbreak = () => "\n";
rules.table_open = () => '<div class="table" role="group" aria-label="Table" tabindex="0"><table>';
rules.table_close = () => "</table></div>";
rules.task = (tokens, at) => {
  const done = tokens[at].meta;
  return `<span class="${done ? "box done" : "box"}" role="img" aria-label="${
    done ? "Done" : "To do"
  }"></span>`;
};
rules.code_block = rules.fence = (tokens, at) => {
  const { content, info } = tokens[at];
  const language = LANGUAGE.exec(info)?.[0] ?? "";
  // Wide code scrolls. Keyboard users can scroll it only if it is focusable.
  return `<div class="code"><div class="code-head"><span>${escapeHtml(language || "code")}</span>${
    navigator.clipboard ? '<button type="button" class="quiet copy-code">Copy code</button>' : ""
  }</div><pre tabindex="0" role="group" aria-label="Code"><code>${
    colored(content.replace(/\n$/, ""), language)
  }</code></pre></div>`;
};

function colored(code, language) {
  if (code.length > MAX_COLORED || !hljs.getLanguage(language)) return escapeHtml(code);
  return hljs.highlight(code, { language, ignoreIllegals: true }).value;
}

/** Changes what the parser has found to what the page shows. */
function adapt(tokens, Token) {
  tokens.forEach((token, index) => {
    switch (token.type) {
      case "heading_open":
      case "heading_close":
        // The page has its own h1 and h2.
        token.tag = `h${Math.min(Number(token.tag[1]) + 2, 6)}`;
        break;
      case "paragraph_open":
        if (token.hidden) token.attrSet("class", "tight");
        token.hidden = false;
        break;
      case "paragraph_close":
        token.hidden = false;
        break;
      case "th_open":
      case "td_open": {
        const side = /right|center/.exec(token.attrGet("style") ?? "")?.[0];
        token.attrs = side ? [["class", side]] : null; // the policy forbids styles
        break;
      }
      case "inline":
        token.children = adaptInline(token.children, Token);
        if (tokens[index - 2]?.type === "list_item_open") adaptTask(tokens, index, Token);
        break;
      default:
    }
  });
}

/** Makes links open in a tab of their own, and images links. */
function adaptInline(children, Token) {
  const adapted = [];
  let depth = 0; // of links
  const link = (address) => {
    const open = new Token("link_open", "a", 1);
    open.attrs = [["href", address], ["target", "_blank"], ["rel", "noopener noreferrer nofollow"]];
    return open;
  };
  for (const token of children) {
    if (token.type === "link_open") {
      depth += 1;
      adapted.push(link(token.attrGet("href")));
    } else if (token.type === "image") {
      const text = new Token("text", "", 0);
      const address = token.attrGet("src");
      text.content = token.content || address;
      if (depth > 0) adapted.push(text);
      else adapted.push(link(address), text, new Token("link_close", "a", -1));
    } else {
      if (token.type === "link_close") depth -= 1;
      adapted.push(token);
    }
  }
  return adapted;
}

function adaptTask(tokens, index, Token) {
  const [first] = tokens[index].children;
  const mark = first?.type === "text" ? TASK.exec(first.content) : null;
  if (mark === null) return;
  const box = new Token("task", "span", 0);
  box.meta = mark[1] !== " ";
  first.content = first.content.slice(mark[0].length);
  tokens[index].children.unshift(box);
  tokens[index - 2].attrJoin("class", "task");
}

/** Groups tokens by what they are in at a level. */
function* groups(tokens, level) {
  let from = 0;
  for (let index = 0; index < tokens.length; index += 1) {
    if (tokens[index].level > level || tokens[index].nesting > 0) continue;
    yield tokens.slice(from, index + 1);
    from = index + 1;
  }
}

function parse(text, env) {
  const render = (tokens) => parser.renderer.render(tokens, parser.options, env);
  const blocks = [];
  for (const own of groups(parser.parse(text, env), 0)) {
    const [{ type, map }] = own;
    const isOuter = OUTER.has(type);
    const parts = isOuter ? [...groups(own.slice(1, -1), 1)] : [own];
    blocks.push({
      kind: type,
      line: map[0],
      open: isOuter ? render(own.slice(0, 1)) : "",
      parts: parts.map(render),
      close: isOuter ? render(own.slice(-1)) : "",
    });
  }
  return blocks;
}

/**
 * Splits Markdown into its outermost blocks.
 *
 * @param {string} text
 * @param {object} env What the parser knows from the text before; it adds what it finds.
 * @param {boolean} growing Whether the text goes on. What is open at its end is then shown as it
 *     will probably be when it is closed.
 * @returns {{kind: string, line: number, open: string, parts: string[], close: string}[]} Each with
 *     its first line and its markup, which is one element: with the parts of a list or a quote.
 */
export function blocksOf(text, env, growing) {
  if (!growing) return parse(text, env);
  // A mark that stands alone may become a list, a line, a heading, or one of the line before it.
  const start = text.lastIndexOf("\n") + 1;
  const end = text.slice(start);
  const blocks = parse(MARK_ALONE.test(end) && !BLANK.test(end) ? text.slice(0, start) : text, env);
  const last = blocks.at(-1);
  if (last === undefined || ["code_block", "fence", "hr"].includes(last.kind)) return blocks;
  const open = text.slice(offsetOf(last.line, text));
  if (open.length > MAX_COMPLETED) return blocks;
  const closed = close(open);
  if (closed === open) return blocks;
  const again = parse(closed, { references: { ...env.references } });
  return [...blocks.slice(0, -1), ...again.map((each) => ({ ...each, line: each.line + last.line }))];
}

/** Closes what is open at the end of a text, and leaves out marks that do not have a text yet. */
function close(text) {
  const image = text.lastIndexOf("![");
  const isOpen = image !== -1 && OPEN_IMAGE.test(text.slice(image));
  return completed((isOpen ? text.slice(0, image) : text).replace(OPENING_MARK, ""), COMPLETED);
}

/** Where a line of a text begins. */
export function offsetOf(line, text) {
  let offset = 0;
  for (let left = line; left > 0; left -= 1) offset = text.indexOf("\n", offset) + 1;
  return offset;
}

/** Makes the element of a block, or with a part alone that of the part. */
export function nodeOf({ open, parts, close }, part = null) {
  const markup = open + (part ?? parts.join("")) + close;
  const node = DOMPurify.sanitize(markup, SAFE).firstElementChild ?? document.createElement("p");
  return part === null ? node : node.firstElementChild ?? document.createElement("p");
}
