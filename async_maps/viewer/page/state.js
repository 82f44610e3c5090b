// What is shown, kept in the address: reload, the back button and links lead to the same view.

const LOOK = {
  overlay: true, // whether overlays are shown
  opacity: 80, // percent
  threshold: 0, // intensities below it are hidden, 0 to 255
  colors: "", // a colormap; "" for that of the run
  fade: true, // whether low intensities of that colormap are transparent
  scale: "", // "" for each map's own, else "LOW,HIGH" for all
  size: 200, // of a tile, in pixels
  turned: true, // whether images are turned as their EXIF data say
};

export const state = {
  view: "maps", // maps, map, models, pair or run
  name: "", // the map that is shown
  sort: "name",
  filters: [],
  search: "",
  at: 0, // the place of the first map that the gallery shows
  panes: "one", // of a map: one, three or layers
  ...LOOK,
};

const PANES = ["one", "three", "layers"];
const LIMITS = { opacity: [0, 100], threshold: [0, 255], size: [64, 480] };

const listeners = new Set();
let written = "";

/** Call a function with the names of what has changed. */
export function listen(listener) {
  listeners.add(listener);
}

/** Return the column that maps are sorted by. */
export const sortedBy = () => state.sort.replace(/^-/, "");

/** Note the place of the gallery in the address, for a reload. */
export function keepPlace(place) {
  if (state.at === place) return;
  state.at = place;
  write(false);
}

/** Change the state; ``keep`` adds an entry to the history of the browser. */
export function change(changes, { keep = false } = {}) {
  const changed = Object.keys(changes).filter((name) => String(changes[name]) !== String(state[name]));
  if (!changed.length) return;
  Object.assign(state, changes);
  write(keep);
  for (const listener of listeners) listener(new Set(changed));
}

/** Read the state from the address; return whether it was there. */
export function read() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?", 2);
  const [view, ...rest] = path.split("/");
  const found = new URLSearchParams(query || "");
  const next = {
    view: ["map", "run", "models", "pair"].includes(view) ? view : "maps",
    name: decode(rest.join("/")),
    sort: found.get("sort") || "name",
    filters: found.getAll("f"),
    search: found.get("q") || "",
    at: Math.max(0, Math.floor(Number(found.get("at"))) || 0),
    panes: PANES.includes(found.get("panes")) ? found.get("panes") : "one",
  };
  for (const [name, usual] of Object.entries(LOOK)) next[name] = parse(found.get(name), usual, LIMITS[name]);
  const changed = Object.keys(next).filter((name) => String(next[name]) !== String(state[name]));
  Object.assign(state, next);
  written = location.hash;
  if (changed.length) for (const listener of listeners) listener(new Set(changed));
}

export function start() {
  read();
  addEventListener("popstate", read);
  addEventListener("hashchange", () => location.hash !== written && read());
}

function write(keep) {
  const found = new URLSearchParams();
  if (state.sort !== "name") found.set("sort", state.sort);
  for (const filter of state.filters) found.append("f", filter);
  if (state.search) found.set("q", state.search);
  if (state.at) found.set("at", state.at);
  if (state.panes !== "one") found.set("panes", state.panes);
  for (const [name, usual] of Object.entries(LOOK)) {
    if (state[name] !== usual) found.set(name, typeof usual === "boolean" ? Number(state[name]) : state[name]);
  }
  const path = state.view === "maps" ? "" : ["map", "pair"].includes(state.view) ? `${state.view}/${encode(state.name)}` : state.view;
  const query = found.toString();
  written = `#/${path}${query ? `?${query}` : ""}`;
  if (written === location.hash) return;
  try {
    history[keep ? "pushState" : "replaceState"](null, "", written);
  } catch {
    // A page inside a notebook has no address.
  }
}

const encode = (name) => name.split("/").map(encodeURIComponent).join("/");

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

function parse(text, usual, limits) {
  if (text === null) return usual;
  if (typeof usual === "boolean") return text !== "0";
  if (typeof usual === "number") return Number.isFinite(Number(text)) ? Math.min(limits[1], Math.max(limits[0], Number(text))) : usual;
  return text;
}
