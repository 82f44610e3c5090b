// The histogram of the column that sorts, all maps behind those that are shown; dragging in it filters.

import { count, h, moment, parseNumber, rounded, setInput, settled, svg, tell } from "./dom.js";
import { heading, model, onOrder } from "./model.js";
import { source } from "./source.js";
import { change, listen, sortedBy, state } from "./state.js";

const BINS = 48;
const HEIGHT = 56;

/** Return a value of a column as text, exact to a thousandth of the range from ``low`` to ``high``. */
export const textOf = (column, value, low, high) => (column === "time" ? moment(value) : String(rounded(value, low, high)));

/** Return the value in a text; NaN if there is none. */
function parse(column, text) {
  if (column !== "time") return parseNumber(text);
  const time = text.trim().replace(/ ?UTC$/, "").replace(" ", "T");
  return Date.parse(time.length > 10 ? `${time}Z` : time) / 1000;
}

export class Histogram {
  constructor() {
    this.bars = svg("svg", { viewBox: `0 0 ${BINS} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" });
    this.brush = h("div", { class: "brush hidden" });
    this.plot = h("div", { class: "plot" }, this.bars, this.brush);
    this.low = h("input", { type: "text", inputmode: "decimal", "aria-label": "smallest value", spellcheck: "false" });
    this.high = h("input", { type: "text", inputmode: "decimal", "aria-label": "largest value", spellcheck: "false" });
    this.clear = h("button", { type: "button", class: "quiet", text: "all", title: "remove this filter" });
    this.label = h("span", { class: "label" });
    this.range = h("div", { class: "range" }, this.low, h("span", { text: "to" }), this.high, this.clear);
    this.element = h("div", { class: "histogram" }, this.label, this.plot, this.range);
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
    const column = sortedBy();
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
    this.label.textContent = `${heading(column)} of ${count(shown)} maps`;
    const filter = this.current();
    const text = (value) => (value === null ? "–" : textOf(column, value, found.low, found.high));
    setInput(this.low, text(filter?.low ?? found.low));
    setInput(this.high, text(filter?.high ?? found.high));
    this.range.classList.toggle("dates", column === "time");
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
    if (!this.found || this.found.low === null || event.button !== 0) return;
    const box = this.plot.getBoundingClientRect();
    const at = (move) => Math.min(1, Math.max(0, (move.clientX - box.left) / box.width));
    const start = at(event);
    this.plot.setPointerCapture(event.pointerId);
    const move = (next) => this.showBrush([start, at(next)]);
    const drag = new AbortController();
    const end = (next) => {
      drag.abort();
      const ends = [start, at(next)].sort((a, b) => a - b);
      if (next.type === "pointercancel" || ends[1] - ends[0] < 0.01) this.draw(this.column, this.found);
      else this.filter(ends.map((share) => this.value(share)));
    };
    for (const [name, hear] of [["pointermove", move], ["pointerup", end], ["pointercancel", end]]) {
      this.plot.addEventListener(name, hear, { signal: drag.signal });
    }
  }

  value(share) {
    const { low, high } = this.found;
    return share <= 0 || share >= 1 ? "" : rounded(low + share * (high - low), low, high);
  }

  typed() {
    const before = this.current();
    const ends = [[this.low, before?.low], [this.high, before?.high]].map(([input, end]) => {
      if (input.value === input.shown) return end ?? "";
      return input.value.trim() === "" ? "" : parse(this.column, input.value);
    });
    if (ends.some((end) => Number.isNaN(end))) {
      tell(this.column === "time" ? "expected a time such as 2026-05-31 12:00" : "expected a number");
      this.draw(this.column, this.found);
      return;
    }
    this.filter(ends);
  }

  filter(ends) {
    const others = state.filters.filter((filter) => !filter.startsWith(`${this.column}:`));
    const own = ends && (ends[0] !== "" || ends[1] !== "") ? [`${this.column}:${ends[0]}..${ends[1]}`] : [];
    change({ filters: [...others, ...own] }, { keep: true });
    this.refresh();
  }
}
