// The run: how far it is, how fast it was, which stage limits it, what failed, and its settings.

import { count, h, short, svg, tell, utc } from "./dom.js";
import { model } from "./model.js";
import { source } from "./source.js";
import { change, state } from "./state.js";

const EVERY_MS = 1000;
const RARELY_MS = 4000;
const STAGES = ["fetch", "colorize", "encode", "upload"];
const STATES = {
  running: "running", complete: "complete", stopped: "stopped early: run it again", lost: "not running on this machine; its end is not recorded",
  empty: "no run yet",
};

export class RunView {
  constructor() {
    this.head = h("div", { class: "numbers" });
    this.charts = h("div", { class: "charts" });
    this.failures = h("div", { class: "card" });
    this.settings = h("div", { class: "card" });
    this.element = h("div", { class: "run" }, h("h1", { text: "The last run" }), this.head, this.charts, h("div", { class: "cards" }, this.failures, this.settings));
    this.samples = [];
    this.started = "";
    this.timer = 0;
    this.asked = 0;
    this.known = ""; // the numbers of failed maps when their reasons were asked for
    document.addEventListener("visibilitychange", () => !document.hidden && this.show());
  }

  /** Ask now, and again while the page is visible. */
  async show() {
    clearTimeout(this.timer);
    if (state.view !== "run" || document.hidden) return;
    this.asked += 1;
    const mine = this.asked;
    let pause = RARELY_MS; // another run may begin
    try {
      const found = await source.run(this.samples.at(-1)?.time || "");
      if (mine !== this.asked) return;
      if (found.run && found.run.started_at !== this.started) {
        // The samples that were asked for may be only its last ones.
        if (this.started) pause = 0;
        this.started = found.run.started_at;
        this.samples = [];
      }
      if (!pause) return;
      this.samples.push(...found.samples);
      if (found.state === "running") pause = EVERY_MS;
      this.draw(found);
      await this.drawFailures(found);
    } catch (error) {
      tell(error.message, 10);
    } finally {
      if (mine === this.asked && !source.isStatic) this.timer = setTimeout(() => this.show(), pause);
    }
  }

  draw({ state: now, run, is_copy: isCopy }) {
    const number = (name, value) => h("div", { class: "number" }, h("b", { text: value }), h("span", { text: name }));
    const { counts } = model.manifest;
    this.head.replaceChildren(
      h("div", { class: `number state ${now}` }, h("b", { text: STATES[now] }), h("span", { text: run?.ended_at ? `ended ${utc(run.ended_at)}` : run ? `since ${utc(run.started_at)}` : "" })),
      ...(run
        ? [
            number("uploaded", count(run.uploaded ?? 0)),
            number("skipped", count(run.skipped ?? 0)),
            number("failed", count(run.newly_failed ?? 0)),
            number(run.total === null ? "listed so far" : "in the source", count(run.total ?? run.listed ?? 0)),
            number("maps/s", short(run.maps_per_s)),
            now === "running" && number("left", (run.eta_s ?? null) === null ? "–" : duration(run.eta_s)),
            number("slowest stage", run.slowest_stage ? `${run.slowest_stage} ${Math.round(100 * run.busy[run.slowest_stage])}%` : "–"),
            number("retries", count(run.retries ?? 0)),
          ]
        : [number("done", count(counts.done)), number("failed", count(counts.failed))]
      ).filter(Boolean),
    );
    if (run?.error) this.head.append(h("p", { class: "warning", text: run.error.message }));
    if (isCopy) this.head.append(h("p", { class: "empty", text: "as it was when the viewer started" }));
    this.drawCharts();
    this.drawSettings(run);
  }

  drawCharts() {
    const points = this.samples.map((sample) => ({ ...sample, at: Date.parse(sample.time) }));
    if (points.length < 2) {
      this.charts.replaceChildren(h("p", { class: "empty", text: "No samples: a run keeps one every 5 seconds." }));
      return;
    }
    // Each value holds since the sample before.
    const since = (value) => points.slice(1).map((point, before) => ({ from: points[before].at, at: point.at, value: value(point, points[before]) }));
    const rates = since((point, before) => {
      const done = point.uploaded + point.failed - before.uploaded - before.failed;
      return point.at > before.at ? (1000 * done) / (point.at - before.at) : 0;
    });
    const stage = (name, what) => since((point) => point.stages[name]?.[what] ?? 0);
    const names = STAGES.filter((name) => points.some((point) => point.stages[name]));
    this.charts.replaceChildren(
      chart("throughput, maps/s", [["maps/s", rates]], null),
      chart("busy workers", names.map((name) => [name, stage(name, "busy")]), 1),
      chart("full queues", names.map((name) => [name, stage(name, "queue")]), 1),
      chart("concurrent uploads", [["limit", since((point) => point.upload_limit)]], null),
    );
  }

  /** Show the reasons of failed maps if there are others: a button that is made anew would lose the focus. */
  async drawFailures({ run }) {
    const known = `${run?.newly_failed} ${(model.latest || model.manifest.counts).failed}`;
    if (known === this.known) return;
    const { groups, ungrouped } = await source.failures();
    this.known = known;
    const rows = groups.map(({ key, stage, reason, count: number, names }) =>
      h("tr", {}, h("td", { class: "right", text: count(number) }), h("td", { text: stage }),
        h("td", {}, h("button", { type: "button", class: "link", text: reason, onclick: () => change({ view: "maps", filters: [`group:${key}`], search: "" }, { keep: true }) }),
          h("small", { text: `such as ${names.slice(0, 2).join(", ")}` }))),
    );
    if (ungrouped) rows.push(h("tr", {}, h("td", { class: "right", text: count(ungrouped) }), h("td"), h("td", { text: "for other reasons" })));
    this.failures.replaceChildren(h("h2", { text: "Failed maps by reason" }), rows.length ? h("table", {}, h("tbody", {}, rows)) : h("p", { class: "empty", text: "none" }));
  }

  drawSettings(run) {
    const pairs = [["source", run?.source || "maps in memory"], ["destination", model.manifest.destination]];
    for (const { settings } of Object.values(model.manifest.colorings)) {
      if (settings) pairs.push(...Object.entries(settings).filter(([, value]) => value !== null));
    }
    this.settings.replaceChildren(
      h("h2", { text: "Settings that affect overlays" }),
      h("dl", {}, pairs.flatMap(([name, value]) => [h("dt", { text: name }), h("dd", { text: String(value).slice(0, 200), title: String(value).slice(0, 2000) })])),
    );
  }
}

function chart(title, lines, most) {
  const [width, height] = [600, 140];
  const all = lines.flatMap(([, points]) => points);
  const [start, end] = [Math.min(...all.map(({ from }) => from)), Math.max(...all.map(({ at }) => at))];
  const top = most ?? nice(Math.max(...all.map(({ value }) => value)) || 1);
  const x = (at) => (end > start ? (width * (at - start)) / (end - start) : 0);
  const y = (value) => height - (height * Math.min(value, top)) / top;
  const grid = [0, 0.5, 1].map((share) => svg("line", { x1: 0, x2: width, y1: height * share, y2: height * share, class: "gridline" }));
  // The last stage, which is the slowest most often, has the accent.
  const look = (number) => `s${lines.length - 1 - number}`;
  const drawn = lines.map(([, points], number) =>
    svg("polyline", { points: points.flatMap(({ from, at, value }) => [from, at].map((time) => `${x(time).toFixed(1)},${y(value).toFixed(1)}`)).join(" "), class: `series ${look(number)}`, "vector-effect": "non-scaling-stroke" }),
  );
  const last = lines.map(([, points]) => points.at(-1).value);
  const percent = (value) => (most === 1 ? `${Math.round(100 * value)}%` : short(value));
  return h(
    "figure",
    { class: "chart" },
    h("figcaption", {}, h("h2", { text: title }), h("span", { class: "legend" }, lines.length > 1 ? lines.map(([name], at) => h("span", { class: `key ${look(at)}`, text: `${name} ${percent(last[at])}` })) : h("span", { text: percent(last[0]) }))),
    h("div", { class: "area" },
      svg("svg", { viewBox: `0 -2 ${width} ${height + 4}`, preserveAspectRatio: "none", role: "img", "aria-label": title }, ...grid, ...drawn),
      h("span", { class: "top", text: percent(top) }), h("span", { class: "bottom", text: "0" })),
    h("div", { class: "ticks" }, h("span", { text: clock(start) }), h("span", { text: clock(end) })),
  );
}

function nice(value) {
  const size = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * size).find((step) => step >= value);
}

const clock = (at) => new Date(at).toLocaleTimeString("en-GB");

function duration(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}
