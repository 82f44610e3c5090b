// Two models: the overlays of two manifests on one scale, and their difference.

import { draw, hiddenOf, parseScale } from "./color.js";
import { h, short } from "./dom.js";
import { facts } from "./facts.js";
import { MapView } from "./map.js";
import { coloringOf, model } from "./model.js";
import { Picture } from "./picture.js";
import { askPlane } from "./planes.js";
import { state } from "./state.js";
import { Tile } from "./tile.js";

/** Return the scale of a pair: that of the state, or from the lowest to the highest value of both ranges; or null. */
export function scaleOf(row, other) {
  if (row.range_low === null || other.range_low === null) return null;
  const [low, high] = [Math.min(row.range_low, other.range_low), Math.max(row.range_high, other.range_high)];
  // Two equal maps that are constant have a scale, too.
  return parseScale(state.scale) || (low < high ? { low, high } : { low: low - 0.5, high: high + 0.5 });
}

/** Return the difference of two maps, second minus first, as the intensities of a map: 0 to 255, 127.5 for none. */
export function difference(planes, rows, scale) {
  const [first, second] = planes;
  const { width, height } = first;
  const values = new Uint8Array(width * height);
  // Pixels without a value may have an intensity of their run's table.
  const [gone, goneThere] = rows.map((row) => (row.invalid_pixels ? hiddenOf(row, coloringOf(row)) : null));
  const isMasked = first.mask || second.mask || gone !== null || goneThere !== null;
  const mask = isMasked ? new Uint8Array(width * height).fill(1) : null;
  const isLacking = (plane, at, intensity) => plane.mask?.[at] === 0 || plane.values[at] === intensity;
  const [one, two] = rows.map((row) => valuesOf(row));
  // The colors end at half of the scale: larger differences are rare.
  const factor = 255 / (scale.high - scale.low);
  for (let y = 0; y < height; y += 1) {
    const below = Math.floor(((y + 0.5) * second.height) / height) * second.width;
    for (let x = 0; x < width; x += 1) {
      const at = y * width + x;
      const there = below + Math.floor(((x + 0.5) * second.width) / width);
      values[at] = Math.max(0, Math.min(255, 127.5 + factor * (two[second.values[there]] - one[first.values[at]])));
      if (mask && (isLacking(first, at, gone) || isLacking(second, there, goneThere))) mask[at] = 0;
    }
  }
  return { width, height, values, mask };
}

function valuesOf(row) {
  const { range_low: low, range_high: high } = row;
  return Float64Array.from({ length: 256 }, (_, intensity) => low + (intensity / 255) * (high - low));
}

/** A tile with the overlays of both and their difference. */
export class PairTile extends Tile {
  constructor() {
    super();
    const parts = {
      onPlane: (plane) => this.loaded(plane),
      onProblem: (text, kind) => this.tell(text, kind),
    };
    this.pictures = [new Picture(parts), new Picture(parts)];
    this.drawn = []; // what the difference that is shown was made of
    this.difference = h("canvas", { class: "alone", width: 1, height: 1 });
    this.third = h("div", { class: "picture" }, this.difference);
    this.note = h("span", { class: "note" });
    const part = (content) => h("div", { class: "part" }, content);
    this.frame = h("div", { class: "frame pair" }, ...this.pictures.map(({ element }) => part(element)), part(this.third), this.note);
    this.finish();
  }

  showPictures(row, side) {
    const { other } = row || {};
    const isPair = Boolean(other?.locator);
    for (const picture of this.pictures) picture.scale = isPair ? scaleOf(row, other) : null;
    this.pictures[0].show(row, side);
    this.pictures[1].show(isPair ? other : null, side);
    this.paintDifference();
  }

  loaded() {
    const planes = this.pictures.map(({ plane }) => plane);
    if (planes.every(Boolean)) this.element.classList.remove("failed");
    this.element.classList.toggle("changed", planes.some((plane) => plane?.changed));
    this.paintDifference();
  }

  get isLoaded() {
    return this.pictures.some(({ plane }) => plane);
  }

  paint() {
    if (this.row?.other) for (const picture of this.pictures) picture.scale = scaleOf(this.row, this.row.other);
    for (const picture of this.pictures) picture.paint();
    this.paintDifference();
  }

  paintDifference() {
    const planes = this.pictures.map(({ plane }) => plane);
    const { scale } = this.pictures[0];
    const parts = planes.every(Boolean) && scale ? [...planes, scale.low, scale.high] : [];
    if (parts.length === this.drawn.length && parts.every((part, at) => part === this.drawn[at])) return;
    this.drawn = parts;
    this.difference.width = this.difference.height = 1;
    if (!parts.length) return;
    this.third.style.setProperty("--ratio", this.pictures[0].element.style.getPropertyValue("--ratio"));
    draw(this.difference, difference(planes, [this.row, this.row.other], scale), model.difference);
  }
}

/** One pair, large. */
export class PairView extends MapView {
  constructor() {
    super();
    this.name("models");
    this.three.remove();
  }

  get other() {
    return this.row?.other || null;
  }

  async load(row) {
    const { other } = this;
    const wanted = [row, other].filter((one) => one?.locator);
    // One is shown if the other is missing.
    const found = await Promise.allSettled(wanted.map((one) => askPlane(one, null, () => this.row === row)));
    if (this.row !== row) return;
    const planes = found.map(({ value }) => value || null);
    this.planes = wanted.length === 2 ? planes : null;
    [this.plane] = planes;
    const problems = found.map(({ reason }) => reason).filter((reason) => reason && reason.name !== "AbortError");
    this.note.textContent = other ? problems.map(({ message }) => message).join("; ") : "the second manifest has no such map";
    this.arrange();
    this.showFacts();
  }

  reset(name) {
    this.planes = null;
    super.reset(name);
  }

  arrange() {
    const { row, other } = this;
    if (!row) return;
    this.clear();
    const pane = (of, title) => ({ title, content: [this.picture(row, of === row), this.map()], label: `${title}: overlay of ${row.name}` });
    const panes = [pane(row, model.manifest.label)];
    if (other) {
      panes.push(pane(other, model.manifest.other.label));
      if (model.manifest.images) panes.push({ title: "image", content: [this.picture(row, false)], label: `image of ${row.name}` });
      panes.push({ title: "difference", content: [this.map("alone")], label: `difference of ${row.name}` });
    }
    this.spread(panes);
  }

  paint() {
    const { row, other, planes, canvases } = this;
    if (!row) return;
    const scale = other ? scaleOf(row, other) : null;
    if (this.plane) this.drawOn(canvases[0], this.plane, row, scale);
    if (planes?.[1]) this.drawOn(canvases[1], planes[1], other, scale);
    if (planes?.every(Boolean) && scale) draw(canvases[2], difference(planes, [row, other], scale), model.difference);
  }

  showFacts() {
    const { row, other } = this;
    const measures = [
      ["disagreement", row.disagreement],
      ["difference of means", row.mean_difference],
      ["distance of centers", row.center_distance],
    ];
    this.aside.replaceChildren(
      h("div", { class: "facts" }, h("h2", { text: "second to first" }), h("dl", {}, measures.flatMap(([name, value]) => [h("dt", { text: name }), h("dd", { text: short(value) })]))),
      h("h2", { class: "of", text: model.manifest.label }),
      facts(row, this.plane),
      ...(other ? [h("h2", { class: "of", text: model.manifest.other.label }), facts(other, this.planes?.[1])] : []),
    );
  }

  /** Tell the values of both maps, and their difference. */
  read(at) {
    if (!this.planes?.every(Boolean)) return super.read(at);
    const texts = [this.row, this.other].map((row, number) => this.valueAt(at, this.planes[number], row));
    const values = texts.map(({ value }) => value);
    const step = values.every((value) => value !== null) ? `; difference ${short(values[1] - values[0])}` : "";
    return `${texts[0].where}: ${texts[0].text}, second: ${texts[1].text}${step}`;
  }

  showLayers() {}
}
