// Marks of maps, 1 to 5: kept in this browser, and downloaded as a table.

import { tell } from "./dom.js";
import { model } from "./model.js";

const known = new Map();
const listeners = new Set();
let key = "";
let isKept = true; // whether this browser keeps marks: a page inside a notebook has no storage

/** Read the marks of a manifest, and those that another tab gives. */
export function openMarks() {
  const { place, destination } = model.manifest;
  key = `async-maps marks ${place} ${destination}`;
  read();
  addEventListener("storage", (event) => {
    if (event.key !== key) return;
    read();
    for (const listener of listeners) listener();
  });
}

function read() {
  if (!isKept) return;
  try {
    const kept = JSON.parse(localStorage.getItem(key) || "[]");
    known.clear();
    for (const [name, mark] of kept) known.set(name, mark);
  } catch {
    isKept = false;
  }
}

export const markOf = (name) => known.get(name) || "";

export function onMarks(listener) {
  listeners.add(listener);
}

/** Give a map a mark, or take it away if it has this one. */
export function toggle(name, mark) {
  const isOff = known.get(name) === mark;
  save(() => (isOff ? known.delete(name) : known.set(name, mark)));
}

export function clearMarks() {
  save(() => known.clear());
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
  // Excel reads UTF-8 only with this mark.
  return ["\ufeffname,mark", ...[...known].map(([name, mark]) => `${quote(name)},${mark}`)].join("\r\n") + "\r\n";
}

export function download() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([asCsv()], { type: "text/csv" }));
  link.download = "marks.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/** Change the marks that are kept: another tab may have changed others. */
function save(apply) {
  read();
  apply();
  try {
    localStorage.setItem(key, JSON.stringify([...known]));
  } catch {
    if (!save.isTold) tell("this browser does not keep marks: download them before you leave", 10);
    save.isTold = true;
    isKept = false;
  }
  for (const listener of listeners) listener();
}
