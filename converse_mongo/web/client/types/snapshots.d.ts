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
export function snapshots<T>(build: () => T, interval?: number): Snapshots<T>;
export type Snapshots<T> = {
    /**
     * The snapshot that was published last.
     */
    get: () => T;
    /**
     * Calls `listener` after each snapshot
     * that is published; returns what ends that.
     */
    subscribe: (listener: () => void) => () => void;
    /**
     * Says that something changed: a snapshot is published soon.
     */
    change: () => void;
    /**
     * Publishes one now.
     */
    publish: () => void;
    /**
     * Nothing is published any more.
     */
    close: () => void;
};
