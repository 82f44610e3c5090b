// The panel: how overlays look, in which order, and which maps are shown.

import { parseScale } from "./color.js";
import { count, framed, h, idle, parseNumber, rounded, setInput, short, tell, write } from "./dom.js";
import { Histogram, textOf } from "./histogram.js";
import { clearMarks, counted, download, onMarks } from "./marks.js";
import { heading, model, onOrder, onRows, tableOf } from "./model.js";
import { scaleOf } from "./models.js";
import { source } from "./source.js";
import { change, listen, sortedBy, state } from "./state.js";

export class Panel {
  constructor(place) {
    place.append(this.look(), this.order(), this.show(), this.marks());
    const refresh = framed(() => this.refresh());
    listen(refresh);
    onOrder(refresh);
    onOrder(() => this.failed !== model.manifest.counts.failed && this.loadFailures());
    onRows(() => this.drawBar());
    onMarks(() => this.countMarks());
    this.refresh();
    this.countMarks();
    this.histogram.refresh();
    this.failed = model.manifest.counts.failed;
    idle().then(() => this.loadFailures());
  }

  look() {
    this.overlay = toggle("overlay", "overlay", "space");
    this.opacity = slider("opacity", "opacity", 0, 100, "[ ]");
    this.threshold = slider("threshold", "threshold", 0, 255);
    const names = ["", ...model.manifest.colormaps];
    this.colors = h(
      "select",
      { "aria-label": "colormap", onchange: () => change({ colors: this.colors.value }) },
      names.map((name) => h("option", { value: name, text: name || "as uploaded" })),
    );
    this.fade = toggle("fade", "fade low values");
    this.own = h("button", { type: "button", text: "own", title: "each map has the range that it was colored with", onclick: () => change({ scale: "" }) });
    this.one = h("button", { type: "button", text: "one for all", title: "equal values have equal colors in all maps", onclick: () => this.oneScale() });
    this.low = h("input", { type: "text", inputmode: "decimal", "aria-label": "value of the lowest color" });
    this.high = h("input", { type: "text", inputmode: "decimal", "aria-label": "value of the highest color" });
    for (const input of [this.low, this.high]) input.addEventListener("change", () => this.typedScale());
    this.ends = h("div", { class: "range" }, this.low, h("span", { text: "to" }), this.high);
    this.bar = h("canvas", { class: "colorbar", width: 256, height: 1, role: "img", "aria-label": "color bar" });
    this.ticks = h("div", { class: "ticks" });
    this.difference = h("canvas", { class: "colorbar", width: 256, height: 1, role: "img", "aria-label": "color bar of the difference" });
    this.differences = h("div", { class: "ticks" });
    this.size = slider("size", "tile size", 64, 480);
    this.turned = toggle("turned", "turn images by EXIF");
    return section(
      "Look",
      this.overlay.element,
      this.opacity.element,
      this.threshold.element,
      h("div", { class: "line" }, h("label", { text: "colors" }), this.colors),
      this.fade.element,
      h("div", { class: "line" }, h("span", { class: "label", text: "scale" }), h("div", { class: "choice", role: "group", "aria-label": "scale" }, this.own, this.one)),
      this.ends,
      h("div", { class: "bar" }, this.bar, this.ticks),
      model.manifest.other && h("div", { class: "of-models" }, this.legend(), h("div", {}, this.difference, this.differences)),
      this.size.element,
      model.manifest.images ? this.turned.element : null,
    );
  }

  /** Tell which picture of a pair is of which model. */
  legend() {
    const { label, other } = model.manifest;
    const parts = [["left", label], ["middle", other.label], ["right", "difference, second minus first"]];
    return h("dl", {}, parts.flatMap(([name, text]) => [h("dt", { text: name }), h("dd", { text, title: text })]));
  }

  order() {
    const columns = ["name", ...model.manifest.columns];
    this.sort = h(
      "select",
      { "aria-label": "sort by", onchange: () => this.sortBy(this.sort.value, this.isDown()) },
      columns.map((name) => h("option", { value: name, text: heading(name) })),
    );
    this.down = h("button", { type: "button", class: "down", onclick: () => this.sortBy(this.sort.value, !this.isDown()) });
    this.histogram = new Histogram();
    this.chips = h("div", { class: "chips", role: "group", "aria-label": "filters" });
    const line = h("div", { class: "line" }, h("label", { text: "sort by" }), this.sort, this.down);
    return section("Order", line, this.histogram.element, this.chips);
  }

  show() {
    const states = { "": "all", "is:done": "done", "is:failed": "failed" };
    this.status = Object.entries(states).map(([filter, text]) =>
      h("button", { type: "button", text, value: filter, onclick: () => this.filterStatus(filter) }),
    );
    const flags = model.manifest.states.filter((name) => name !== "done" && name !== "failed");
    this.flags = flags.map((name) => {
      const filter = `is:${name}`;
      const box = h("input", { type: "checkbox", onchange: () => this.filterBy(filter, box.checked) });
      box.filter = filter;
      return h("label", { class: "check" }, box, h("span", { text: name }));
    });
    this.failures = h("ul", { class: "failures" });
    return section(
      "Show",
      h("div", { class: "choice", role: "group", "aria-label": "status" }, this.status),
      h("div", { class: "checks" }, this.flags),
      this.failures,
    );
  }

  marks() {
    this.counts = h("div", { class: "marks" });
    this.save = h("button", { type: "button", text: "download as CSV", onclick: download });
    this.forget = h("button", { type: "button", class: "quiet", text: "clear", onclick: () => this.clearMarks() });
    this.forget.addEventListener("blur", () => this.askToClear(false));
    return section("Marks", this.counts, h("div", { class: "line" }, this.save, this.forget));
  }

  /** Ask first: marks are work. */
  clearMarks() {
    const { isAsked } = this;
    this.askToClear(!isAsked);
    if (isAsked) clearMarks();
  }

  askToClear(isAsked) {
    this.isAsked = isAsked;
    write(this.forget, isAsked ? "clear all?" : "clear");
  }

  refresh() {
    this.overlay.set(state.overlay);
    this.opacity.set(state.opacity, `${state.opacity}%`);
    this.threshold.set(state.threshold, this.thresholdText());
    this.fade.set(state.fade);
    this.fade.element.classList.toggle("hidden", !state.colors);
    this.size.set(state.size, `${state.size} px`);
    this.turned.set(state.turned);
    if (![...this.colors.options].some((option) => option.value === state.colors)) {
      this.colors.append(h("option", { value: state.colors, text: state.colors }));
    }
    this.colors.value = state.colors;
    const scale = parseScale(state.scale);
    press(this.own, !scale);
    press(this.one, Boolean(scale));
    this.ends.classList.toggle("hidden", !scale);
    if (scale) for (const [input, end] of [[this.low, scale.low], [this.high, scale.high]]) setInput(input, String(rounded(end, scale.low, scale.high)));
    this.sort.value = sortedBy();
    this.down.textContent = this.isDown() ? "↓" : "↑";
    this.down.setAttribute("aria-label", this.isDown() ? "descending" : "ascending");
    this.down.title = this.isDown() ? "largest first" : "smallest first";
    const status = state.filters.find((filter) => filter === "is:done" || filter === "is:failed") || "";
    for (const button of this.status) press(button, button.value === status);
    for (const label of this.flags) {
      const box = label.querySelector("input");
      box.checked = state.filters.includes(box.filter);
    }
    for (const button of this.failures.querySelectorAll("button")) press(button, state.filters.includes(button.value));
    this.showChips();
    this.drawBar();
  }

  /** Show the filters of columns, each with a way to remove it. */
  showChips() {
    const filters = state.filters.filter((filter) => filter.includes(".."));
    this.chips.replaceChildren(
      ...filters.map((filter) => {
        const [column, range] = [filter.slice(0, filter.indexOf(":")), filter.slice(filter.indexOf(":") + 1)];
        const [low, high] = range.split("..").map((end) => end && textOf(column, Number(end)));
        const text = `${heading(column)} ${low === "" ? `up to ${high}` : high === "" ? `from ${low}` : `${low} to ${high}`}`;
        return h("button", { type: "button", text: `${text} ×`, "aria-label": `remove the filter ${text}`, onclick: () => this.filterBy(filter, false) });
      }),
    );
  }

  /** Draw the color bar for the map that is shown, or for one of the gallery. */
  drawBar() {
    const row = example();
    const table = tableOf(row);
    const image = new ImageData(256, 1);
    for (let at = 0; at < 256; at += 1) {
      image.data.set(table.subarray(4 * at, 4 * at + 3), 4 * at);
      image.data[4 * at + 3] = at < state.threshold ? 0 : 255;
    }
    this.bar.getContext("2d").putImageData(image, 0, 0);
    const ends = endsOf(row);
    const texts = ends ? ticks(ends.low, ends.high) : [`lowest of each ${isPairs() ? "pair" : "map"}`, "", "highest"];
    setTicks(this.ticks, texts);
    this.bar.setAttribute("aria-label", `color bar, ${texts[0]} to ${texts[2]}`);
    if (!model.difference) return;
    this.difference.getContext("2d").putImageData(new ImageData(new Uint8ClampedArray(model.difference.buffer), 256, 1), 0, 0);
    // As in difference(): the colors end at half of the scale.
    const half = ends && (ends.high - ends.low) / 2;
    setTicks(this.differences, half ? ticks(-half, half) : ["first is higher", "", "second"]);
  }

  thresholdText() {
    const ends = endsOf(example());
    if (ends) return short(Number((ends.low + (state.threshold / 255) * (ends.high - ends.low)).toPrecision(3)));
    return `${Math.round((state.threshold / 255) * 100)}%`;
  }

  async oneScale() {
    try {
      const { low, high } = await source.scale();
      if (low === null || !(low < high)) tell("no map has a range");
      else change({ scale: `${low},${high}` });
    } catch (error) {
      tell(error.message);
    }
  }

  typedScale() {
    const before = parseScale(state.scale);
    const [low, high] = [[this.low, before?.low], [this.high, before?.high]].map(([input, end]) => (input.value === input.shown ? end : parseNumber(input.value)));
    if (low < high) change({ scale: `${low},${high}` });
    else tell("expected two numbers, the lower one first");
    this.refresh();
  }

  isDown = () => state.sort.startsWith("-");

  sortBy(column, isDown) {
    change({ sort: `${isDown ? "-" : ""}${column}` }, { keep: true });
  }

  filterStatus(filter) {
    const others = state.filters.filter((other) => !["is:done", "is:failed"].includes(other) && !other.startsWith("group:"));
    change({ filters: filter ? [...others, filter] : others }, { keep: true });
  }

  filterBy(filter, isOn) {
    const others = state.filters.filter((other) => other !== filter);
    change({ filters: isOn ? [...others, filter] : others }, { keep: true });
  }

  /** Show the maps of one group, or of all. */
  toggleGroup(filter) {
    const others = state.filters.filter((other) => !other.startsWith("group:"));
    change({ filters: state.filters.includes(filter) ? others : [...others, filter] }, { keep: true });
  }

  async loadFailures() {
    this.failed = model.manifest.counts.failed;
    try {
      const { groups, ungrouped } = this.failed ? await source.failures() : { groups: [], ungrouped: 0 };
      const items = groups.map(({ key, stage, reason, count: number }) => {
        const filter = `group:${key}`;
        const toggleGroup = () => this.toggleGroup(filter);
        const button = h("button", { type: "button", value: filter, title: reason, onclick: toggleGroup });
        button.append(h("b", { text: count(number) }), h("i", { text: stage }), h("span", { text: reason }));
        return h("li", {}, button);
      });
      if (ungrouped) items.push(h("li", { class: "rest", text: `${count(ungrouped)} more for other reasons` }));
      this.failures.replaceChildren(...items);
      this.refresh();
    } catch (error) {
      tell(error.message);
    }
  }

  countMarks() {
    const counts = counted();
    this.counts.replaceChildren(
      ...["1", "2", "3", "4", "5"].map((mark) =>
        h("span", { class: counts.get(mark) ? "count" : "count none" }, h("b", { text: mark }), h("span", { text: count(counts.get(mark) || 0) })),
      ),
    );
    this.save.disabled = this.forget.disabled = !counts.size;
  }
}

/** Return the map that is shown large, or one of the order that has a range; of a run without one, a row without. */
function example() {
  const { row, manifest } = model;
  if (isLarge() && row?.name === state.name && row.range_low !== null) return row;
  return model.example || { settings: Object.keys(manifest.colorings).at(-1), range_low: null };
}

const isLarge = () => state.view === "map" || state.view === "pair";
const isPairs = () => state.view === "models" || state.view === "pair";

/** Return the values at the ends of the color bar; null if they are those of each map. */
function endsOf(row) {
  const scale = parseScale(state.scale);
  if (scale || row.range_low === null) return scale;
  const isOwn = isLarge() && row.name === state.name;
  if (!isOwn && !isSameForAll()) return null;
  return isPairs() && row.other ? scaleOf(row, row.other) : { low: row.range_low, high: row.range_high };
}

/** Whether the runs of each manifest that is shown have given all its maps one range. */
function isSameForAll() {
  return [model.manifest, isPairs() && model.manifest.other].filter(Boolean).every(({ colorings }) => {
    const ranges = Object.values(colorings).map(({ settings }) => settings?.range).filter(Boolean);
    return ranges.length === 1 && !/^(per-map|percentile|symmetric)/.test(ranges[0]);
  });
}

const ticks = (low, high) => [low, (low + high) / 2, high].map((value) => String(rounded(value, low, high)));

function setTicks(element, texts) {
  element.replaceChildren(...texts.map((text) => h("span", { text })));
}

function section(title, ...children) {
  return h("section", {}, h("h2", { text: title }), ...children);
}

function press(button, isOn) {
  button.setAttribute("aria-pressed", String(isOn));
}

function toggle(name, text, key = "") {
  const box = h("input", { type: "checkbox", onchange: () => change({ [name]: box.checked }) });
  const element = h("label", { class: "check" }, box, h("span", { text }), key && h("kbd", { text: key }));
  return { element, set: (isOn) => (box.checked = isOn) };
}

function slider(name, text, min, max, key = "") {
  const input = h("input", { type: "range", min, max, "aria-label": text, oninput: () => change({ [name]: Number(input.value) }) });
  const output = h("span", { class: "amount" });
  const element = h("div", { class: "line slide" }, h("span", { class: "label", text, title: key ? `keys: ${key}` : "" }), input, output);
  const set = (value, shown) => {
    input.value = value;
    input.setAttribute("aria-valuetext", shown);
    write(output, shown);
  };
  return { element, set };
}
