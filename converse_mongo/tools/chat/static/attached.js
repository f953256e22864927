/** The files for the next message: what the reader has chosen, with previews, until it is sent. */

import { readFile } from "/client/index.js";
import { IMAGES, bytes } from "./parts.js";
import { element } from "./text.js";

const TYPES = new Set([...IMAGES, "application/pdf"]);
const MOST = 10;

/**
 * The chosen files. `input` is the field that chooses them, `place` the list that shows them.
 *
 * `actions` has `changed()`, called when there are others; `complain(text)`, called with the reason why
 * a file is refused, or `null`; `announce(text)`; and `left()`, called when the one that had the focus
 * is gone.
 */
export class Attached {
  constructor(input, place, actions) {
    this.input = input;
    this.place = place;
    this.actions = actions;
    this.limits = { each: Infinity, all: Infinity }; // in bytes
    this.chosen = [];
    input.accept = [...TYPES].join(",");
    input.addEventListener("change", () => {
      this.add([...input.files]);
      input.value = ""; // so that the same file can be chosen again
    });
  }

  get isEmpty() {
    return this.chosen.length === 0;
  }

  add(files) {
    let refused = null;
    const added = [];
    for (const file of files) {
      const reason = this.reasonAgainst(file);
      refused ??= reason;
      if (reason !== null) continue;
      const one = { file, preview: IMAGES.has(file.type) ? URL.createObjectURL(file) : null };
      one.node = this.nodeOf(one);
      this.chosen.push(one);
      this.place.append(one.node);
      added.push(file.name);
    }
    this.actions.complain(refused);
    if (added.length > 0) this.actions.announce(`Attached: ${added.join(", ")}.`);
    this.changed();
  }

  /** Why a file cannot be sent, as a sentence; `null` if it can. */
  reasonAgainst({ name, type, size }) {
    const { each, all } = this.limits;
    const total = this.chosen.reduce((sum, { file }) => sum + file.size, size);
    if (!TYPES.has(type)) return `${name} cannot be attached: only images and PDFs can.`;
    if (size > each) return `${name} is too large: a file may have ${bytes(each)}.`;
    if (total > all) return `${name} is too large beside the others: together they may have ${bytes(all)}.`;
    return this.chosen.length < MOST ? null : `A message may have ${MOST} files.`;
  }

  nodeOf(one) {
    const { name, size } = one.file;
    const remove = element("button", { type: "button", className: "remove", textContent: "×", title: "Remove" });
    remove.setAttribute("aria-label", `Remove ${name}`);
    remove.addEventListener("click", () => this.remove(one));
    const shown = one.preview === null
      ? element("span", { className: "sheet", textContent: "PDF" })
      : element("img", { className: "thumb", alt: "", src: one.preview });
    return element(
      "li",
      {},
      shown,
      element("span", { className: "attached-name", textContent: name, title: name }),
      element("span", { className: "soft", textContent: bytes(size) }),
      remove,
    );
  }

  remove(one) {
    const at = this.chosen.indexOf(one);
    this.drop(one);
    this.actions.announce(`Removed: ${one.file.name}.`);
    this.changed();
    const next = this.chosen[at] ?? this.chosen[at - 1];
    if (next) next.node.querySelector("button").focus();
    else this.actions.left();
  }

  drop(one) {
    if (one.preview !== null) URL.revokeObjectURL(one.preview);
    one.node.remove();
    this.chosen = this.chosen.filter((each) => each !== one);
  }

  /** Reads the files, which stay until they are dropped; `null` if one of them is gone. */
  async read() {
    const reading = [...this.chosen];
    const results = await Promise.allSettled(reading.map(({ file }) => readFile(file)));
    const lost = results.findIndex(({ status }) => status === "rejected");
    if (lost === -1) return results.map(({ value }) => value);
    this.drop(reading[lost]);
    this.changed();
    this.actions.complain(`${reading[lost].file.name} could not be read. Choose it again.`);
    return null;
  }

  /** Forgets all of them, once they are sent. */
  clear() {
    for (const one of this.chosen) this.drop(one);
    this.changed();
  }

  changed() {
    this.place.hidden = this.isEmpty;
    this.actions.changed();
  }
}
