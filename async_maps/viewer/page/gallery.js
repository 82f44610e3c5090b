// The gallery: a grid of any number of maps, of which only the visible rows exist.
//
// Browsers cut an element at 33 million pixels (Chromium) or 18 million (Firefox), and a million tiles are higher. So
// the scroll area is a window of at most 4 million pixels that moves when its end is near; the scrubber goes anywhere.

import { count, framed, h, idle, moment, short, utc, write } from "./dom.js";
import { toggle } from "./marks.js";
import { askRows, heading, model, onOrder, onRows, rowAt } from "./model.js";
import { source } from "./source.js";
import { sortedBy, state } from "./state.js";
import { sideFor, Tile } from "./tile.js";

const MAPS = { make: () => new Tile(), pictures: 1 };

const MOST_PIXELS = 4_000_000;
const GAP = 10;
const CAPTION = 20;
const MOST_TILES = 60;
const OVERSCAN = 1;
const RETRY_MS = 2000;

export class Gallery {
  constructor({ onMove, onOpen }) {
    this.kind = MAPS; // of tiles: how one is made, and how many pictures it has beside each other
    this.onMove = onMove;
    this.onOpen = onOpen;
    this.space = h("div", { class: "space", role: "presentation" });
    this.empty = h("p", { class: "empty" });
    this.element = h("div", { class: "grid", role: "grid", tabindex: "-1", "aria-label": "maps" }, this.space);
    this.rows = []; // of elements: {element, tiles, number}
    this.base = 0; // the number of the first row in the scroll area
    this.focus = 0; // the place of the map with the focus
    this.kept = 0; // the place of the first map, while something else is shown
    this.retry = 0;
    this.update = framed(() => this.render());
    this.element.addEventListener("scroll", () => this.scrolled(), { passive: true });
    this.element.addEventListener("keydown", (event) => this.key(event));
    this.element.addEventListener("click", (event) => this.click(event));
    this.element.addEventListener("focusin", (event) => this.focused(event));
    new ResizeObserver(() => this.measure()).observe(this.element);
    onOrder((isSame) => this.reset(isSame));
    onRows(() => model.ratio !== this.ratio && this.measure());
  }

  get total() {
    return model.order.total;
  }

  /** Show other tiles. */
  use(kind = MAPS) {
    if (this.kind === kind) return;
    this.kind = kind;
    this.rows = [];
    this.space.replaceChildren();
  }

  /** Forget what is shown, because there is another order. */
  reset(isSame) {
    if (!isSame) {
      this.focus = this.base = this.kept = 0;
      this.element.scrollTop = 0;
      for (const row of this.rows) row.number = -1;
    }
    this.measure();
  }

  /** Fit tiles into the width; a larger window has larger tiles, because many small ones are slow. */
  measure() {
    const { clientWidth: width, clientHeight: height } = this.element;
    if (!width || !height) return;
    const anchor = this.top();
    this.ratio = model.ratio;
    const { pictures } = this.kind;
    // Pictures of a group are a little smaller.
    let size = Math.max(48, state.size) * (pictures > 1 ? 0.8 * pictures : 1);
    const fits = (side) => Math.max(1, Math.floor((width - GAP) / (side + GAP)));
    while (fits(size) * Math.ceil(height / ((size / pictures) * model.ratio + CAPTION + GAP)) * pictures > MOST_TILES && size < 600 * pictures) size += 8;
    this.columns = fits(size);
    this.size = Math.floor((width - GAP) / this.columns) - GAP;
    this.frame = Math.floor((this.size / pictures) * model.ratio);
    this.height = this.frame + CAPTION + GAP;
    this.side = sideFor(this.size / pictures);
    this.rowCount = Math.ceil(this.total / this.columns);
    this.window = Math.min(this.rowCount, Math.floor(MOST_PIXELS / this.height));
    this.base = Math.min(this.base, this.rowCount - this.window);
    this.element.style.setProperty("--size", `${this.size}px`);
    this.element.style.setProperty("--frame", `${this.frame}px`);
    this.element.style.setProperty("--columns", this.columns);
    this.space.style.height = `${this.window * this.height + GAP}px`;
    this.element.setAttribute("aria-rowcount", this.rowCount);
    this.element.setAttribute("aria-colcount", this.columns);
    for (const row of this.rows) row.number = -1;
    this.goTo(anchor, false);
    this.update();
  }

  /** Return the place of the first map that is shown. */
  top() {
    return this.height ? (this.base + Math.floor(this.element.scrollTop / this.height)) * this.columns : 0;
  }

  /** Scroll to a map; ``isNear``: only as far as needed to see it. */
  goTo(place, isNear) {
    if (!this.columns || !this.total) return;
    const row = Math.floor(Math.min(Math.max(0, place), this.total - 1) / this.columns);
    let top = (row - this.base) * this.height;
    const seen = this.element.clientHeight;
    if (isNear && top >= this.element.scrollTop && top + this.height <= this.element.scrollTop + seen) return;
    if (isNear && top + this.height > this.element.scrollTop + seen) top += this.height - seen + GAP;
    this.scrollTo(this.base * this.height + top);
  }

  /** Scroll to a distance from the start of all rows, and move the window if it is not in it. */
  scrollTo(distance) {
    const most = Math.max(0, this.rowCount * this.height + GAP - this.element.clientHeight);
    const target = Math.min(Math.max(0, distance), most);
    const first = target / this.height - this.base;
    const seen = this.element.clientHeight / this.height;
    if (first < 0 || first + seen > this.window) this.moveWindow(target);
    this.element.scrollTop = target - this.base * this.height;
    this.update();
  }

  moveWindow(target) {
    const middle = Math.floor(target / this.height - this.window / 2);
    this.base = Math.min(Math.max(0, middle), this.rowCount - this.window);
  }

  scrolled() {
    const { scrollTop, clientHeight } = this.element;
    const first = scrollTop / this.height;
    const isAtStart = first < 50 && this.base > 0;
    const isAtEnd = first + clientHeight / this.height > this.window - 50 && this.base + this.window < this.rowCount;
    if (isAtStart || isAtEnd) {
      const target = this.base * this.height + scrollTop;
      this.moveWindow(target);
      this.element.scrollTop = target - this.base * this.height;
    }
    this.update();
  }

  /** Note the place before something else is shown: an element that is taken out forgets it. */
  leave() {
    this.kept = this.top();
  }

  /** Show the place again. */
  enter() {
    const { kept } = this;
    this.measure();
    this.goTo(kept, false);
  }

  render() {
    if (!this.columns || !this.element.isConnected) return;
    const isFocused = this.element.contains(document.activeElement);
    // There is always a map that Tab leads to.
    const end = this.columns * (this.base + Math.ceil((this.element.scrollTop + this.element.clientHeight) / this.height));
    if (!isFocused) this.focus = Math.max(0, Math.min(Math.max(this.focus, this.top()), end - 1, this.total - 1));
    this.renderRows();
    if (isFocused) this.keepFocus();
    this.onMove(this.top());
  }

  /** Leave the focus on its map though another element shows it now, or on the grid if none does. */
  keepFocus() {
    const tile = this.tiles().find((other) => other.place === this.focus);
    const target = tile ? tile.element : this.element;
    if (document.activeElement !== target) target.focus({ preventScroll: true });
  }

  renderRows() {
    const first = Math.max(0, this.base + Math.floor(this.element.scrollTop / this.height) - OVERSCAN);
    const shown = Math.ceil(this.element.clientHeight / this.height) + 1 + 2 * OVERSCAN;
    const last = Math.min(this.rowCount - 1, first + shown - 1);
    const wanted = new Set();
    for (let number = first; number <= last; number += 1) wanted.add(number);
    const free = this.rows.filter((row) => !wanted.has(row.number));
    const here = new Set(this.rows.map((row) => row.number));
    for (const number of wanted) if (!here.has(number)) this.place(free.pop() || this.addRow(), number);
    for (const row of free) {
      row.element.hidden = true;
      row.number = -1;
    }
    for (const row of this.rows) if (wanted.has(row.number)) this.fill(row);
    const missing = [...wanted].some((number) => this.isMissing(number));
    if (missing) {
      const { order } = model.order;
      clearTimeout(this.retry);
      askRows(first * this.columns, Math.min(this.total, (last + 1) * this.columns) - 1).then((got) => {
        if (order !== model.order.order) return;
        if (got.every(Boolean)) {
          this.update();
          return;
        }
        clearTimeout(this.retry);
        this.retry = setTimeout(this.update, RETRY_MS);
      });
    }
    this.empty.textContent = model.order.order && !this.total ? "no map is selected" : "";
  }

  isMissing(number) {
    const first = number * this.columns;
    return rowAt(first) === undefined || rowAt(Math.min(this.total - 1, first + this.columns - 1)) === undefined;
  }

  addRow() {
    const element = h("div", { class: "row", role: "row" });
    const row = { element, tiles: [], number: -1 };
    this.space.append(element);
    this.rows.push(row);
    return row;
  }

  place(row, number) {
    row.number = number;
    row.element.hidden = false;
    row.element.style.transform = `translateY(${(number - this.base) * this.height + GAP}px)`;
    row.element.setAttribute("aria-rowindex", number + 1);
    row.base = this.base;
  }

  fill(row) {
    if (row.base !== this.base) this.place(row, row.number);
    while (row.tiles.length < this.columns) {
      const tile = this.kind.make();
      tile.element.setAttribute("aria-colindex", row.tiles.length + 1);
      row.tiles.push(tile);
      row.element.append(tile.element);
    }
    row.tiles.forEach((tile, column) => {
      const place = row.number * this.columns + column;
      tile.element.hidden = column >= this.columns || place >= this.total;
      if (tile.element.hidden) return;
      tile.show(place, rowAt(place), this.side);
      tile.element.tabIndex = place === this.focus ? 0 : -1;
    });
  }

  /** Return the tiles that exist, those with a map. */
  tiles() {
    return this.rows.flatMap((row) => (row.element.hidden ? [] : row.tiles)).filter((tile) => !tile.element.hidden);
  }

  /** Color all tiles anew, 8 ms at a time; those that are not here are colored when they are shown. */
  repaint() {
    if (!this.element.isConnected) return;
    const tiles = this.tiles().filter((tile) => tile.isLoaded);
    this.painting = tiles;
    const step = () => {
      const until = performance.now() + 8;
      while (tiles.length && this.painting === tiles && performance.now() < until) tiles.shift().paint();
      if (tiles.length && this.painting === tiles) requestAnimationFrame(step);
    };
    step();
  }

  /** Write all captions anew. */
  recaption() {
    for (const tile of this.tiles()) tile.caption();
  }

  focusOn(place) {
    this.focus = Math.min(Math.max(0, place), this.total - 1);
    this.goTo(this.focus, true);
    this.render();
    this.keepFocus();
  }

  focused(event) {
    const tile = event.target.closest(".tile")?.tile;
    if (!tile || tile.place === this.focus) return;
    this.focus = tile.place;
    for (const other of this.tiles()) other.element.tabIndex = other.place === this.focus ? 0 : -1;
  }

  click(event) {
    const tile = event.target.closest(".tile")?.tile;
    if (tile?.row) this.onOpen(tile.row, tile.place);
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const page = this.columns * Math.max(1, Math.floor(this.element.clientHeight / this.height));
    const steps = {
      ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.columns, ArrowDown: this.columns, PageUp: -page, PageDown: page,
      Home: -Infinity, End: Infinity,
    };
    const tile = this.tiles().find((other) => other.place === this.focus);
    if (event.key in steps) {
      const last = this.total - 1;
      const to = steps[event.key] === Infinity ? last : Math.max(0, this.focus + steps[event.key]);
      // Up and down keep the column.
      if (to <= last || Math.floor(this.focus / this.columns) < this.rowCount - 1) this.focusOn(Math.min(to, last));
    } else if (event.key === "Enter" && tile?.row) {
      this.onOpen(tile.row, tile.place);
    } else if (/^[1-5]$/.test(event.key) && tile?.row) {
      toggle(tile.row.name, event.key);
    } else {
      return;
    }
    event.preventDefault();
  }
}

/** The scrubber: where the first map is in the whole order. */
export class Scrubber {
  constructor(gallery) {
    this.gallery = gallery;
    this.range = h("input", { type: "range", min: 0, max: 1000, value: 0, class: "scrubber", "aria-label": "position" });
    this.text = h("span", { class: "where" });
    this.element = h("div", { class: "scrub" }, this.range, this.text);
    this.range.addEventListener("input", () => gallery.goTo(Number(this.range.value), false));
    this.marks = [];
    onOrder(() => this.reset());
    // The first order may be here already.
    this.reset();
  }

  /** Ask what the order is sorted by at each percent: rows that are far away are not here while the scrubber moves. */
  async ask() {
    const { order, ready } = model.order;
    this.marks = [];
    if (!ready) return;
    await idle();
    try {
      const marks = await source.marks(order);
      if (order === model.order.order) this.marks = marks;
    } catch {
      // The scrubber then tells the place alone.
    }
  }

  reset() {
    this.ask();
    this.range.max = Math.max(0, model.order.total - 1);
    this.element.classList.toggle("hidden", model.order.total === 0);
    this.show(this.gallery.top());
  }

  show(place) {
    const { total } = model.order;
    if (document.activeElement !== this.range || Math.abs(this.range.value - place) > this.gallery.columns) this.range.value = place;
    const row = rowAt(place);
    const column = sortedBy();
    const mark = this.marks[Math.round((place / Math.max(1, total - 1)) * (this.marks.length - 1))];
    // A name is only told while its row is not here.
    const value = row ? (column === "name" ? null : row[column]) : mark;
    const shown = value === null || value === undefined ? "" : `, ${heading(column)} ${textOf(column, value)}`;
    const text = `map ${count(Math.min(place + 1, total))} of ${count(total)}${shown}`;
    if (this.text.textContent === text) return;
    write(this.text, text);
    this.range.setAttribute("aria-valuetext", text);
  }
}


/** Return a value of a column, which is a number, or a text: a name, or a time. */
function textOf(column, value) {
  if (column === "time") return typeof value === "number" ? moment(value) : utc(value);
  return typeof value === "number" ? short(Number(value.toPrecision(3))) : value.slice(0, 40);
}
