// Asks the server. All addresses are relative, so that proxies and forwarded ports work.

import { unpack } from "./color.js";
import { busy } from "./dom.js";

async function ask(...request) {
  busy(1);
  try {
    return await send(...request);
  } finally {
    busy(-1);
  }
}

async function send(path, query = {}) {
  const found = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    for (const item of Array.isArray(value) ? value : [value]) {
      if (item !== undefined && item !== null && item !== "") found.append(name, item);
    }
  }
  const text = found.toString();
  let answer;
  try {
    answer = await fetch(text ? `${path}?${text}` : path);
  } catch {
    throw new SourceError("the server does not answer: async-maps view has ended", 0);
  }
  if (!answer.ok) throw new SourceError(await reason(answer), answer.status);
  // The whole answer, so that nothing is asked anymore when the page says so.
  return { headers: answer.headers, body: await answer.arrayBuffer() };
}

async function reason(answer) {
  const text = await answer.text();
  try {
    return JSON.parse(text).error;
  } catch {
    return text.slice(0, 300) || answer.statusText;
  }
}

const json = async (...request) => JSON.parse(new TextDecoder().decode((await ask(...request)).body));

export class SourceError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export const source = {
  isStatic: false,
  describe: () => json("api/manifest"),
  order: ({ sort, filters, search, fresh, wait }) =>
    json("api/order", { sort, f: filters, q: search, fresh: fresh ? 1 : "", wait: wait ? 1 : "" }),
  rows: (order, from, n) => json(`api/order/${order}/rows`, { from, n }),
  find: (order, name, row) => json(`api/order/${order}/find`, { name, row }),
  marks: (order) => json(`api/order/${order}/marks`),
  histogram: (column, order, bins) => json("api/histogram", { column, order, bins }),
  scale: () => json("api/scale"),
  layers: (name) => json("api/layers", { name }),
  failures: () => json("api/failures"),
  counts: () => json("api/counts"),
  models: () => json("api/models"),
  run: (since) => json("api/run", { since }),
  colors: async (name, alpha) => (await json("api/colors", { name, alpha })).table,

  /** Return the intensities of a map, at most ``side`` pixels on a side, or all of them. */
  async plane(row, side) {
    const path = side ? `thumb/map/${row.row}` : `map/${row.row}/indices`;
    const answer = await ask(path, { v: row.crc32, side, of: row.of });
    const plane = unpack(answer.body);
    plane.changed = answer.headers.get("Async-Maps-Changed") === "1";
    return plane;
  },

  /** Return the address of the image of a map, and ask why there is none if it cannot be loaded. */
  image(row, side, turned, session) {
    const query = new URLSearchParams({ v: session });
    if (side) query.set("side", side);
    if (row.of) query.set("of", row.of);
    if (!turned) query.set("turned", 0);
    return `${side ? "thumb/image" : "image"}/${row.row}?${query}`;
  },
  async whyNoImage(address) {
    try {
      await ask(address);
      return "the image cannot be shown";
    } catch (error) {
      return error.message;
    }
  },
  overlay: (row) => `map/${row.row}?v=${encodeURIComponent(row.crc32)}${row.of ? `&of=${row.of}` : ""}`,
};
