// What stands where nothing is yet: what this place will show, and what to do next.

import { el } from "./dom.js";

export function emptyState(title, text, ...actions) {
  return el("div", { class: "empty" }, el("h2", null, title), el("p", null, text),
    el("div", { class: "row" }, actions));
}

export function loading(text = "Loading") {
  return el("p", { class: "loading", role: "status" }, `${text}\u2026`);
}

export function failed(error, again) {
  return el("div", { class: "empty bad" }, el("h2", null, "This could not be loaded"),
    el("p", null, `${error.message}${error.detail ? `: ${error.detail}` : ""}`),
    again ? el("button", { type: "button", on: { click: again } }, "Try again") : null);
}
