// A tile of the gallery: the overlay, as a canvas, on the image of its map.

import { draw } from "./color.js";
import { h, short } from "./dom.js";
import { markOf } from "./marks.js";
import { model, pixelsFor } from "./model.js";
import { askPlane, knownPlane } from "./planes.js";
import { source } from "./source.js";
import { state } from "./state.js";

const SIDES = [64, 128, 256, 512];

/** Return the side of thumbnails for tiles of a size. */
export const sideFor = (size) => SIDES.find((side) => side >= size * devicePixelRatio * 0.9) || SIDES.at(-1);

export class Tile {
  constructor() {
    this.image = h("img", { alt: "", decoding: "async", draggable: "false" });
    this.canvas = h("canvas", { width: 1, height: 1 });
    this.note = h("span", { class: "note" });
    this.picture = h("div", { class: "picture" }, this.image, this.canvas);
    this.frame = h("div", { class: "frame" }, this.picture, this.note);
    this.name = h("span", { class: "name" });
    this.value = h("span", { class: "value" });
    this.mark = h("span", { class: "mark" });
    this.element = h(
      "div",
      { class: "tile", role: "gridcell", tabindex: "-1" },
      this.frame,
      h("div", { class: "caption" }, this.mark, this.name, this.value),
    );
    this.element.tile = this;
    this.row = undefined;
    this.place = -1;
    this.plane = null;
    this.image.addEventListener("load", () => this.shape());
    this.image.addEventListener("error", () => this.lacksImage());
  }

  /** Show a row; undefined while it is not here, null if it is gone. */
  show(place, row, side) {
    if (this.place === place && this.row === row && this.side === side) {
      if (row && !this.plane && !this.isAsking) this.load(row, side);
      return;
    }
    const isOther = row?.row !== this.row?.row || row?.crc32 !== this.row?.crc32 || side !== this.side;
    Object.assign(this, { place, row, side });
    if (isOther) this.clear();
    this.caption();
    if (!row || !isOther) return;
    if (!row.locator) {
      this.tellNote(row.error || "failed", "failed");
      return;
    }
    this.shape();
    if (model.manifest.images) this.showImage();
    this.plane = knownPlane(row, side);
    if (this.plane) this.paint();
    else this.load(row, side);
  }

  async load(row, side) {
    if (!row.locator || this.element.classList.contains("failed")) return;
    this.isAsking = true;
    const isWanted = () => this.row === row && this.element.isConnected;
    try {
      const plane = await askPlane(row, side, isWanted);
      if (!isWanted()) return;
      this.plane = plane;
      this.element.classList.toggle("changed", Boolean(plane.changed));
      this.shape();
      this.paint();
    } catch (error) {
      if (isWanted() && error.name !== "AbortError") this.tellNote(error.message, "failed");
    } finally {
      if (this.row === row) this.isAsking = false;
    }
  }

  showImage() {
    const address = source.image(this.row, this.side, state.turned, model.manifest.session);
    if (!address) return;
    this.image.hidden = false;
    this.image.src = address;
  }

  async lacksImage() {
    const { row } = this;
    if (!row || this.image.hidden) return;
    this.image.hidden = true;
    const why = await source.whyNoImage(this.image.getAttribute("src"));
    if (this.row !== row) return;
    this.element.classList.add("bare");
    this.frame.title = `no image: ${why}`;
    this.shape();
  }

  clear() {
    this.plane = null;
    this.isAsking = false;
    this.image.hidden = true;
    this.image.removeAttribute("src");
    this.canvas.width = this.canvas.height = 1;
    this.note.textContent = "";
    this.frame.removeAttribute("title");
    this.element.classList.remove("failed", "bare", "changed");
  }

  tellNote(text, kind) {
    this.note.textContent = text;
    this.frame.title = text;
    this.element.classList.add(kind);
  }

  /** Give the picture the shape of the image, or of the map if there is none. */
  shape() {
    const { image, row } = this;
    const isImage = !image.hidden && image.naturalWidth > 0;
    const width = isImage ? image.naturalWidth : this.plane?.width || row?.width || 1;
    const height = isImage ? image.naturalHeight : this.plane?.height || row?.height || 1;
    this.picture.style.aspectRatio = `${width} / ${height}`;
    this.picture.classList.toggle("wide", width >= height);
  }

  paint() {
    if (this.plane && this.row) draw(this.canvas, this.plane, pixelsFor(this.row));
  }

  caption() {
    const { row, place } = this;
    const name = row ? row.name : row === null ? "gone" : "";
    const column = state.sort.replace(/^-/, "");
    const value = row && column !== "name" ? shown(row, column) : "";
    this.name.textContent = name;
    this.name.title = name;
    this.value.textContent = value;
    const mark = row ? markOf(row.name) : "";
    this.mark.textContent = mark;
    this.element.classList.toggle("loading", row === undefined);
    const failed = row?.status === "failed" ? `, failed at ${row.stage}: ${row.error}` : "";
    const label = `${name || "loading"}${value ? `, ${column} ${value}` : ""}${failed}${mark ? `, mark ${mark}` : ""}`;
    this.element.setAttribute("aria-label", label);
  }
}

function shown(row, column) {
  if (column === "time") return row.time?.slice(5, 16).replace("T", " ") || "";
  return short(row[column]);
}
