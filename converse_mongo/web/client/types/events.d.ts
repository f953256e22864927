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
export function eventParser(onEvent: (event: ServerSentEvent) => void, onRetry?: (milliseconds: number) => void): (text: string) => void;
export type ServerSentEvent = {
    /**
     * The value of its `event` line, or "message".
     */
    type: string;
    /**
     * Its `data` lines, joined.
     */
    data: string;
    /**
     * The last `id` that was sent, with it or before it; "" if there is none.
     */
    id: string;
};
