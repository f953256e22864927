// @ts-check
/** Snapshots: what a user interface is shown, made anew at most once for a burst of changes. */

const FRAME = 16;

/**
 * @template T
 * @typedef {object} Snapshots
 * @property {() => T} get The snapshot that was published last.
 * @property {(listener: () => void) => () => void} subscribe Calls `listener` after each snapshot
 *     that is published; returns what ends that.
 * @property {() => void} change Says that something changed: a snapshot is published soon.
 * @property {() => void} publish Publishes one now.
 * @property {() => void} close Nothing is published any more.
 */

/**
 * @template T
 * @param {() => T} build Makes a snapshot; the one before if it says the same.
 * @param {number} [interval] Milliseconds between two snapshots, at least, of changes that come by
 *     themselves; by default 16, as screens show no more.
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
      if (!listeners.has(listener)) continue; // one that was called before it ended it
      try {
        listener();
      } catch (error) {
        // It is the listener's own trouble: the others, and the stream, go on.
        reportLater(error);
      }
    }
  }

  return {
    get: () => current,
    subscribe: (listener) => {
      const own = () => listener(); // the same function twice is two listeners
      listeners.add(own);
      return () => listeners.delete(own);
    },
    change: () => {
      if (scheduled || closed) return;
      scheduled = true;
      const pause = published + interval - performance.now();
      // A timer and not a frame: there are none while the page is in the background.
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
