// @ts-check
/** Snapshots for user interfaces, made at most once for a burst of changes. */

const FRAME = 16;

/**
 * @template T
 * @typedef {object} Snapshots
 * @property {() => T} get Returns the snapshot that was published last.
 * @property {(listener: () => void) => () => void} subscribe Calls `listener` after each published
 *     snapshot; returns a function that ends that.
 * @property {() => void} change Schedules a snapshot after a change.
 * @property {() => void} publish Publishes a snapshot now.
 * @property {() => void} close Ends publishing.
 */

/**
 * @template T
 * @param {() => T} build Makes a snapshot, or returns the last one if nothing has changed.
 * @param {number} [interval] The shortest time between two scheduled snapshots, in milliseconds; by
 *     default 16, since screens show no more.
 * @returns {Snapshots<T>}
 */
export function snapshots(build, interval = FRAME) {
  /** @type {Set<() => void>} */
  const listeners = new Set();
  let current = build();
  let published = -Infinity;
  let scheduled = false;
  let closed = false;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer;

  function publish() {
    if (closed) return;
    clearTimeout(timer);
    scheduled = false;
    published = performance.now();
    const next = build();
    if (next === current) return;
    current = next;
    for (const listener of [...listeners]) {
      if (!listeners.has(listener)) continue; // another listener removed it
      try {
        listener();
      } catch (error) {
        // The error is the listener's own: the others, and the stream, continue.
        reportLater(error);
      }
    }
  }

  return {
    get: () => current,
    subscribe: (listener) => {
      const own = () => listener(); // a function that is subscribed twice is two listeners
      listeners.add(own);
      return () => listeners.delete(own);
    },
    change: () => {
      if (scheduled || closed) return;
      scheduled = true;
      const pause = published + interval - performance.now();
      // A timer, since a page in the background has no animation frames.
      if (pause > 0) timer = setTimeout(publish, pause);
      else queueMicrotask(() => scheduled && publish());
    },
    publish,
    close: () => {
      closed = true;
      clearTimeout(timer);
      listeners.clear();
    },
  };
}

/** @param {unknown} error */
function reportLater(error) {
  queueMicrotask(() => {
    throw error;
  });
}
