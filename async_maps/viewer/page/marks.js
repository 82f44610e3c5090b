// Marks of maps, 1 to 5: kept in this browser, and downloaded as a table.

import { model } from "./model.js";

const known = new Map();
const listeners = new Set();
let key = "";

/** Read the marks of a manifest. */
export function openMarks() {
  key = `async-maps marks ${model.manifest.address}`;
  known.clear();
  try {
    for (const [name, mark] of JSON.parse(localStorage.getItem(key) || "[]")) known.set(name, mark);
  } catch {
    // A page inside a notebook has no storage.
  }
}

export const markOf = (name) => known.get(name) || "";

export function onMarks(listener) {
  listeners.add(listener);
}

/** Give a map a mark, or take it away if it has this one. */
export function toggle(name, mark) {
  if (known.get(name) === mark) known.delete(name);
  else known.set(name, mark);
  save();
}

export function clearMarks() {
  known.clear();
  save();
}

/** Return how many maps have each mark. */
export function counted() {
  const counts = new Map();
  for (const mark of known.values()) counts.set(mark, (counts.get(mark) || 0) + 1);
  return counts;
}

/** Return the marks as CSV; texts that a spreadsheet takes for formulas get an apostrophe. */
export function asCsv() {
  const quote = (text) => `"${(/^[=+\-@\t\r]/.test(text) ? `'${text}` : text).replaceAll('"', '""')}"`;
  return ["name,mark", ...[...known].map(([name, mark]) => `${quote(name)},${mark}`)].join("\r\n") + "\r\n";
}

export function download() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([asCsv()], { type: "text/csv" }));
  link.download = "marks.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function save() {
  try {
    localStorage.setItem(key, JSON.stringify([...known]));
  } catch {
    // As above.
  }
  for (const listener of listeners) listener();
}
