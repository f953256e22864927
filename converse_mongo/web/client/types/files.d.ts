/**
 * @typedef {object} SentFile
 * @property {string} url An address that begins with `https://`, `http://` or `/`, or a data URL in
 *     Base64, which is stored with the message.
 * @property {string} media_type Such as "image/png".
 * @property {string | null} [name]
 * @property {number | null} [size] In bytes, as it is shown until the message is stored.
 */
/**
 * Reads a file that its user has chosen, to be sent with a message and stored with it.
 *
 * @param {Blob & {name?: string}} file
 * @returns {Promise<SentFile>}
 * @throws {Error} The file cannot be read: it was changed or removed since, for example.
 */
export function readFile(file: Blob & {
    name?: string;
}): Promise<SentFile>;
/**
 * The parts of a message that is not stored yet.
 *
 * @param {string} content
 * @param {readonly SentFile[]} files
 * @returns {import("./parts.js").PartRecord[]}
 */
export function partsToSend(content: string, files: readonly SentFile[]): import("./parts.js").PartRecord[];
/**
 * What the server takes of a file.
 *
 * @param {SentFile} file
 */
export function wireOf({ url, media_type, name }: SentFile): {
    url: string;
    media_type: string;
    name: string | null;
};
export type SentFile = {
    /**
     * An address that begins with `https://`, `http://` or `/`, or a data URL in
     * Base64, which is stored with the message.
     */
    url: string;
    /**
     * Such as "image/png".
     */
    media_type: string;
    name?: string | null | undefined;
    /**
     * In bytes, as it is shown until the message is stored.
     */
    size?: number | null | undefined;
};
