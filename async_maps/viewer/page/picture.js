// A picture: the overlay of a map, as a canvas, on the image of the map.

import { draw } from "./color.js";
import { busy, h } from "./dom.js";
import { model, pixelsFor } from "./model.js";
import { askPlane, knownPlane } from "./planes.js";
import { source } from "./source.js";
import { state } from "./state.js";

const RETRY_MS = 10_000;

export class Picture {
  /** ``onPlane`` is called when the intensities are here, ``onProblem`` with a text and a kind. */
  constructor({ onPlane = () => {}, onProblem = () => {} } = {}) {
    this.image = h("img", { alt: "", decoding: "async", fetchpriority: "low", draggable: "false", hidden: true });
    this.canvas = h("canvas", { width: 1, height: 1 });
    this.element = h("div", { class: "picture" }, this.image, this.canvas);
    this.onPlane = onPlane;
    this.onProblem = onProblem;
    this.row = null;
    this.side = 0;
    this.plane = null;
    this.scale = null; // of this picture; null for that of the state
    this.isLoading = false; // whether the image is
    this.painted = null; // the colors that are on the canvas
    this.turned = null; // whether the image is turned; null if none is shown
    this.failedAt = -Infinity;
    this.image.addEventListener("load", () => this.loaded());
    this.image.addEventListener("error", () => this.lacksImage());
  }

  /** Show the overlay of a row that has one, or nothing. */
  show(row, side) {
    if (row && this.isOf(row, side)) {
      this.row = row;
      if (this.plane) this.paint();
      else if (!this.isAsking && performance.now() - this.failedAt > RETRY_MS) this.load();
      if (this.turned !== null && this.turned !== state.turned) this.showImage();
      return;
    }
    this.plane = this.painted = this.turned = null;
    this.isAsking = false;
    this.failedAt = -Infinity;
    this.image.hidden = true;
    this.image.removeAttribute("src");
    this.wait(false);
    this.canvas.width = this.canvas.height = 1;
    Object.assign(this, { row, side });
    if (!row) return;
    this.shape();
    if (model.manifest.images) this.showImage();
    this.load();
  }

  isOf(row, side) {
    return this.row?.row === row.row && this.row.crc32 === row.crc32 && this.side === side;
  }

  async load() {
    const { row, side } = this;
    const isWanted = () => this.isOf(row, side) && this.element.isConnected;
    this.isAsking = true;
    try {
      const plane = knownPlane(row, side) || (await askPlane(row, side, isWanted));
      if (!this.isOf(row, side)) return;
      this.plane = plane;
      this.shape();
      this.paint();
      this.onPlane(plane);
    } catch (error) {
      if (!this.isOf(row, side) || error.name === "AbortError") return;
      this.failedAt = performance.now();
      this.onProblem(error.message, "failed");
    } finally {
      if (this.isOf(row, side)) this.isAsking = false;
    }
  }

  showImage() {
    const address = source.image(this.row, this.side, state.turned, model.manifest.session);
    if (!address) {
      this.onProblem("no image", "bare");
      return;
    }
    this.turned = state.turned;
    this.image.classList.toggle("unturned", !state.turned);
    this.image.hidden = false;
    // Without a server, the address is the same.
    if (this.image.getAttribute("src") === address) return;
    this.wait(true);
    this.image.src = address;
  }

  wait(isLoading) {
    if (isLoading !== this.isLoading) busy(isLoading ? 1 : -1);
    this.isLoading = isLoading;
  }

  loaded() {
    this.wait(false);
    this.shape();
  }

  async lacksImage() {
    this.wait(false);
    const { row } = this;
    if (!row || this.image.hidden) return;
    this.image.hidden = true;
    const why = await source.whyNoImage(this.image.getAttribute("src"));
    if (this.row !== row) return;
    this.shape();
    this.onProblem(`no image: ${why}`, "bare");
  }

  /** Take the shape of the image, or of the map if there is none. */
  shape() {
    const { image, row, plane } = this;
    const isImage = !image.hidden && image.naturalWidth > 0;
    const width = isImage ? image.naturalWidth : plane?.width || row?.width || 1;
    const height = isImage ? image.naturalHeight : plane?.height || row?.height || 1;
    this.element.style.setProperty("--ratio", width / height);
  }

  /** Color the map, unless it has these colors. */
  paint() {
    if (!this.plane || !this.row) return;
    const pixels = pixelsFor(this.row, this.scale);
    if (pixels !== this.painted) draw(this.canvas, this.plane, pixels);
    this.painted = pixels;
  }
}
