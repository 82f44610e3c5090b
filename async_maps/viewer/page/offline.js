// Answers from data that lie beside the page, or in it: the same questions as source.js, without a server.

import { unpack } from "./color.js";
import { busy } from "./dom.js";

const data = window.ASYNC_MAPS;
const waiting = new Map(); // address -> what hears the plane of a script
const asked = new Map(); // address -> the promise of its text
const orders = new Map();
// Of rows with one name, the first: those that were refused at their source come last.
const byName = new Map([...(data?.rows || [])].reverse().map((row) => [row.name, row]));

/** Called by the scripts with planes. */
if (data) data.plane = (address, text) => waiting.get(address)?.(text);

const STATES = {
  done: (row) => row.status === "done",
  failed: (row) => row.status === "failed",
  transparent: (row) => row.transparent,
  faint: (row) => row.faint,
  constant: (row) => row.constant,
  invalid: (row) => row.invalid_pixels > 0,
  paired: (row) => Boolean(row.other),
};

/** Return a value to sort by, or null. */
const valueOf = (row, column) => (column === "time" ? Date.parse(row.time) / 1000 : (row[column] ?? null));

function parse(filter) {
  const [name, rest] = [filter.slice(0, filter.indexOf(":")), filter.slice(filter.indexOf(":") + 1)];
  if (name === "is") return STATES[rest] || (() => false);
  if (name === "group") {
    const rows = new Set(data.failures.groups.find(({ key }) => key === rest)?.rows);
    return (row) => rows.has(row.row);
  }
  const [low, high] = rest.split("..");
  return (row) => {
    const value = valueOf(row, name);
    return value !== null && (low === "" || value >= Number(low)) && (high === "" || value <= Number(high));
  };
}

function order({ sort, filters, search }) {
  const key = JSON.stringify([sort, filters, search]);
  if (!orders.has(key)) {
    const tests = filters.map(parse);
    const wanted = search.toLowerCase();
    const found = data.rows.filter((row) => row.name.toLowerCase().includes(wanted) && tests.every((test) => test(row)));
    const [column, sign] = [sort.replace(/^-/, ""), sort.startsWith("-") ? -1 : 1];
    if (column === "name") {
      if (sign < 0) found.reverse();
    } else {
      const values = new Map(found.map((row) => [row, valueOf(row, column)]));
      // Rows without a value come last.
      found.sort((one, other) => (values.get(one) === null) - (values.get(other) === null) || sign * (values.get(one) - values.get(other)));
    }
    orders.set(key, found);
  }
  return { order: key, total: orders.get(key).length, all: data.rows.length, ready: true };
}

function histogram(column, key, bins) {
  const count = (rows, low, high) => {
    const counts = new Array(bins).fill(0);
    for (const row of rows) {
      const value = valueOf(row, column);
      if (value !== null) counts[high > low ? Math.min(bins - 1, Math.floor((bins * (value - low)) / (high - low))) : 0] += 1;
    }
    return counts;
  };
  const ends = extremes(column);
  if (!ends) return { low: null, high: null, all: [], selected: [] };
  return { ...ends, all: count(data.rows, ends.low, ends.high), selected: count(orders.get(key) || data.rows, ends.low, ends.high) };
}

function extremes(column) {
  const values = data.rows.map((row) => valueOf(row, column)).filter((value) => value !== null);
  if (!values.length) return null;
  return values.reduce((ends, value) => ({ low: Math.min(ends.low, value), high: Math.max(ends.high, value) }), { low: values[0], high: values[0] });
}

const addressOf = (row) => `${row.of ? "other" : "maps"}/${row.row}`;

/** Get the text of a plane: it is in the page, or in a script, because a page on a disk may not read other files. */
function textOf(address) {
  if (data.planes?.[address]) return Promise.resolve(data.planes[address]);
  if (!asked.has(address)) asked.set(address, load(address));
  return asked.get(address);
}

function load(address) {
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    const end = (answer, value) => {
      waiting.delete(address);
      asked.delete(address);
      script.remove();
      answer(value);
    };
    waiting.set(address, (text) => end(resolve, text));
    script.onerror = () => end(reject, new Error(`${address}.js is missing`));
    script.src = `${address}.js`;
    document.head.append(script);
  });
}

async function plane(row) {
  busy(1);
  try {
    const packed = Uint8Array.from(atob(await textOf(addressOf(row))), (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    return { ...unpack(await new Response(stream).arrayBuffer()), changed: false };
  } finally {
    busy(-1);
  }
}

function marks(key) {
  const rows = orders.get(key) || [];
  const column = JSON.parse(key)[0].replace(/^-/, "");
  return Array.from({ length: rows.length ? 101 : 0 }, (_, at) => valueOf(rows[Math.floor((at / 100) * (rows.length - 1))], column));
}

const soon = async (value) => value;

export const source = {
  isStatic: true,
  describe: () => soon(structuredClone(data.manifest)),
  order: (wanted) => soon(order(wanted)),
  rows: (key, from, n) => soon(orders.get(key).slice(from, from + n)),
  find: (key, name, number) => {
    const row = data.rows.find((other) => other.row === number && other.name === name) || byName.get(name) || null;
    const place = orders.get(key)?.indexOf(row) ?? -1;
    return soon({ row, place: place < 0 ? null : place });
  },
  marks: (key) => soon(marks(key)),
  histogram: (column, key, bins) => soon(histogram(column, key, bins)),
  scale: () => soon({ low: extremes("range_low")?.low ?? null, high: extremes("range_high")?.high ?? null }),
  layers: (name) => {
    const folder = name.slice(0, name.lastIndexOf("/") + 1);
    const found = folder ? data.rows.filter((row) => row.name.startsWith(folder)) : [];
    return soon(found.length > 1 && found.length <= 24 ? found : []);
  },
  failures: () => soon(data.failures),
  counts: () => soon(data.manifest.counts),
  models: () => soon({ measured: 0, to_measure: 0, is_measuring: false }),
  run: (since) => soon({ ...data.run, samples: since ? [] : data.run.samples }),
  colors: async (name, alpha) => {
    const table = data.colors[`${name} ${alpha}`];
    if (!table) throw new Error(`this page does not have the colormap ${name}`);
    return table;
  },
  plane,
  image: (row) => byName.get(row.name)?.image || "",
  whyNoImage: () => soon("its file is missing"),
  overlay: () => null,
};
