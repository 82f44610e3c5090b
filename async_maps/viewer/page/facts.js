// All that is known about one map.

import { bytes, copy, count, h, short, svg, utc } from "./dom.js";
import { coloringOf } from "./model.js";
import { source } from "./source.js";

/** Return the facts of a row; ``plane`` may be null. */
export function facts(row, plane) {
  const { settings } = coloringOf(row);
  const range = row.range_low === null ? "–" : `${short(row.range_low)} to ${short(row.range_high)}`;
  const center = row.center_x === null ? "–" : `${short(row.center_x)}, ${short(row.center_y)}`;
  const flags = ["constant", "transparent", "faint"].filter((name) => row[name]);
  const rows = [
    row.status === "failed" && ["failed at", row.stage],
    row.error && ["reason", row.error],
    ["minimum", short(row.minimum)],
    ["maximum", short(row.maximum)],
    ["mean", short(row.mean)],
    ["colors span", range],
    ["high values", row.high_share === null ? "–" : `${(100 * row.high_share).toPrecision(3)}%`],
    ["entropy", row.entropy === null ? "–" : `${short(row.entropy)} bits`],
    ["center of mass", center],
    row.invalid_pixels ? ["invalid pixels", count(row.invalid_pixels)] : null,
    flags.length ? ["flags", flags.join(", ")] : null,
    ["size", row.width ? `${row.width} × ${row.height}` : "–"],
    ["PNG", bytes(row.bytes)],
    row.bytes !== null && ["bytes", count(row.bytes)],
    ["CRC-32", row.crc32 || "–"],
    ["ETag", row.etag || "–"],
    ["stored", utc(row.time)],
    /^(s3|gs):/.test(row.locator) && ["key", row.locator.replace(/^..:\/\/[^/]*\//, "")],
    ["source", row.file && row.file !== row.source ? `${row.source} in ${row.file}` : row.source],
    settings && ["settings", `${settings.colormap.slice(0, 60)}, ${settings.range}, ${settings.png}`],
  ].filter(Boolean);
  return h(
    "div",
    { class: "facts" },
    plane?.changed && h("p", { class: "warning", text: "The object in the store is not the one in this list: it was changed, or uploaded again." }),
    plane && values(plane, row),
    h("dl", {}, rows.flatMap(([name, value]) => [h("dt", { text: name }), h("dd", { text: value, title: value })])),
    row.locator && locator(row),
  );
}

function locator(row) {
  const link = source.overlay(row);
  return h(
    "div",
    { class: "locator" },
    h("code", { text: row.locator }),
    h("div", { class: "line" },
      h("button", { type: "button", text: "copy locator", onclick: () => copy(row.locator) }),
      link && h("a", { class: "button", href: link, target: "_blank", rel: "noopener", text: "open PNG" })),
  );
}

/** Return the histogram of the intensities of a map. */
function values(plane, row) {
  const counts = new Array(64).fill(0);
  for (let at = 0; at < plane.values.length; at += 1) if (!plane.mask || plane.mask[at]) counts[plane.values[at] >> 2] += 1;
  const most = Math.log1p(Math.max(...counts));
  const bars = counts.map((number, at) => {
    const height = most ? (36 * Math.log1p(number)) / most : 0;
    return svg("rect", { x: at + 0.08, width: 0.84, y: 36 - height, height, class: "selected" });
  });
  const ends = row.range_low === null ? ["0", "255"] : [short(row.range_low), short(row.range_high)];
  return h(
    "div",
    { class: "values", title: "pixels by value, logarithmic" },
    svg("svg", { viewBox: "0 0 64 36", preserveAspectRatio: "none", role: "img", "aria-label": "histogram of the values" }, bars),
    h("div", { class: "ticks" }, ends.map((text) => h("span", { text }))),
  );
}
