/** What people can read of the error of a tool, which is often the response of a service in JSON. */

const NAMES = ["message", "error_description", "error", "errors", "detail", "details", "msg", "reason", "title"];
const DEEPEST = 5;
const MOST = 3; // of a list of errors
const LONGEST = 500;
const FAILED = "The tool failed.";
const LONG_NUMBER = /\d{16}/; // which loses digits when it is parsed

/**
 * Splits an error into the sentence that says what went wrong, and all of it if there is more.
 *
 * @param {string} text
 * @returns {{message: string, all: string | null}} `all` is indented JSON; `null` without JSON.
 */
export function readError(text) {
  const start = text.search(/[{[]/);
  const value = start === -1 ? undefined : parsed(text.slice(start));
  if (value === undefined) return { message: text, all: null };
  const before = text.slice(0, start).trim();
  const said = [before, messageIn(value, 0)].filter(Boolean).join(" ") || FAILED;
  const message = said.length > LONGEST ? `${said.slice(0, LONGEST)}…` : said;
  const all = LONG_NUMBER.test(text) ? text.slice(start) : JSON.stringify(value, null, 2);
  return { message, all };
}

/** An object or an array of JSON; `undefined` if it is none. */
function parsed(text) {
  try {
    const value = JSON.parse(text);
    return typeof value === "object" && value !== null ? value : undefined;
  } catch {
    return undefined;
  }
}

/** The message in a value, as services name and nest it; "" without one. */
function messageIn(value, depth) {
  if (typeof value === "string") return (depth < DEEPEST && nested(value, depth)) || value.trim();
  if (typeof value !== "object" || value === null || depth === DEEPEST) return "";
  if (Array.isArray(value)) {
    const each = value.map((one) => messageIn(one, depth + 1)).filter(Boolean);
    return each.slice(0, MOST).join("; ");
  }
  for (const name of NAMES) {
    const found = Object.hasOwn(value, name) ? messageIn(value[name], depth + 1) : "";
    if (found !== "") return found;
  }
  return "";
}

/** The message in a text that is JSON itself. */
function nested(text, depth) {
  const value = /^\s*[{[]/.test(text) ? parsed(text) : undefined;
  return value === undefined ? "" : messageIn(value, depth + 1);
}
