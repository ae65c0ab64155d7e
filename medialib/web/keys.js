// The keyboard: what each key does, and the list of them that '?' shows.

import { dialogIsOpen, openDialog } from "./dialog.js";
import { el } from "./dom.js";
import { go } from "./router.js";

const GO = { o: "overview", l: "library", f: "folders", d: "duplicates", u: "junk", m: "machines",
  s: "settings" };

const HELP = [
  ["/", "Search"], ["j k \u2193 \u2191", "Move in a list"], ["Enter", "Open"],
    ["Esc", "Close, or leave the search"],
  ["c", "Copy the path of the open file"], ["PgUp PgDn Home End", "Move far"],
    ["Backspace", "In Folders: one up"],
  ["g then o l f d u m s", "Go to Overview, Library, Folders, Duplicates, Junk, Machines, Settings"],
    ["?", "This list"],
];

export function showKeys() {
  openDialog("Keyboard", el("dl", { class: "keys" }, HELP.map(([keys, what]) => [
    el("dt", null, keys.split(" ").map((key) => (key === "then" ? " then " : el("kbd", null, key)))),
      el("dd", null, what)])));
}

const typing = (node) => node.matches("input:not([type=checkbox]), textarea, select");

// `view()` is the view on screen; it may take a key first.
export function startKeys(view, search) {
  let pendingGo = 0;
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || dialogIsOpen()) return;
    if (typing(event.target)) {
      if (event.key === "Escape") event.target.blur();
      if (event.target === search && event.key === "ArrowDown"
        && view().focusList) { view().focusList(); event.preventDefault(); }
      return;
    }
    const went = pendingGo > Date.now() && GO[event.key];
    pendingGo = event.key === "g" ? Date.now() + 1500 : 0;
    if (went) go(went);
    else if (event.key === "/") { search.focus(); search.select(); } else if (event.key === "?") showKeys();
    else if (!(view().key && view().key(event))) return;
    event.preventDefault();
  });
}
