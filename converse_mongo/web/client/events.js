// @ts-check
/**
 * Server-sent events: a parser of the text of a stream.
 *
 * Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
 */

/**
 * @typedef {object} ServerSentEvent
 * @property {string} type The value of its `event` line, or "message".
 * @property {string} data Its `data` lines, joined.
 * @property {string} id The last `id` that was sent, with it or before it; "" if there is none.
 */

/**
 * Makes a function that receives pieces of a stream, cut anywhere, and reports the events in them.
 *
 * @param {(event: ServerSentEvent) => void} onEvent Called for each event that has data.
 * @param {(milliseconds: number) => void} [onRetry] Called for each `retry` line.
 * @returns {(text: string) => void}
 */
export function eventParser(onEvent, onRetry = () => {}) {
  let line = "";
  let afterReturn = false;
  let type = "";
  let id = "";
  /** @type {string[]} */
  let data = [];

  /** @param {string} text A line without its end. */
  function take(text) {
    if (text === "") {
      if (data.length > 0) onEvent({ type: type || "message", data: data.join("\n"), id });
      type = "";
      data = [];
      return;
    }
    const colon = text.indexOf(":");
    if (colon === 0) return; // a comment: a heartbeat
    const name = colon < 0 ? text : text.slice(0, colon);
    const value = colon < 0 ? "" : text.slice(colon + (text[colon + 1] === " " ? 2 : 1));
    if (name === "data") data.push(value);
    else if (name === "event") type = value;
    else if (name === "id" && !value.includes("\0")) id = value;
    else if (name === "retry" && /^[0-9]+$/.test(value)) onRetry(Number(value));
  }

  return (text) => {
    let from = 0;
    for (let index = 0; index < text.length; index += 1) {
      const character = text.charCodeAt(index);
      if (character === 10 && afterReturn) {
        from = index + 1; // the second half of one line end
      } else if (character === 10 || character === 13) {
        const whole = line + text.slice(from, index);
        line = "";
        from = index + 1;
        take(whole);
      }
      afterReturn = character === 13;
    }
    line += text.slice(from);
  };
}
