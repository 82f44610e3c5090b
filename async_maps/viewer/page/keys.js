// The keys that work everywhere, and the dialog that lists all.

import { byId, h } from "./dom.js";
import { change, state } from "./state.js";

const KEYS = [
  ["arrows, Home, End", "move in the gallery"],
  ["Enter", "show one map large"],
  ["Escape", "back to all maps"],
  ["Space", "overlay on and off"],
  ["[ ]", "opacity"],
  ["/", "search names"],
  ["1 to 5", "mark a map, or take the mark away"],
  ["← →", "previous and next map, when one is shown"],
  ["s", "overlay, image and map side by side"],
  ["a", "all maps in the same folder side by side"],
  ["+ − 0", "zoom in, zoom out, fit"],
  ["h j k l", "move the picture"],
  ["?", "this list"],
];

export function help() {
  const dialog = h(
    "dialog",
    { "aria-label": "keys", onclick: (event) => event.target === dialog && dialog.close(), onclose: () => dialog.remove() },
    h("h2", { text: "Keys" }),
    h("dl", {}, KEYS.flatMap(([key, text]) => [h("dt", {}, h("kbd", { text: key })), h("dd", { text })])),
    h("form", { method: "dialog" }, h("button", { type: "submit", text: "close" })),
  );
  document.body.append(dialog);
  dialog.showModal();
}

/** Hear keys; ``view`` gets those that are not ours. */
export function hearKeys(view) {
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    const { target } = event;
    const isText = target.matches("input:not([type=range], [type=checkbox]), textarea, select");
    if (isText) {
      if (event.key === "Escape") target.blur();
      return;
    }
    if (document.querySelector("dialog[open]")) return;
    if (event.key === "?") help();
    else if (event.key === "/") byId("search")?.focus();
    else if (event.key === "[") change({ opacity: Math.max(0, state.opacity - 10) });
    else if (event.key === "]") change({ opacity: Math.min(100, state.opacity + 10) });
    else if (event.key === " " && !target.matches("button, a, input:not([type=range])")) change({ overlay: !state.overlay });
    else {
      // A slider has keys of its own.
      if (!(target.matches("input[type=range]") && /^(Arrow|Page|Home|End)/.test(event.key))) view()?.key(event);
      return;
    }
    event.preventDefault();
  });
}
