// One map, large: overlay, image and map with one zoom, the value under the cursor, layers, and all facts.

import { draw, parseScale, pixelsOf, valueOf } from "./color.js";
import { count, h, short, tell } from "./dom.js";
import { facts } from "./facts.js";
import { markOf, onMarks, toggle } from "./marks.js";
import { askRows, coloringOf, model, pixelsFor, rowAt, showing } from "./model.js";
import { Picture } from "./picture.js";
import { askPlane } from "./planes.js";
import { Sheets } from "./sheets.js";
import { source } from "./source.js";
import { change, state } from "./state.js";

export class MapView {
  constructor() {
    this.out = h("button", { type: "button", onclick: () => this.close() });
    this.name("maps");
    this.sheets = new Sheets({ onPoint: (at) => this.point(at), onZoom: (scale) => this.zoomed(scale) });
    this.title = h("h1");
    this.zoom = h("output", { class: "zoom" });
    this.readout = h("output", { class: "readout" });
    this.mark = h("span", { class: "mark" });
    this.three = h("button", { type: "button", text: "side by side", title: "key: s", onclick: () => this.togglePanes() });
    const button = (text, title, onclick) => h("button", { type: "button", text, title, "aria-label": title, onclick });
    this.before = button("←", "previous map", () => this.step(-1));
    this.after = button("→", "next map", () => this.step(1));
    this.where = h("span", { class: "where" });
    const tools = h(
      "div",
      { class: "tools" },
      this.out,
      this.before, this.after, this.where, this.mark, this.title,
      h("span", { class: "spring" }),
      button("−", "zoom out", () => this.sheets.zoomBy(1 / 1.5)),
      this.zoom,
      button("+", "zoom in", () => this.sheets.zoomBy(1.5)),
      button("fit", "fit into the window", () => this.sheets.fit()),
      button("1:1", "one pixel of the image is one of the screen", () => this.sheets.actual()),
      this.three,
    );
    this.layers = h("div", { class: "layers", role: "group", "aria-label": "layers of this image" });
    this.aside = h("aside", { "aria-label": "facts" });
    this.note = h("p", { class: "note" });
    const stage = h("div", { class: "stage" }, this.sheets.element, this.note, this.readout);
    const left = h("div", { class: "left" }, stage, this.layers);
    this.element = h("div", { class: "one" }, tools, h("div", { class: "body" }, left, this.aside));
    this.row = null;
    this.plane = null;
    this.place = this.next = null; // where the map is in the order, and where the next one will be
    onMarks(() => this.showMark());
  }

  /** Set the view that this one leads back to. */
  name(back) {
    this.back = back;
    this.out.textContent = back === "models" ? "all pairs" : "all maps";
    this.out.title = `back to ${this.out.textContent}`;
    this.out.setAttribute("aria-label", this.out.title);
  }

  /** Show the map of the state. */
  async show() {
    const { name } = state;
    if (this.row?.name === name) return;
    this.reset(name);
    try {
      const { row, place } = await source.find(model.order.order, name);
      if (state.name !== name) return;
      if (!row) {
        this.note.textContent = "there is no such map in this manifest";
        return;
      }
      if (row.other) row.other.of = "other";
      this.row = row;
      showing(row);
      this.place = place;
      this.showPlace();
      this.showMark();
      this.showFacts();
      this.arrange();
      this.showLayers(row);
      if (row.locator) await this.load(row);
      else this.note.textContent = row.error || "this map has no overlay";
    } catch (error) {
      if (state.name === name && error.name !== "AbortError") this.note.textContent = error.message;
    }
  }

  /** Find where the map is in another order. */
  async locate() {
    const { name } = state;
    try {
      const { place } = await source.find(model.order.order, name);
      if (this.row?.name !== name) return;
      this.place = place;
      this.showPlace();
    } catch (error) {
      // An order that is not kept anymore is asked for again.
      if (error.status !== 404) tell(error.message);
    }
  }

  reset(name) {
    this.row = this.plane = null;
    this.place = this.next;
    this.next = null;
    this.title.textContent = name;
    this.title.title = name;
    this.note.textContent = this.readout.textContent = "";
    this.sheets.show([]);
    this.aside.replaceChildren();
    this.layers.replaceChildren();
    this.showPlace();
    this.showMark();
  }

  async load(row) {
    const plane = await askPlane(row, null, () => this.row === row);
    if (this.row !== row) return;
    this.plane = plane;
    this.arrange();
    this.showFacts();
  }

  /** Make the panes: the overlay alone, or beside the image and the map. */
  arrange() {
    const { row } = this;
    if (!row) return;
    this.canvases = [];
    const panes = [{ title: "", content: [this.picture(row, true), this.map()], label: `overlay of ${row.name}` }];
    if (state.panes === "three") {
      panes[0].title = "overlay";
      if (model.manifest.images) panes.push({ title: "image", content: [this.picture(row, false)], label: `image of ${row.name}` });
      panes.push({ title: "map", content: [this.map("alone")], label: `map ${row.name}` });
      if (model.manifest.images) {
        panes.push({ title: "image, dark where the map is low", content: [this.picture(row, false), this.map("light")], label: `image in the light of the map ${row.name}` });
      }
    }
    this.three.setAttribute("aria-pressed", String(state.panes === "three"));
    this.spread(panes);
  }

  spread(panes) {
    const { image, plane, row } = this;
    this.sheets.resize(image?.naturalWidth || plane?.width || row.width || 1, image?.naturalHeight || plane?.height || row.height || 1);
    this.sheets.show(panes);
    this.paint();
  }

  picture(row, isFirst) {
    const address = model.manifest.images && source.image(row, 0, state.turned, model.manifest.session);
    if (!address) return null;
    const image = h("img", { src: address, alt: "", draggable: "false", class: state.turned ? "" : "unturned" });
    image.addEventListener("error", () => image.remove());
    if (isFirst) {
      this.image = image;
      image.addEventListener("load", () => this.image === image && this.sheets.resize(image.naturalWidth, image.naturalHeight));
      image.addEventListener("error", async () => {
        const why = `no image: ${await source.whyNoImage(address)}`;
        if (this.row === row && this.image === image) this.note.append(h("span", { text: why }));
      });
    }
    return image;
  }

  /** Make a canvas for a map: an overlay, "alone" without transparency, or "light" that lets an image through. */
  map(kind = "overlay") {
    const canvas = h("canvas", { class: kind });
    this.canvases.push(canvas);
    return canvas;
  }

  paint() {
    if (this.plane && this.row) for (const canvas of this.canvases) this.drawOn(canvas, this.plane, this.row);
  }

  drawOn(canvas, plane, row, scale = null) {
    const pixels = pixelsFor(row, scale);
    const kinds = { overlay: () => pixels, alone: () => opaque(pixels), light: () => shadeOf(row) };
    draw(canvas, plane, kinds[canvas.className]());
  }

  point(at) {
    this.readout.textContent = at && this.plane ? this.read(at) : "";
  }

  /** Tell what is at a place of the sheet. */
  read(at) {
    const { where, text } = this.valueAt(at, this.plane, this.row);
    return `${where}: ${text}`;
  }

  valueAt(at, plane, row) {
    const [x, y] = [Math.floor(at.x * plane.width), Math.floor(at.y * plane.height)];
    const place = y * plane.width + x;
    const where = `x ${x}, y ${y}`;
    if (plane.mask && !plane.mask[place]) return { where, text: "no value", value: null };
    const intensity = plane.values[place];
    const found = valueOf(intensity, row, coloringOf(row));
    if (!found) return { where, text: `${intensity} of 255`, value: null };
    const sign = found.sign ? `${found.sign} ` : "";
    return { where, text: `${sign}${short(found.value)} ± ${short(found.half)} (${intensity} of 255)`, value: found.value };
  }

  zoomed(scale) {
    this.zoom.textContent = `${Math.round(scale * devicePixelRatio * 100)}%`;
  }

  showFacts() {
    this.aside.replaceChildren(facts(this.row, this.plane));
  }

  showMark() {
    const mark = this.row ? markOf(this.row.name) : "";
    this.mark.textContent = mark;
    this.mark.classList.toggle("hidden", !mark);
  }

  showPlace() {
    const { total } = model.order;
    this.where.textContent = this.place === null ? "" : `${count(this.place + 1)} of ${count(total)}`;
    this.before.disabled = this.place === null || this.place === 0;
    this.after.disabled = this.place === null || this.place >= total - 1;
  }

  async showLayers(row) {
    const rows = await source.layers(row.name);
    if (this.row !== row) return;
    const buttons = rows.map((other) => {
      const picture = new Picture();
      const open = () => change({ name: other.name }, { keep: true });
      const frame = h("div", { class: "frame" }, picture.element);
      const button = h("button", { type: "button", class: "layer", onclick: open }, frame, h("span", { text: other.name.split("/").at(-1) }));
      button.setAttribute("aria-current", String(other.row === row.row));
      return { button, show: () => picture.show(other.locator ? other : null, 128) };
    });
    this.layers.replaceChildren(...buttons.map(({ button }) => button));
    for (const { show } of buttons) show();
  }

  togglePanes() {
    if (this.three.isConnected) change({ panes: state.panes === "three" ? "one" : "three" });
  }

  async step(by) {
    if (this.place === null) return;
    const place = this.place + by;
    if (place < 0 || place >= model.order.total) return;
    await askRows(place, place);
    const row = rowAt(place);
    this.next = place;
    if (row) change({ name: row.name });
  }

  close() {
    change({ view: this.back }, { keep: true });
  }

  key(event) {
    const keys = {
      ArrowLeft: () => this.step(-1),
      ArrowRight: () => this.step(1),
      Escape: () => this.close(),
      s: () => this.togglePanes(),
      "+": () => this.sheets.zoomBy(1.5),
      "=": () => this.sheets.zoomBy(1.5),
      "-": () => this.sheets.zoomBy(1 / 1.5),
      0: () => this.sheets.fit(),
      h: () => this.sheets.panBy(60, 0),
      l: () => this.sheets.panBy(-60, 0),
      k: () => this.sheets.panBy(0, 60),
      j: () => this.sheets.panBy(0, -60),
    };
    if (/^[1-5]$/.test(event.key) && this.row) toggle(this.row.name, event.key);
    else if (event.key in keys) keys[event.key]();
    else return;
    event.preventDefault();
  }

  /** Show what a change of the state changes. */
  changed(names) {
    if (names.has("name") || names.has("view")) this.show();
    if (names.has("panes") || names.has("turned")) this.arrange();
    else this.paint();
  }
}

/** Return black that is the less opaque, the higher the intensity is. */
function shadeOf(row) {
  const scale = parseScale(state.scale);
  const shade = Uint8Array.from({ length: 1024 }, (_, at) => (at % 4 === 3 ? 255 - (at >> 2) : 0));
  return pixelsOf(shade, row, { scale, threshold: 0 });
}

/** Return colors without their transparency. */
function opaque(pixels) {
  return pixels.map((pixel) => (pixel ? (pixel | 0xff000000) >>> 0 : 0));
}
