// A tile of the gallery: a picture and its caption.

import { h, short, write } from "./dom.js";
import { markOf } from "./marks.js";
import { heading } from "./model.js";
import { Picture } from "./picture.js";
import { sortedBy } from "./state.js";

const SIDES = [64, 128, 256, 512];

/** Return the side of thumbnails for tiles of a size. */
export const sideFor = (size) => SIDES.find((side) => side >= size * devicePixelRatio * 0.9) || SIDES.at(-1);

export class Tile {
  constructor() {
    this.picture = new Picture({
      onPlane: (plane) => this.loaded(plane),
      onProblem: (text, kind) => this.tell(text, kind),
    });
    this.note = h("span", { class: "note" });
    this.frame = h("div", { class: "frame" }, this.picture.element, this.note);
    this.finish();
  }

  /** Put the frame above a caption. */
  finish() {
    this.name = h("bdi");
    this.value = h("span", { class: "value" });
    this.mark = h("span", { class: "mark" });
    const caption = h("div", { class: "caption" }, this.mark, h("span", { class: "name" }, this.name), this.value);
    this.element = h("div", { class: "tile", role: "gridcell", tabindex: "-1" }, this.frame, caption);
    this.element.tile = this;
    this.place = -1;
    this.row = undefined;
  }

  /** Show a row; undefined while it is not here, null if it is gone. */
  show(place, row, side) {
    if (row?.row !== this.row?.row || row?.crc32 !== this.row?.crc32) this.clear();
    Object.assign(this, { place, row });
    this.caption();
    if (row && !row.locator) this.tell(row.error || "failed", "failed");
    this.showPictures(row?.locator ? row : null, side);
  }

  showPictures(row, side) {
    this.picture.show(row, side);
  }

  loaded(plane) {
    this.element.classList.remove("failed");
    this.element.classList.toggle("changed", Boolean(plane.changed));
  }

  get isLoaded() {
    return Boolean(this.picture.plane);
  }

  paint() {
    this.picture.paint();
  }

  clear() {
    this.note.textContent = "";
    this.frame.removeAttribute("title");
    this.element.classList.remove("failed", "bare", "changed");
  }

  /** Tell why a picture cannot be shown: "failed", or "bare" if only its image is missing. */
  tell(text, kind) {
    if (kind === "failed") this.note.textContent = text;
    this.frame.title = text;
    this.element.classList.add(kind);
  }

  caption() {
    const { row } = this;
    const name = row ? row.name : row === null ? "gone" : "";
    const column = sortedBy();
    const value = row && column !== "name" ? shown(row, column) : "";
    const mark = row ? markOf(row.name) : "";
    const failed = row?.status === "failed" ? `, failed at ${row.stage}: ${row.error}` : "";
    const label = `${name || "loading"}${value ? `, ${heading(column)} ${value}` : ""}${failed}${mark ? `, mark ${mark}` : ""}`;
    this.element.classList.toggle("loading", row === undefined);
    if (this.element.getAttribute("aria-label") === label) return;
    this.element.setAttribute("aria-label", label);
    write(this.name, name);
    this.name.parentElement.title = name;
    write(this.value, value);
    write(this.mark, mark);
  }
}

function shown(row, column) {
  if (column === "time") return row.time?.slice(5, 16).replace("T", " ") || "";
  return short(row[column]);
}
