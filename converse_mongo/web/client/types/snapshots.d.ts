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
export function snapshots<T>(build: () => T, interval?: number): Snapshots<T>;
export type Snapshots<T> = {
    /**
     * Returns the snapshot that was published last.
     */
    get: () => T;
    /**
     * Calls `listener` after each published
     * snapshot; returns a function that ends that.
     */
    subscribe: (listener: () => void) => () => void;
    /**
     * Schedules a snapshot after a change.
     */
    change: () => void;
    /**
     * Publishes a snapshot now.
     */
    publish: () => void;
    /**
     * Ends publishing.
     */
    close: () => void;
};
