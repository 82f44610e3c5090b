// The intensities of maps: asked for a few at a time, those that nobody waits for anymore not at all, and kept a while.

import { source } from "./source.js";

const MOST_BYTES = 96 * 2 ** 20;
const CONCURRENT = 6;

const kept = new Map(); // key -> plane, the oldest first
const waiting = new Map(); // key -> wish
const asked = new Map(); // key -> wish
let under = 0;
let size = 0;

const keyOf = (row, side) => `${row.of || ""} ${row.row} ${row.crc32} ${side || 0}`;

/** Return a plane that is here already, or null. */
export function knownPlane(row, side) {
  const key = keyOf(row, side);
  const plane = kept.get(key);
  if (plane) {
    kept.delete(key);
    kept.set(key, plane);
  }
  return plane || null;
}

/** Ask for a plane; ``isWanted`` is asked again before the request, because tiles may have moved on. */
export function askPlane(row, side, isWanted = () => true) {
  const known = knownPlane(row, side);
  if (known) return Promise.resolve(known);
  const key = keyOf(row, side);
  if (asked.has(key)) return asked.get(key).promise;
  let wish = waiting.get(key);
  if (!wish) {
    wish = { row, side, checks: [] };
    wish.promise = new Promise((resolve, reject) => Object.assign(wish, { resolve, reject }));
    wish.promise.catch(() => {});
  }
  wish.checks.push(isWanted);
  waiting.set(key, wish);
  next();
  return wish.promise;
}

async function next() {
  if (under >= CONCURRENT || !waiting.size) return;
  const [key, wish] = waiting.entries().next().value;
  waiting.delete(key);
  if (!wish.checks.some((isWanted) => isWanted())) {
    wish.reject(new DOMException("nobody waits for it", "AbortError"));
    next();
    return;
  }
  under += 1;
  asked.set(key, wish);
  try {
    const plane = await source.plane(wish.row, wish.side);
    keep(key, plane);
    wish.resolve(plane);
  } catch (error) {
    wish.reject(error);
  } finally {
    under -= 1;
    asked.delete(key);
    next();
  }
}

function keep(key, plane) {
  kept.set(key, plane);
  size += plane.values.buffer.byteLength; // with the mask
  for (const [old, { values }] of kept) {
    if (size <= MOST_BYTES || old === key) break;
    kept.delete(old);
    size -= values.buffer.byteLength;
  }
}
