// The page: a bar, a panel, and one of the views.

import { byId, count, h, settled, tell, write } from "./dom.js";
import { Gallery, Scrubber } from "./gallery.js";
import { hearKeys, help } from "./keys.js";
import { MapView } from "./map.js";
import { onMarks, openMarks } from "./marks.js";
import { askTable, load, model, onOrder, reorder } from "./model.js";
import { PairTile, PairView } from "./models.js";
import { Panel } from "./panel.js";
import { RunView } from "./run.js";
import { source } from "./source.js";
import { change, keepPlace, listen, sortedBy, start, state } from "./state.js";

const COUNT_EVERY_MS = 2000;
const MANY = 200_000; // rows that take long to count
const ORDER = ["sort", "filters", "search"];
const COLORS = ["threshold", "colors", "fade", "scale"];

const PAIRS = { make: () => new PairTile(), pictures: 3 };
const OF_GALLERY = { maps: "maps", map: "maps", models: "models", pair: "models" };

const views = {};

function bar() {
  const { name, address, destination, other } = model.manifest;
  let isTyping = false; // one entry of the history for a text, not for each letter
  const search = h("input", { id: "search", type: "search", placeholder: "search names", "aria-label": "search names", spellcheck: "false", autocomplete: "off" });
  const seek = settled(() => {
    change({ search: search.value.trim(), view: state.view === "run" ? "maps" : state.view }, { keep: !isTyping });
    isTyping = true;
  }, 200);
  search.addEventListener("input", seek);
  search.addEventListener("blur", () => (isTyping = false));
  listen((changed) => changed.has("search") && document.activeElement !== search && (search.value = state.search));
  search.value = state.search;
  const tab = (view) => h("a", { href: `#/${view === "maps" ? "" : view}`, "data-view": view, text: view, onclick: (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
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
    h("nav", { "aria-label": "views" }, tab("maps"), other && tab("models"), tab("run")),
    h("span", { class: "spring" }),
    search,
    h("button", { type: "button", class: "quiet", text: "?", title: "keys", "aria-label": "keys", onclick: help }),
  );
  const show = () => {
    const { done, failed } = model.manifest.counts;
    const { total, all } = model.order;
    const shown = isModels() ? ` · ${count(total)} pairs` : total === all ? "" : ` · ${count(total)} shown`;
    write(counts, `${count(done)} done${failed ? `, ${count(failed)} failed` : ""}${shown}`);
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
  let hasEnded = false;
  const look = async () => {
    setTimeout(look, COUNT_EVERY_MS * (model.order.all > MANY ? 5 : 1));
    if (document.hidden) return;
    try {
      model.latest = await source.counts();
      hasEnded = false;
      if (model.order.ready && isBehind()) {
        const more = model.latest.done + model.latest.failed - model.order.all;
        write(fresh, more > 0 ? `${count(more)} new: show` : "changed: show");
        fresh.classList.remove("hidden");
      }
    } catch (error) {
      if (error.status === 0 && !hasEnded) tell(error.message, 30);
      hasEnded = error.status === 0;
    }
  };
  setTimeout(look, COUNT_EVERY_MS);
}

/** Whether the run has written since the order was made; a map that is retried changes no total. */
function isBehind() {
  const { counts } = model.manifest;
  return Boolean(model.latest) && ["done", "failed"].some((name) => model.latest[name] !== counts[name]);
}

/** Sort pairs anew when their pixels are measured; a short wait only, else when the reader asks for it. */
async function watchMeasures(fresh) {
  const isSorted = () => Boolean(model.manifest.other) && sortedBy() === "disagreement";
  if (source.isStatic || !isSorted() || watchMeasures.isOn) return;
  watchMeasures.isOn = true;
  const began = performance.now();
  let known = 0;
  try {
    for (let goesOn = true; goesOn && isSorted(); ) {
      const isSoon = performance.now() - began < 3000;
      if (!document.hidden) {
        const { measured, to_measure: all, is_measuring: isMeasuring } = await source.models();
        goesOn = isMeasuring;
        if (!goesOn && isSoon && measured) {
          fresh.classList.add("hidden");
          await reorder();
        } else if (measured > known) {
          write(fresh, `${count(measured)} of ${count(all)} pairs measured: sort anew`);
          fresh.classList.remove("hidden");
        }
        known = measured;
      }
      if (goesOn) await new Promise((done) => setTimeout(done, isSoon ? 150 : 2000));
    }
  } catch (error) {
    tell(error.message);
  } finally {
    watchMeasures.isOn = false;
  }
}

async function refresh() {
  document.querySelector(".fresh").classList.add("hidden");
  const isFresh = isBehind();
  if (isFresh) model.manifest.counts = model.latest;
  await reorder({ fresh: isFresh });
}

function looks() {
  const { style } = document.documentElement;
  style.setProperty("--opacity", state.overlay ? state.opacity / 100 : 0);
  document.documentElement.classList.toggle("no-overlay", !state.overlay);
}

function show() {
  const { gallery, scrubber, run } = views;
  const map = shownMap();
  const element = map?.element || (state.view === "run" ? run.element : gallery.element);
  const before = byId("main").firstElementChild;
  document.body.dataset.view = state.view;
  gallery.use(isModels() ? PAIRS : undefined);
  if (before !== element) {
    if (before === gallery.element) gallery.leave();
    byId("main").replaceChildren(...(isGallery() ? [element, gallery.empty] : [element]));
    byId("foot").replaceChildren(...(isGallery() ? [scrubber.element] : []));
    if (isGallery()) {
      gallery.enter();
      const from = [views.map, views.pair].find((view) => view.element === before);
      if (from && from.place !== null) gallery.focusOn(from.place);
    }
    if (map) map.title.focus();
    if (state.view === "run") run.show();
  }
  document.title = map ? `${state.name} – ${model.manifest.name}` : `${model.manifest.name} – async-maps`;
}

async function changed(names) {
  const has = (some) => some.some((name) => names.has(name));
  const { at } = state;
  const isOther = isModels() !== wasModels;
  wasModels = isModels();
  if (has(["overlay", "opacity"])) looks();
  if (has(["colors", "fade"])) await askTable();
  if (has(["colors", "fade"])) views.panel.refresh();
  if (has(COLORS)) views.gallery.repaint();
  if (names.has("size")) views.gallery.measure();
  if (names.has("turned")) views.gallery.update();
  if (has(["view", "name"])) show();
  // Models are in an order of their own: only pairs are in it.
  if (has(ORDER) || isOther) await reorder();
  // Only going back leads to another place.
  if (names.has("at") && isGallery()) views.gallery.goTo(at, false);
  watchMeasures(document.querySelector(".fresh"));
  shownMap()?.changed(names);
}

let wasModels = false;

const isGallery = () => state.view === "maps" || state.view === "models";
const isModels = () => OF_GALLERY[state.view] === "models";
const shownMap = () => ({ map: views.map, pair: views.pair })[state.view];

async function main() {
  start();
  await Promise.all([load(), reorder(), askTable()]);
  openMarks();
  looks();
  const fresh = bar();
  let timer = 0;
  views.gallery = new Gallery({
    onMove: (place) => {
      views.scrubber?.show(place);
      clearTimeout(timer);
      timer = setTimeout(() => isGallery() && keepPlace(views.gallery.top()), 300);
    },
    onOpen: (row, place) => {
      keepPlace(views.gallery.top());
      (isModels() ? views.pair : views.map).next = place;
      change({ view: isModels() ? "pair" : "map", name: row.name }, { keep: true });
    },
  });
  views.scrubber = new Scrubber(views.gallery);
  views.map = new MapView();
  views.pair = new PairView();
  wasModels = isModels();
  views.run = new RunView();
  views.gallery.kept = state.at;
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
