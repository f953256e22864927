/**
 * Server-sent events, from text as it comes over the wire.
 *
 * Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
 */
/**
 * @typedef {object} ServerSentEvent
 * @property {string} type What stands in its `event` line, or "message".
 * @property {string} data Its `data` lines, joined.
 * @property {string} id The last `id` that was sent, with it or before it; "" for none.
 */
/**
 * Makes a function that takes pieces of a stream, cut anywhere, and tells of what they complete.
 *
 * @param {(event: ServerSentEvent) => void} onEvent Called for each event that has data.
 * @param {(milliseconds: number) => void} [onRetry] Called for each `retry` line.
 * @returns {(text: string) => void}
 */
export function eventParser(onEvent: (event: ServerSentEvent) => void, onRetry?: (milliseconds: number) => void): (text: string) => void;
export type ServerSentEvent = {
    /**
     * What stands in its `event` line, or "message".
     */
    type: string;
    /**
     * Its `data` lines, joined.
     */
    data: string;
    /**
     * The last `id` that was sent, with it or before it; "" for none.
     */
    id: string;
};
