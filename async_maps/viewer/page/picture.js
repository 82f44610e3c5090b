// A picture: the overlay of a map, as a canvas, on the image of the map.

import { draw } from "./color.js";
import { busy, h } from "./dom.js";
import { model, pixelsFor } from "./model.js";
import { askPlane, knownPlane } from "./planes.js";
import { source } from "./source.js";
import { state } from "./state.js";

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
    this.image.addEventListener("load", () => this.loaded());
    this.image.addEventListener("error", () => this.lacksImage());
  }

  /** Show the overlay of a row that has one, or nothing. */
  show(row, side) {
    if (row && this.row?.row === row.row && this.row.crc32 === row.crc32 && this.side === side) {
      this.row = row;
      if (!this.plane && !this.isAsking) this.load();
      return;
    }
    this.plane = null;
    this.isAsking = false;
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

  async load() {
    const { row, side } = this;
    const isWanted = () => this.row === row && this.element.isConnected;
    this.isAsking = true;
    try {
      const plane = knownPlane(row, side) || (await askPlane(row, side, isWanted));
      if (this.row !== row) return;
      this.plane = plane;
      this.shape();
      this.paint();
      this.onPlane(plane);
    } catch (error) {
      if (this.row === row && error.name !== "AbortError") this.onProblem(error.message, "failed");
    } finally {
      if (this.row === row) this.isAsking = false;
    }
  }

  showImage() {
    const address = source.image(this.row, this.side, state.turned, model.manifest.session);
    if (!address) {
      this.onProblem("no image", "bare");
      return;
    }
    this.image.hidden = false;
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

  paint() {
    if (this.plane && this.row) draw(this.canvas, this.plane, pixelsFor(this.row, this.scale));
  }
}
