// The page: a bar, a panel, and one of the views.

import { byId, count, h, settled, tell } from "./dom.js";
import { Gallery, Scrubber } from "./gallery.js";
import { hearKeys, help } from "./keys.js";
import { MapView } from "./map.js";
import { onMarks, openMarks } from "./marks.js";
import { askTable, load, model, onOrder, reorder } from "./model.js";
import { PairTile, PairView } from "./models.js";
import { Panel } from "./panel.js";
import { RunView } from "./run.js";
import { source } from "./source.js";
import { change, listen, start, state } from "./state.js";

const COUNT_EVERY_MS = 2000;
const MANY = 200_000; // rows that take long to count
const ORDER = ["sort", "filters", "search"];
const COLORS = ["threshold", "colors", "fade", "scale"];

const PAIRS = { make: () => new PairTile(), pictures: 3 };
const OF_GALLERY = { maps: "maps", map: "maps", models: "models", pair: "models" };

const views = {};

function bar() {
  const { name, address, destination, other } = model.manifest;
  const search = h("input", { id: "search", type: "search", placeholder: "search names", "aria-label": "search names", spellcheck: "false", autocomplete: "off" });
  const seek = settled(() => change({ search: search.value.trim() }, { keep: true }), 200);
  search.addEventListener("input", seek);
  listen((changed) => changed.has("search") && document.activeElement !== search && (search.value = state.search));
  search.value = state.search;
  const tab = (view, text) => h("a", { href: "#/", "data-view": view, text, onclick: (event) => {
    event.preventDefault();
    // The pairs that disagree most come first.
    change(view === "models" && state.sort === "name" ? { view, sort: "-disagreement" } : { view }, { keep: true });
  } });
  const counts = h("span", { class: "counts", "aria-live": "polite" });
  const fresh = h("button", { type: "button", class: "fresh hidden", onclick: () => refresh() });
  byId("bar").replaceChildren(
    h("span", { class: "logo", "aria-hidden": "true" }),
    h("span", { class: "title", text: name, title: `${address}\n${destination}` }),
    counts, fresh,
    h("nav", { "aria-label": "views" }, tab("maps", "maps"), other && tab("models", "models"), tab("run", "run")),
    h("span", { class: "spring" }),
    search,
    h("button", { type: "button", class: "quiet", text: "?", title: "keys", "aria-label": "keys", onclick: help }),
  );
  const show = () => {
    const { done, failed } = model.manifest.counts;
    const { total, all } = model.order;
    const selected = total === all ? "" : `${count(total)} selected of `;
    counts.textContent = `${selected}${count(done)} done${failed ? `, ${count(failed)} failed` : ""}`;
    for (const link of byId("bar").querySelectorAll("nav a")) {
      if (link.dataset.view === (OF_GALLERY[state.view] || state.view)) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
  };
  onOrder(show);
  listen(show);
  show();
  return fresh;
}

/** Look for new rows of a run that writes; the order does not change under the reader. */
function watch(fresh) {
  if (source.isStatic) return;
  const look = async () => {
    setTimeout(look, COUNT_EVERY_MS * (model.order.all > MANY ? 5 : 1));
    if (document.hidden) return;
    try {
      const counts = await source.counts();
      const more = counts.done + counts.failed - model.order.all;
      model.latest = counts;
      if (!model.order.ready || more <= 0) return;
      fresh.classList.remove("hidden");
      fresh.textContent = `${count(more)} new: show`;
    } catch (error) {
      if (error.status === 0) tell(error.message, 6);
    }
  };
  setTimeout(look, COUNT_EVERY_MS);
}

/** Sort pairs anew when their pixels are measured; a short wait only, else when the reader asks for it. */
async function watchMeasures(fresh) {
  if (source.isStatic || !isModels() || !state.sort.endsWith("disagreement") || watchMeasures.isOn) return;
  watchMeasures.isOn = true;
  const began = performance.now();
  let known = 0;
  while (isModels()) {
    const { measured, to_measure: all, is_measuring: goesOn } = await source.models();
    const isSoon = performance.now() - began < 3000;
    if (!goesOn && isSoon && measured) {
      fresh.classList.add("hidden");
      await reorder();
    } else if (measured > known) {
      fresh.textContent = `${count(measured)} of ${count(all)} pairs measured: sort anew`;
      fresh.classList.remove("hidden");
    }
    known = measured;
    if (!goesOn) break;
    await new Promise((done) => setTimeout(done, isSoon ? 150 : 2000));
  }
  watchMeasures.isOn = false;
}

async function refresh() {
  document.querySelector(".fresh").classList.add("hidden");
  const more = model.latest ? model.latest.done + model.latest.failed - model.order.all : 0;
  if (more > 0) model.manifest.counts = model.latest;
  await reorder({ fresh: more > 0 });
}

function looks() {
  const { style } = document.documentElement;
  style.setProperty("--opacity", state.overlay ? state.opacity / 100 : 0);
  document.documentElement.classList.toggle("no-overlay", !state.overlay);
}

function show() {
  const { gallery, scrubber, run } = views;
  const map = isModels() ? views.pair : views.map;
  const element = { map: map.element, pair: map.element, run: run.element }[state.view] || gallery.element;
  gallery.use(isModels() ? PAIRS : undefined);
  if (byId("main").firstElementChild !== element) {
    const top = gallery.top();
    byId("main").replaceChildren(...(element === gallery.element ? [element, gallery.empty] : [element]));
    byId("foot").replaceChildren(...(element === gallery.element ? [scrubber.element] : []));
    document.body.dataset.view = state.view;
    if (element === gallery.element) {
      gallery.measure();
      gallery.freshen();
      gallery.goTo(map.place ?? top, true);
      if (map.place !== null && map.place !== undefined) gallery.focusOn(map.place);
    }
    if (state.view === "run") run.show();
  }
  document.title = state.view === "map" || state.view === "pair" ? `${state.name} – ${model.manifest.name}` : `${model.manifest.name} – async-maps`;
}

async function changed(names) {
  const has = (some) => some.some((name) => names.has(name));
  if (has(["overlay", "opacity"])) looks();
  if (has(["colors", "fade"])) await askTable();
  if (has(["colors", "fade"])) views.panel.refresh();
  if (has(COLORS)) views.gallery.repaint();
  if (names.has("size")) views.gallery.measure();
  if (names.has("turned")) views.gallery.reimage();
  if (has(["view", "name"])) show();
  // Models are in an order of their own: only pairs are in it.
  if (has(ORDER) || (names.has("view") && isModels() !== wasModels)) await reorder();
  wasModels = isModels();
  watchMeasures(document.querySelector(".fresh"));
  shownMap()?.changed(names);
}

let wasModels = false;

const isModels = () => OF_GALLERY[state.view] === "models";
const shownMap = () => ({ map: views.map, pair: views.pair })[state.view];

async function main() {
  start();
  await Promise.all([load(), reorder(), askTable()]);
  openMarks();
  looks();
  const fresh = bar();
  views.gallery = new Gallery({
    onMove: (place) => views.scrubber?.show(place),
    onOpen: (row, place) => {
      (isModels() ? views.pair : views.map).next = place;
      change({ view: isModels() ? "pair" : "map", name: row.name }, { keep: true });
    },
  });
  views.scrubber = new Scrubber(views.gallery);
  views.map = new MapView();
  views.pair = new PairView();
  wasModels = isModels();
  views.run = new RunView();
  onMarks(() => views.gallery.recaption());
  show();
  views.panel = new Panel(byId("side"));
  onOrder(() => shownMap()?.locate());
  listen(changed);
  hearKeys(shownMap);
  show();
  shownMap()?.show();
  watch(fresh);
  watchMeasures(fresh);
}

main().catch((error) => {
  byId("main").replaceChildren(h("p", { class: "empty", role: "alert", text: error.message }));
});
