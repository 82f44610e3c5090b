// The manifest, the order that is shown and its rows, and the colors of maps.

import { decodeTable, hiddenOf, parseScale, pixelsOf } from "./color.js";
import { idle, tell } from "./dom.js";
import { source } from "./source.js";
import { change, state } from "./state.js";

const PAGE = 100;
const MOST_PAGES = 60;

export const model = {
  manifest: null,
  order: { order: "", total: 0, all: 0, ready: false },
  difference: null, // the colors of differences, from "the first is higher" to "the second is higher"
  ratio: 0.75, // the height of a tile's picture, divided by its width
  row: null, // the map that is shown large
  example: null, // a map of the order that has a range
};

const listeners = new Set();
const hearers = new Set();
const pages = new Map(); // number -> {rows, promise of whether there are rows}
const tables = new Map(); // colormap and alpha -> table
const colors = new Map(); // what decides it -> 256 pixels
const unknown = new Set(); // settings of runs that the manifest has been asked for
let asked = 0;

const HEADINGS = {
  name: "name", minimum: "minimum", maximum: "maximum", mean: "mean", range_low: "range from", range_high: "range to",
  high_share: "share of high values", entropy: "entropy", center_x: "center x", center_y: "center y",
  invalid_pixels: "invalid pixels", width: "width", height: "height", bytes: "bytes", time: "time",
  disagreement: "disagreement", mean_difference: "difference of means", center_distance: "distance of centers",
};

export const heading = (column) => HEADINGS[column] || column;

/** Call a function when there is another order. */
export function onOrder(listener) {
  listeners.add(listener);
}

/** Call a function when further rows are here. */
export function onRows(hearer) {
  hearers.add(hearer);
}

export async function load() {
  model.manifest = await source.describe();
  const { other } = model.manifest;
  for (const side of [model.manifest, other].filter(Boolean)) {
    for (const coloring of Object.values(side.colorings)) coloring.table = decodeTable(coloring.table);
    side.label = side.name;
  }
  if (!other) return;
  if (other.name === model.manifest.name) for (const side of [model.manifest, other]) side.label = side.address;
  const [table, pixels] = [decodeTable(await source.colors("RdBu_r", "opaque")), { scale: null, threshold: 0 }];
  model.difference = pixelsOf(table, { range_low: null }, pixels);
}

/** Ask for the order of the state, and tell all who show it. */
export async function reorder({ fresh = false } = {}) {
  asked += 1;
  const mine = asked;
  const filters = ["models", "pair"].includes(state.view) ? [...state.filters, "is:paired"] : state.filters;
  const wanted = { sort: state.sort, filters, search: state.search, fresh };
  await get(wanted, () => mine === asked, false);
  // The first screen is shown before all names are read.
  if (mine === asked && !model.order.ready) finish(wanted, mine);
}

async function finish(wanted, mine) {
  await idle();
  if (mine === asked) await get({ ...wanted, wait: true }, () => mine === asked, true);
}

async function get(wanted, isWanted, isSame) {
  try {
    const found = await source.order(wanted);
    if (isWanted()) use(found, isSame && found.total === model.order.total);
  } catch (error) {
    if (!isWanted()) return;
    tell(error.message, 10);
    const isPlain = wanted.sort === "name" && !wanted.filters.length && !wanted.search;
    if (error.status !== 400 || isPlain) return;
    const view = { models: "maps", pair: "map" }[state.view] || state.view;
    change({ view, sort: "name", filters: [], search: "" });
    // At the start, nobody else hears the change.
    if (isWanted()) await reorder();
  }
}

function use(found, isSame = false) {
  model.order = found;
  if (!isSame) {
    pages.clear();
    model.example = null;
  }
  for (const listener of listeners) listener(isSame);
}

/** Set the map that is shown large, for those who need an example. */
export function showing(row) {
  model.row = row;
  for (const hearer of hearers) hearer();
}

/** Return a row by its place in the order, or undefined if it is not here yet; null if it is gone. */
export function rowAt(place) {
  return pages.get(Math.floor(place / PAGE))?.rows?.[place % PAGE];
}

/** Get the rows of some places; resolves to whether each page of them is here. */
export function askRows(first, last) {
  const wanted = [];
  for (let number = Math.floor(first / PAGE); number <= Math.floor(Math.max(first, last) / PAGE); number += 1) {
    if (number * PAGE < model.order.total) wanted.push(askPage(number));
  }
  return Promise.all(wanted);
}

function askPage(number) {
  const known = pages.get(number);
  if (known) {
    pages.delete(number);
    pages.set(number, known);
    return known.promise;
  }
  const { order } = model.order;
  const page = { rows: null };
  const forget = () => pages.get(number) === page && pages.delete(number);
  page.promise = source.rows(order, number * PAGE, PAGE).then(
    async (rows) => {
      for (const row of rows) if (row?.other) row.other.of = "other";
      await learn(rows);
      page.rows = rows;
      if (number === 0) shape(rows);
      if (pages.get(number) === page) model.example ||= rows.find((row) => row && row.range_low !== null) || null;
      for (const hearer of hearers) hearer();
      // The first order has only its first rows until all names are read.
      if (!rows.length) forget();
      return rows.length > 0;
    },
    (error) => {
      forget();
      if (order === model.order.order) {
        if (error.status === 404) reorder();
        else tell(error.message, 10);
      }
      return false;
    },
  );
  pages.set(number, page);
  if (pages.size > MOST_PAGES) pages.delete(pages.keys().next().value);
  return page.promise;
}

/** Get the colors of runs that have begun since the page was opened, once for each. */
async function learn(rows) {
  const { other } = model.manifest;
  const isNew = (row) => row && !unknown.has(row.settings) && coloringOf(row) === coloringOf({ ...row, settings: "" });
  const found = rows.flatMap((row) => [row, row?.other]).filter(isNew);
  if (!found.length || source.isStatic) return;
  for (const { settings } of found) unknown.add(settings);
  const told = await source.describe().catch(() => model.manifest);
  for (const [side, now] of [[model.manifest, told], [other, told.other]]) {
    for (const [settings, coloring] of Object.entries(now?.colorings || {})) {
      side.colorings[settings] ||= { ...coloring, table: decodeTable(coloring.table) };
    }
  }
}

/** Let tiles have the shape of the first maps, if they have one. */
function shape(rows) {
  const ratios = rows.map((row) => row?.height / row?.width).filter((ratio) => Number.isFinite(ratio) && ratio > 0);
  ratios.sort((one, other) => one - other);
  if (ratios.length) model.ratio = Math.min(1, Math.max(0.5, ratios[ratios.length >> 1]));
}

/** Return the run's coloring of a row, or that of jet. */
export function coloringOf(row) {
  const { colorings } = row.of ? model.manifest.other : model.manifest;
  // A hostile manifest may name what all objects have.
  return Object.hasOwn(colorings, row.settings) ? colorings[row.settings] : colorings[""];
}

/** Return the table that is shown for a row: that of its run, or of the chosen colormap. */
export function tableOf(row) {
  return state.colors ? tables.get(`${state.colors} ${state.fade}`) || coloringOf(row).table : coloringOf(row).table;
}

/** Get the table of the chosen colormap; resolves when it is here. */
export async function askTable() {
  const { colors: name, fade } = state;
  const key = `${name} ${fade}`;
  if (!name || tables.has(key)) return;
  try {
    tables.set(key, decodeTable(await source.colors(name, fade ? "fade" : "opaque")));
  } catch (error) {
    tell(error.message, 8);
    if (state.colors === name) change({ colors: "" });
  }
}

/** Return the colors of the intensities of a row, as the state wants them; on this scale if there is one. */
export function pixelsFor(row, given = null) {
  const scale = given || parseScale(state.scale);
  const own = scale ? `${row.range_low} ${row.range_high}` : "";
  const table = tableOf(row);
  const isHere = state.colors && tables.has(`${state.colors} ${state.fade}`);
  const ends = scale ? `${scale.low} ${scale.high}` : "";
  const hidden = hiddenOf(row, coloringOf(row));
  const key = [state.colors, state.fade, isHere, row.of, row.settings, state.threshold, ends, own, hidden].join("|");
  let pixels = colors.get(key);
  if (!pixels) {
    if (colors.size > 500) colors.clear();
    pixels = pixelsOf(table, row, { scale, threshold: state.threshold, hidden });
    colors.set(key, pixels);
  }
  return pixels;
}
