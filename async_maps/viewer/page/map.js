// One map, large: overlay, image and map with one zoom, the value under the cursor, layers, and all facts.

import { draw, hiddenOf, parseScale, pixelsOf, valueOf } from "./color.js";
import { count, h, short, tell, write } from "./dom.js";
import { facts } from "./facts.js";
import { markOf, onMarks, toggle } from "./marks.js";
import { askRows, coloringOf, model, pixelsFor, reorder, rowAt, showing } from "./model.js";
import { Picture } from "./picture.js";
import { askPlane, knownPlane } from "./planes.js";
import { Sheets } from "./sheets.js";
import { source } from "./source.js";
import { change, state } from "./state.js";

const BLACK = 0xff000000;
const SHADE = Uint8Array.from({ length: 1024 }, (_, at) => (at % 4 === 3 ? 255 - (at >> 2) : 0));

export class MapView {
  constructor() {
    this.out = h("button", { type: "button", onclick: () => this.close() });
    this.name("maps");
    this.sheets = new Sheets({ onPoint: (at) => this.point(at), onZoom: (scale) => this.zoomed(scale) });
    this.title = h("h1", { tabindex: "-1" });
    this.zoom = h("span", { class: "zoom" });
    this.readout = h("span", { class: "readout" });
    this.mark = h("span", { class: "mark" });
    this.three = h("button", { type: "button", text: "side by side", title: "overlay, image and map; key: s", onclick: () => this.togglePanes("three") });
    this.many = h("button", { type: "button", text: "layers", title: "maps in the same folder side by side; key: a", class: "hidden", onclick: () => this.togglePanes("layers") });
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
      this.three, this.many,
    );
    this.layers = h("div", { class: "layers", role: "group", "aria-label": "maps in the same folder" });
    this.aside = h("aside", { "aria-label": "facts" });
    this.note = h("p", { class: "note" });
    const stage = h("div", { class: "stage" }, this.sheets.element, this.note, this.readout);
    const left = h("div", { class: "left" }, stage, this.layers);
    this.element = h("div", { class: "one" }, tools, h("div", { class: "body" }, left, this.aside));
    this.row = null;
    this.plane = null;
    this.siblings = []; // the maps in the same folder, if they are few
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
    // Maps that were refused at their source may have the name of another one: the tile knows which one it shows.
    const wanted = this.next === null ? null : rowAt(this.next);
    const number = wanted?.name === name ? wanted.row : 0;
    if (this.row?.name === name && (!number || number === this.row.row)) {
      this.place = this.next ?? this.place;
      this.next = null;
      showing(this.row);
      this.showPlace();
      this.arrange();
      this.locate();
      return;
    }
    this.reset(name);
    try {
      const { row, place } = await this.find(name, number);
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

  /** Find a map and its place in the order, which is made again if the server has forgotten it. */
  async find(name, number) {
    try {
      return await source.find(model.order.order, name, number);
    } catch (error) {
      if (error.status !== 404) throw error;
      await reorder();
      return source.find(model.order.order, name, number);
    }
  }

  /** Find where the map is in another order, and whether it was stored again. */
  async locate() {
    const { name } = state;
    try {
      const { order } = model.order;
      const { row, place } = await source.find(order, name, this.row?.row || 0);
      if (this.row?.name !== name || order !== model.order.order) return;
      if (row && row.time !== this.row.time) {
        this.row = null;
        this.next = place;
        this.show();
        return;
      }
      this.place = place;
      this.showPlace();
    } catch (error) {
      // An order that is not kept anymore is asked for again with its rows.
      if (error.status !== 404) tell(error.message);
    }
  }

  reset(name) {
    this.row = this.plane = null;
    this.siblings = [];
    this.many.classList.add("hidden");
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

  /** Make the panes: the overlay alone, beside the image and the map, or beside those of the other layers. */
  arrange() {
    const { row } = this;
    if (!row) return;
    this.clear();
    this.three.setAttribute("aria-pressed", String(state.panes === "three"));
    this.many.setAttribute("aria-pressed", String(state.panes === "layers"));
    if (state.panes === "layers" && this.siblings.length) {
      this.spread(this.siblings.map((other) => ({ title: lastPart(other.name), content: [this.picture(other, other.row === row.row), this.map("overlay", other)], label: `overlay of ${other.name}` })));
      return;
    }
    const panes = [{ title: "", content: [this.picture(row, true), this.map()], label: `overlay of ${row.name}` }];
    if (state.panes === "three") {
      panes[0].title = "overlay";
      if (model.manifest.images) panes.push({ title: "image", content: [this.picture(row, false)], label: `image of ${row.name}` });
      panes.push({ title: "map", content: [this.map("alone")], label: `map ${row.name}` });
      if (model.manifest.images) {
        panes.push({ title: "image, dark where the map is low", content: [this.picture(row, false), this.map("light")], label: `image in the light of the map ${row.name}` });
      }
    }
    this.spread(panes);
  }

  /** Forget the panes and the image of the map that was shown before. */
  clear() {
    this.canvases = [];
    this.image = null;
    this.note.querySelector("span")?.remove();
  }

  spread(panes) {
    const { image, plane, row } = this;
    this.sheets.resize(image?.naturalWidth || plane?.width || row.width || 1, image?.naturalHeight || plane?.height || row.height || 1);
    this.sheets.show(panes);
    this.paint();
  }

  picture(row, isFirst) {
    const address = model.manifest.images && source.image(row, 0, state.turned, model.manifest.session);
    if (isFirst && address === "") this.lack("its file is missing");
    if (!address) return null;
    const image = h("img", { src: address, alt: "", draggable: "false", class: state.turned ? "" : "unturned" });
    image.addEventListener("error", () => image.remove());
    if (isFirst) {
      this.image = image;
      image.addEventListener("load", () => this.image === image && this.sheets.resize(image.naturalWidth, image.naturalHeight));
      image.addEventListener("error", async () => {
        const why = await source.whyNoImage(address);
        if (this.image === image) this.lack(why);
      });
    }
    return image;
  }

  lack(why) {
    this.note.append(h("span", { text: `no image: ${why}` }));
  }

  /** Make a canvas for a map: an overlay, "alone" without transparency, or "light" that lets an image through. */
  map(kind = "overlay", row = this.row) {
    const canvas = h("canvas", { class: kind });
    canvas.row = row;
    this.canvases.push(canvas);
    return canvas;
  }

  /** Return the intensities of the map, or of another layer; null if they are not here. */
  planeOf(row) {
    return row.row === this.row.row ? this.plane : knownPlane(row, null);
  }

  paint() {
    if (!this.row) return;
    for (const canvas of this.canvases) {
      const { row } = canvas;
      const plane = this.planeOf(row);
      if (plane) this.drawOn(canvas, plane, row);
      else if (row.row !== this.row.row && row.locator) this.ask(canvas);
    }
  }

  /** Get another layer. */
  async ask(canvas) {
    try {
      const plane = await askPlane(canvas.row, null, () => canvas.isConnected);
      if (canvas.isConnected) this.drawOn(canvas, plane, canvas.row);
    } catch (error) {
      if (error.name !== "AbortError") tell(error.message);
    }
  }

  drawOn(canvas, plane, row, scale = null) {
    const pixels = pixelsFor(row, scale);
    const kinds = { overlay: () => pixels, alone: () => opaque(pixels), light: () => shadeOf(row) };
    draw(canvas, plane, kinds[canvas.className](), canvas.className === "light" ? BLACK : 0);
  }

  point(at) {
    write(this.readout, at && this.plane ? this.read(at) : "");
  }

  /** Tell what is at a place of a pane. */
  read(at) {
    const row = (state.panes === "layers" && this.canvases[at.pane]?.row) || this.row;
    const plane = this.planeOf(row);
    if (!plane) return "";
    const { where, text } = this.valueAt(at, plane, row);
    return `${where}: ${text}`;
  }

  valueAt(at, plane, row) {
    const [x, y] = [Math.floor(at.x * plane.width), Math.floor(at.y * plane.height)];
    const place = y * plane.width + x;
    const where = `x ${x}, y ${y}`;
    if (plane.mask && !plane.mask[place]) return { where, text: "no value", value: null };
    const intensity = plane.values[place];
    const coloring = coloringOf(row);
    const found = valueOf(intensity, row, coloring);
    if (!found) return { where, text: `${intensity} of 255`, value: null };
    const isOpen = row.invalid_pixels && intensity === hiddenOf(row, coloring);
    const sign = `${isOpen ? "no value, or " : ""}${found.sign ? `${found.sign} ` : ""}`;
    return { where, text: `${sign}${short(found.value)} ± ${short(found.half)} (${intensity} of 255)`, value: found.value };
  }

  zoomed(scale) {
    write(this.zoom, `${Math.round(scale * devicePixelRatio * 100)}%`);
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
    let rows = [];
    try {
      rows = await source.layers(row.name);
    } catch (error) {
      tell(error.message);
    }
    if (this.row !== row) return;
    this.siblings = rows;
    this.many.classList.toggle("hidden", !rows.length);
    if (state.panes === "layers") this.arrange();
    const buttons = rows.map((other) => {
      const picture = new Picture();
      const open = () => change({ name: other.name }, { keep: true });
      const frame = h("div", { class: "frame" }, picture.element);
      const button = h("button", { type: "button", class: "layer", onclick: open }, frame, h("span", { text: lastPart(other.name) }));
      button.setAttribute("aria-current", String(other.row === row.row));
      return { button, show: () => picture.show(other.locator ? other : null, 128) };
    });
    this.layers.replaceChildren(...buttons.map(({ button }) => button));
    for (const { show } of buttons) show();
  }

  togglePanes(panes) {
    if (this.three.isConnected) change({ panes: state.panes === panes ? "one" : panes });
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
      s: () => this.togglePanes("three"),
      a: () => this.siblings.length && this.togglePanes("layers"),
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

const lastPart = (name) => name.split("/").at(-1);

/** Return black that is the less opaque, the higher the intensity is; opaque for pixels without a value. */
function shadeOf(row) {
  const pixels = pixelsOf(SHADE, row, { scale: parseScale(state.scale), threshold: 0 });
  const hidden = hiddenOf(row, coloringOf(row));
  if (hidden !== null) pixels[hidden] = BLACK;
  return pixels;
}

/** Return colors without their transparency. */
function opaque(pixels) {
  return pixels.map((pixel) => (pixel ? (pixel | 0xff000000) >>> 0 : 0));
}
