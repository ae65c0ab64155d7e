// The frame: navigation, search, the view that the URL names, and the state of the live connection.

import { call } from "./api.js";
import { el, put, svg } from "./dom.js";
import { DuplicatesView } from "./duplicates.js";
import { FoldersView } from "./folders.js";
import { count, shortCount } from "./format.js";
import { JunkView } from "./junk.js";
import { showKeys, startKeys } from "./keys.js";
import { LibraryView } from "./library.js";
import { liveState, onLive, startLive } from "./live.js";
import { MachinesView } from "./machines.js";
import { OverviewView } from "./overview.js";
import { go, here, href, onPlace } from "./router.js";
import { SettingsView } from "./settings.js";

const SEARCH_WAIT_MS = 110;

const VIEWS = [
  ["overview", "Overview", OverviewView, "M3 3h8v8H3zM13 3h8v5h-8zM13 10h8v11h-8zM3 13h8v8H3z"],
  ["library", "Library", LibraryView, "M3 5h18v2.4H3zM3 10.8h18v2.4H3zM3 16.6h18V19H3z"],
  ["folders", "Folders", FoldersView, "M3 5h7l2 2.5h9V19H3z"],
  ["duplicates", "Duplicates", DuplicatesView, "M3 3h12v12H3zM17 8h4v13H8v-4h9z"],
  ["junk", "Junk", JunkView, "M9 3h6l1 2h5v2.4H3V5h5zM5 9h14l-1 12H6z"],
  ["machines", "Machines", MachinesView, "M3 4h18v6H3zM3 13h18v6H3zM6 6h2v2H6zM6 15h2v2H6z"],
  ["settings", "Settings", SettingsView,
    "M3 6h9v2.4H3zM16 6h5v2.4h-5zM12.5 4h3v6.4h-3zM3 15.6h4V18H3zM11 15.6h10V18H11zM7.5 13.6h3V20h-3z"],
];

const main = document.getElementById("main");
const search = document.getElementById("search");
const badges = new Map();
let current = { view: null, shown: null };
let searchTimer = 0;

function buildNav() {
  put(document.getElementById("nav"), el("ul", null, VIEWS.map(([view, label, , path]) => {
    const badge = el("span", { class: "badge" });
    badges.set(view, badge);
    return el("li", null, el("a", { href: href(view), "data-view": view },
      svg("svg", { viewBox: "0 0 24 24", "aria-hidden": "true" }, svg("path", { d: path })),
        el("span", { class: "label" }, label), badge));
  })));
}

function show({ view, params }) {
  const found = VIEWS.find(([key]) => key === view) || VIEWS[0];
  if (found[0] !== current.view) {
    if (current.shown) current.shown.destroy();
    const root = el("div", { class: `view view-${found[0]}` });
    put(main, root);
    scrollTo(0, 0);
    current = { view: found[0], shown: new found[2](root) };
    document.title = `${found[1]} \u00B7 medialib`;
    for (const link of document.querySelectorAll("#nav a")) {
      if (link.dataset.view === found[0]) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
  }
  if (document.activeElement !== search) search.value = found[0] === "library" || found[0] === "duplicates"
    ? params.get("q") || "" : "";
  current.shown.update(params);
}

// Searching filters the duplicates where one looks at them, and the library from everywhere else.
function searched() {
  const { view, params } = here();
  const target = view === "duplicates" ? view : "library";
  const next = view === target ? new URLSearchParams(params) : new URLSearchParams();
  next.delete("open");
  if (search.value.trim()) next.set("q", search.value);
  else next.delete("q");
  const typingOn = view === target && params.has("q");
  go(target, next, typingOn);
}

function startSearch() {
  search.addEventListener("input", () => {
    clearTimeout(searchTimer);
    searchTimer = setTimeout(searched, SEARCH_WAIT_MS);
  });
  document.getElementById("search-form").addEventListener("submit", (event) => {
    event.preventDefault();
    clearTimeout(searchTimer);
    searched();
    if (current.shown.focusList) current.shown.focusList();
  });
}

function showLive() {
  const state = liveState();
  const words = { online: "Live", lost: "Connection lost", connecting: "Connecting" };
  put(document.getElementById("live"), el("span", { class: `dot d-${state}` }),
    el("span", { class: "label" }, words[state]));
  const lost = document.getElementById("lost");
  lost.hidden = state !== "lost";
  lost.textContent = state === "lost"
    ? "The connection to the host is lost. What you see may be old; trying again by itself." : "";
}

function showCounts({ files }) {
  badges.get("library").textContent = shortCount(files);
  badges.get("library").title = `${count(files)} files`;
}

async function readCounts() {
  try {
    const summary = await call("summary");
    showCounts(summary);
    badges.get("duplicates").textContent = shortCount(summary.duplicates.confirmed_groups) || "";
    const online = summary.agents.filter((agent) => agent.state !== "away").length;
    badges.get("machines").textContent = `${online}/${summary.agents.length}`;
    badges.get("machines").title = `${online} of ${summary.agents.length} online`;
  } catch { /* the live state tells of a lost host */ }
}

document.getElementById("skip").addEventListener("click",
  (event) => { event.preventDefault(); main.focus(); });
document.getElementById("keys").addEventListener("click", showKeys);
buildNav();
startSearch();
startKeys(() => current.shown, search);
onPlace(show);
show(here());
showLive();
onLive("state", showLive);
onLive("counts", showCounts);
onLive("agents", readCounts);
onLive("again", readCounts);
startLive();
readCounts();
