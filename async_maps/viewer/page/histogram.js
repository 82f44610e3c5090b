// The histogram of the column that sorts, all maps behind those that are shown; dragging in it filters.

import { count, h, settled, short, svg, tell } from "./dom.js";
import { HEADINGS, model, onOrder } from "./model.js";
import { source } from "./source.js";
import { change, listen, state } from "./state.js";

const BINS = 48;
const HEIGHT = 56;

export class Histogram {
  constructor() {
    this.bars = svg("svg", { viewBox: `0 0 ${BINS} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" });
    this.brush = h("div", { class: "brush hidden" });
    this.plot = h("div", { class: "plot" }, this.bars, this.brush);
    this.low = h("input", { type: "text", inputmode: "decimal", "aria-label": "smallest value", spellcheck: "false" });
    this.high = h("input", { type: "text", inputmode: "decimal", "aria-label": "largest value", spellcheck: "false" });
    this.clear = h("button", { type: "button", class: "quiet", text: "all", title: "remove this filter" });
    this.label = h("span", { class: "label" });
    this.element = h("div", { class: "histogram" }, this.label, this.plot, h("div", { class: "range" }, this.low, h("span", { text: "to" }), this.high, this.clear));
    this.found = null;
    this.asked = 0;
    this.plot.addEventListener("pointerdown", (event) => this.drag(event));
    for (const input of [this.low, this.high]) input.addEventListener("change", () => this.typed());
    this.clear.addEventListener("click", () => this.filter(null));
    this.refresh = settled(() => this.load(), 30);
    onOrder(() => this.refresh());
    listen((changed) => changed.has("sort") && this.refresh());
  }

  get column() {
    const column = state.sort.replace(/^-/, "");
    return column === "name" ? "mean" : column;
  }

  async load() {
    if (!model.order.ready) return;
    this.asked += 1;
    const mine = this.asked;
    const { column } = this;
    try {
      const found = await source.histogram(column, model.order.order, BINS);
      if (mine === this.asked) this.draw(column, found);
    } catch (error) {
      if (error.status !== 404) tell(error.message);
    }
  }

  draw(column, found) {
    this.found = found;
    const most = Math.max(1, ...found.all);
    const bar = (height, at, kind) =>
      svg("rect", { x: at + 0.08, width: 0.84, y: HEIGHT - height, height, class: kind });
    const scaled = (value) => (value ? Math.max(1.5, (HEIGHT * value) / most) : 0);
    this.bars.replaceChildren(
      ...found.all.map((value, at) => bar(scaled(value), at, "all")),
      ...found.selected.map((value, at) => bar(scaled(value), at, "selected")),
    );
    const shown = found.selected.reduce((sum, value) => sum + value, 0);
    this.label.textContent = `${HEADINGS[column] || column} of ${count(shown)} maps`;
    const filter = this.current();
    this.low.value = short(filter?.low ?? found.low);
    this.high.value = short(filter?.high ?? found.high);
    this.low.disabled = this.high.disabled = found.low === null;
    this.clear.classList.toggle("hidden", !filter);
    this.showBrush(filter && [this.place(filter.low ?? found.low), this.place(filter.high ?? found.high)]);
  }

  place(value) {
    const { low, high } = this.found;
    return high > low ? Math.min(1, Math.max(0, (value - low) / (high - low))) : 0;
  }

  showBrush(ends) {
    this.brush.classList.toggle("hidden", !ends);
    if (!ends) return;
    this.brush.style.left = `${100 * Math.min(...ends)}%`;
    this.brush.style.width = `${100 * Math.abs(ends[1] - ends[0])}%`;
  }

  current() {
    const text = state.filters.find((filter) => filter.startsWith(`${this.column}:`));
    if (!text) return null;
    const [low, high] = text.slice(this.column.length + 1).split("..");
    return { low: low === "" ? null : Number(low), high: high === "" ? null : Number(high) };
  }

  drag(event) {
    if (!this.found || this.found.low === null) return;
    const box = this.plot.getBoundingClientRect();
    const at = (move) => Math.min(1, Math.max(0, (move.clientX - box.left) / box.width));
    const start = at(event);
    this.plot.setPointerCapture(event.pointerId);
    const move = (next) => this.showBrush([start, at(next)]);
    const end = (next) => {
      this.plot.removeEventListener("pointermove", move);
      const ends = [start, at(next)].sort((a, b) => a - b);
      if (next.type === "pointercancel" || ends[1] - ends[0] < 0.01) this.draw(this.column, this.found);
      else this.filter(ends.map((share) => this.value(share)));
    };
    this.plot.addEventListener("pointermove", move);
    this.plot.addEventListener("pointerup", end, { once: true });
  }

  value(share) {
    const { low, high } = this.found;
    if (share <= 0) return "";
    if (share >= 1) return "";
    return Number((low + share * (high - low)).toPrecision(4));
  }

  typed() {
    const given = [this.low, this.high].map((input) => input.value.trim());
    const numbers = given.map((text) => (text === "" || text === "–" ? "" : Number(text)));
    if (numbers.some((number) => Number.isNaN(number))) {
      tell("expected a number");
      this.draw(this.column, this.found);
      return;
    }
    const ends = [this.found.low, this.found.high];
    this.filter(numbers.map((number, end) => (number !== "" && short(ends[end]) === short(number) ? "" : number)));
  }

  filter(ends) {
    const others = state.filters.filter((filter) => !filter.startsWith(`${this.column}:`));
    const own = ends && (ends[0] !== "" || ends[1] !== "") ? [`${this.column}:${ends[0]}..${ends[1]}`] : [];
    change({ filters: [...others, ...own] }, { keep: true });
    this.refresh();
  }
}
