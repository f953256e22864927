// @ts-check
/** Files that a user sends with a message. */

const ANY = "application/octet-stream";
const SLICE = 0x8000;

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
export async function readFile(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  const slices = [];
  for (let start = 0; start < bytes.length; start += SLICE) {
    slices.push(String.fromCharCode(...bytes.subarray(start, start + SLICE)));
  }
  const media_type = file.type.split(";")[0].trim() || ANY;
  const url = `data:${media_type};base64,${btoa(slices.join(""))}`;
  return { url, media_type, name: file.name || null, size: file.size };
}

/**
 * The parts of a message that is not stored yet.
 *
 * @param {string} content
 * @param {readonly SentFile[]} files
 * @returns {import("./parts.js").PartRecord[]}
 */
export function partsToSend(content, files) {
  /** @type {Omit<import("./parts.js").PartRecord, "part">[]} */
  const parts = files.map((file) => ({ kind: "file", fields: { ...file } }));
  if (content !== "") parts.unshift({ kind: "text", fields: {}, text: content });
  return parts.map((each, part) => ({ part, ...each }));
}

/**
 * What the server takes of a file.
 *
 * @param {SentFile} file
 */
export function wireOf({ url, media_type, name = null }) {
  return { url, media_type, name };
}
