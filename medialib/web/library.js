// Library: every file. The URL holds filter, sort and the open row; the table holds a million rows.

import { Latest, call, download } from "./api.js";
import { COLUMNS, chooseColumns, chosenColumns } from "./columns.js";
import { openDialog } from "./dialog.js";
import { add, button, busyButton, el, plainName, put } from "./dom.js";
import { FileDrawer } from "./drawer.js";
import { emptyState } from "./empty.js";
import { FACET_KEYS, FilterPanel } from "./filter_panel.js";
import { chipsOf, filterOf, withoutChip, withoutFilter } from "./filter.js";
import { bytes, count, machine, plural } from "./format.js";
import { onLive } from "./live.js";
import { PagedRows } from "./paged_rows.js";
import { go, href } from "./router.js";
import { toastError, told } from "./toast.js";
import { VirtualList } from "./virtual_list.js";

const FACETS_WAIT_MS = 250;
const FRESH_MS = 4000;
const LONG_COUNT_S = 3;
const NARROW = matchMedia("(max-width: 700px)");

export class LibraryView {
  constructor(root) {
    this.root = root;
    this.names = { agent: {} };
    this.totals = new Latest();
    this.facetCalls = new Latest();
    this.seq = null;
    this.build();
    this.stops = [onLive("counts", (counts) => this.changed(counts)),
      onLive("again", () => this.reload(true))];
    // A phone that is turned, a window that is made narrow: other columns.
    const turned = () => {
      if (!this.pages) return;
      this.makeList();
      this.showSort();
      this.arrived();
    };
    NARROW.addEventListener("change", turned);
    this.stops.push(() => NARROW.removeEventListener("change", turned));
  }

  build() {
    this.panel = new FilterPanel((next) => go("library", next));
    this.total = el("p", { class: "total", role: "status" });
    this.chips = el("div", { class: "chips" });
    this.stale = button("The catalogue changed: show", () => this.reload(true),
      { class: "small stale", hidden: true });
    this.tools = el("div", { class: "tools" },
      button("Filter", () => this.root.classList.toggle("show-filter"),
        { class: "small narrow-only", "aria-label": "Show the filter" }),
      this.stale,
      button("Columns", () => this.pickColumns(), { class: "small wide-only" }),
      button("Export", () => this.pickExport(), { class: "small" }));
    this.none = el("div", { class: "none" });
    this.place = el("div", { class: "list-place" });
    this.drawer = new FileDrawer(() => this.openRow(null));
    this.makeList();
    put(this.root,
      el("h1", { class: "hidden" }, "Library"),
      el("aside", { class: "filters", "aria-label": "Filter" }, this.panel.node),
      el("section", { class: "results", "aria-label": "Files" },
        el("div", { class: "bar" }, this.total, this.chips, this.tools), this.none, this.place),
      this.drawer.node);
    this.root.classList.add("library");
  }

  makeList() {
    if (this.list) this.list.destroy();
    const narrow = NARROW.matches;
    this.narrow = narrow;
    this.columns = narrow ? COLUMNS.filter((c) => c.key === "name" || c.key === "size") : chosenColumns();
    this.heads = el("tr", null, this.columns.map((column) => this.headCell(column)));
    this.list = new VirtualList({
      label: "Files", head: el("thead", null, this.heads),
      cols: el("colgroup", null, this.columns.map((c) =>
        el("col", { style: { width: narrow ? (c.number ? "6.5em" : "auto") : `${c.width / 14}em` } }))),
      draw: (tr, index, isCursor) => this.drawRow(tr, index, isCursor),
      onsight: (first, last) => { if (this.pages) this.pages.want(first, last); },
      onopen: (index) => this.openRow(this.pages.get(index)),
      oncursor: (index) => this.cursorMoved(index),
    });
    put(this.place, this.list.node);
  }

  headCell(column) {
    const label = column.unsorted ? column.label
      : el("button", { type: "button", on: { click: () => this.sortBy(column) } }, column.label,
        el("span", { class: "arrow", "aria-hidden": "true" }));
    return el("th", { scope: "col", class: column.number ? "num" : null, "data-key": column.key }, label);
  }

  sortBy(column) {
    const params = new URLSearchParams(this.params);
    const same = this.sort === column.key;
    const order = same ? (this.order === "asc" ? "desc" : "asc") : column.first || "asc";
    params.set("sort", column.key);
    params.set("order", order);
    params.delete("open");
    go("library", params, true);
  }

  update(params) {
    this.params = params;
    this.filter = filterOf(params);
    this.sort = params.get("sort") || "name";
    this.order = params.get("order") || "asc";
    this.showSort();
    this.panel.update(params, this.filter);
    this.showChips();
    const want = JSON.stringify([this.filter, this.sort, this.order]);
    if (want !== this.shown) {
      this.shown = want;
      this.reload();
    } else if (this.lastFacets) this.panel.showFacets(this.lastFacets);
    this.drawer.show(params.get("open"));
    this.root.classList.toggle("drawer-open", params.has("open"));
  }

  showSort() {
    for (const cell of this.heads.children) {
      const on = cell.dataset.key === this.sort;
      if (on) cell.setAttribute("aria-sort", this.order === "asc" ? "ascending" : "descending");
      else cell.removeAttribute("aria-sort");
    }
  }

  showChips() {
    const chips = chipsOf(this.filter, this.names);
    put(this.chips, chips.map((chip) => button([`${chip.label}: ${plainName(chip.text)} `,
      el("span", { "aria-hidden": "true" }, "\u00D7")],
      () => go("library", withoutChip(this.params, chip)),
        { class: "chip on", "aria-label": `Remove ${chip.label}: ${plainName(chip.text)}` })),
    Object.keys(this.filter).length > 1 ? button("Clear all", () => go("library", withoutFilter(this.params)),
      { class: "link" }) : null);
  }

  // `keep`: the same view again with newer rows; the place in the list stays.
  reload(keep = false) {
    if (this.pages) this.pages.close();
    this.stale.hidden = true;
    this.reloaded = Date.now();
    const { filter, sort, order } = this;
    const pages = new PagedRows((page, signal) => call("files", { filter, sort, order, ...page }, signal),
      () => this.totalFiles, () => { if (this.pages === pages) this.arrived(); }, toastError);
    this.pages = pages;
    if (!keep) { this.list.cursor = -1; this.list.top = 0; this.list.moveTo(0); }
    this.place.classList.add("waiting");
    pages.want(this.list.first, this.list.first + 60);
    this.countTotal(filter);
    this.countFacets(filter);
  }

  arrived() {
    this.place.classList.remove("waiting");
    const known = this.pages.total ?? Math.max(this.totalFiles ?? 0, this.pages.length);
    if (this.unsure) this.showUnsure();
    this.list.setCount(known);
    this.list.paint(true);
    this.showEmpty(known === 0 && this.pages.total === 0);
  }

  async countTotal(filter) {
    const signal = this.totals.next();
    const pages = this.pages;
    this.totalFiles = null;
    this.unsure = false;
    this.total.classList.add("waiting");
    try {
      const counted = this.counted(filter);
      for (const patience of [undefined, LONG_COUNT_S]) {
        const answer = await call("facets", { filter: counted, keys: [], patience_s: patience }, signal);
        if (pages !== this.pages) return;
        this.showTotal(answer);
        if (!answer.approximate) return;
      }
    } catch (error) { toastError(error); }
  }

  // An estimate comes at once; where more time makes a count of it, that follows.
  showTotal({ total, approximate }) {
    this.totalFiles = total.files;
    this.total.classList.remove("waiting");
    // A sample in which nothing matched says little: the list itself goes on looking.
    this.unsure = approximate && !total.files;
    if (this.unsure) this.showUnsure();
    else put(this.total, approximate ? "about " : "", el("strong", null, count(total.files)),
      ` ${total.files === 1 ? "file" : "files"} \u00B7 `, bytes(total.bytes));
    if (this.pages.pages.size) this.arrived();
  }

  // What the list found is told; all of it, once it came to its end.
  showUnsure() {
    const { total, length } = this.pages;
    if (total === null) put(this.total, length ? `${plural(length, "file")} so far, still looking\u2026`
      : "Nothing found yet, still looking\u2026");
    else put(this.total, el("strong", null, count(total)), total === 1 ? " file" : " files");
  }

  // Sorted by what only some files have, the list holds only these.
  counted(filter) {
    const { sort } = this;
    if (sort === "reason" && !filter.kind) return { ...filter, kind: ["junk"] };
    if (["video_codec", "audio_codec", "container"].includes(sort)) return { ...filter, probed: true };
    return ["duration", "height", "bitrate"].includes(sort) && !filter[sort]
      ? { ...filter, [sort]: { min: 0 } } : filter;
  }

  countFacets(filter) {
    clearTimeout(this.facetTimer);
    this.panel.node.classList.add("waiting");
    // While somebody types, only the rows hurry; the counts follow when the hand rests.
    this.facetTimer = setTimeout(async () => {
      try {
        const { facets } = await call("facets", { filter, keys: FACET_KEYS, limit: 30 },
          this.facetCalls.next());
        for (const item of facets.agent || []) this.names.agent[item.value] = item.label;
        this.lastFacets = facets;
        this.panel.showFacets(facets);
        this.panel.node.classList.remove("waiting");
        this.showChips();
      } catch (error) { toastError(error); }
    }, this.lastFacets ? FACETS_WAIT_MS : 0);
  }

  showEmpty(empty) {
    this.root.classList.toggle("is-empty", empty);
    if (!empty) { put(this.none); this.root.classList.remove("no-files"); return; }
    const filtered = Object.keys(this.filter).length > 0;
    this.root.classList.toggle("no-files", !filtered);
    put(this.none, filtered
      ? emptyState("Nothing matches", "No file fits this search and filter.",
        button("Clear the filter", () => go("library", {})))
      : emptyState("No files yet", "Add a folder of this machine, or start an agent on another one.",
        el("a", { class: "button", href: href("machines") }, "Add a folder or machine")));
  }

  drawRow(tr, index, isCursor) {
    const row = this.pages ? this.pages.get(index) : null;
    const classes = [];
    if (isCursor) classes.push("cursor");
    if (row && row.state !== "present") classes.push(`is-${row.state}`);
    if (row && this.params && String(row.id) === this.params.get("open")) classes.push("opened");
    tr.className = classes.join(" ");
    tr.setAttribute("aria-selected", String(isCursor));
    if (!row) {
      if (tr.children.length !== this.columns.length || tr.filled) put(tr,
        this.columns.map(() => el("td", null, el("span", { class: "ghost" }))));
      tr.shown = null;
      return false;
    }
    if (tr.shown === row && tr.columns === this.columns) return true;
    tr.id = `file-${row.id}`;
    put(tr, this.columns.map((column) => this.cell(column, row)));
    Object.assign(tr, { shown: row, columns: this.columns });
    return true;
  }

  cell(column, row) {
    const cell = el("td", column.number ? { class: "num" } : null);
    if (column.text) cell.textContent = column.text(row);
    else cell.append(column.node(row));
    if (column.key === "name") {
      cell.title = plainName(row.path);
      if (this.narrow) add(cell, el("span", { class: "under" },
        `${row.kind} \u00B7 ${machine(row.agent)} \u00B7 ${plainName(row.path.slice(0, -row.name.length - 1))}`));
    }
    return cell;
  }

  openRow(row) {
    const params = new URLSearchParams(this.params);
    const was = params.get("open");
    if (row && String(row.id) !== was) params.set("open", row.id);
    else params.delete("open");
    go("library", params, Boolean(row && was));
    this.list.paint(true);
    if (!row || String(row.id) === was) this.list.table.focus({ preventScroll: true });
  }

  cursorMoved(index) {
    const row = this.pages.get(index);
    if (!row || !this.params.has("open")) return;
    clearTimeout(this.followTimer);
    this.followTimer = setTimeout(() => {
      const params = new URLSearchParams(this.params);
      params.set("open", row.id);
      go("library", params, true);
      this.list.paint(true);
    }, 120);
  }

  changed({ seq }) {
    const changed = this.seq !== null && seq !== this.seq;
    this.seq = seq;
    if (!changed) return;
    // At the top of a list nobody is reading row 5,000: follow the scan. Elsewhere rows must not jump.
    const calm = this.list.top === 0 && this.list.cursor < 0 && !this.params.has("open");
    if (!calm) { this.stale.hidden = false; return; }
    clearTimeout(this.freshTimer);
    this.freshTimer = setTimeout(() => this.reload(true), Math.max(0, this.reloaded + FRESH_MS - Date.now()));
  }

  pickColumns() {
    const chosen = new Set(chosenColumns().map((column) => column.key));
    const boxes = COLUMNS.map((column) => el("label", { class: "check" },
      el("input", { type: "checkbox", checked: chosen.has(column.key), disabled: Boolean(column.fixed),
        value: column.key }), column.label));
    openDialog("Columns", el("div", { class: "check-grid" }, boxes), [{
      label: "Show these", kind: "primary", run: () => {
        chooseColumns(boxes.map((box) => box.firstChild).filter((input) => input.checked).map((input) =>
          input.value));
        this.makeList();
        this.showSort();
        this.arrived();
      },
    }]);
  }

  pickExport() {
    const { filter, sort, order } = this;
    const body = { filter, sort, order, what: "files" };
    const save = (format) => told(() => download("export", { ...body, format }, `medialib.${format}`));
    openDialog("Export this view", [
      el("p", null, this.totalFiles === null || this.totalFiles === undefined
        ? "Every file of this search and filter, in this order."
        : `${plural(this.totalFiles, "file")} of this search and filter, in this order, with everything known of each.`),
      el("div", { class: "choices" },
        busyButton([el("strong", null, "CSV"), el("span", null, "For spreadsheets")], save("csv"),
          { class: "choice" }),
        busyButton([el("strong", null, "JSON lines"), el("span", null, "For scripts: one file a line")],
          save("jsonl"), { class: "choice" }))]);
  }

  focusList() {
    this.list.table.focus();
    if (this.list.cursor < 0) this.list.setCursor(0);
  }

  key(event) {
    if (event.key === "Escape"
      && this.root.classList.contains("show-filter")) { this.root.classList.remove("show-filter");
      return true; }
    if (event.key === "Escape" && this.params.has("open")) { this.openRow(null); return true; }
    if (event.key === "c" && this.drawer.path) { this.drawer.copy(); return true; }
    if (["ArrowDown", "ArrowUp", "j", "k"].includes(event.key)) { this.list.table.focus();
      this.list.key(event); return true; }
    return false;
  }

  destroy() {
    this.stops.forEach((stop) => stop());
    this.totals.stop();
    this.facetCalls.stop();
    this.drawer.stop();
    for (const timer of [this.facetTimer, this.freshTimer, this.followTimer]) clearTimeout(timer);
    if (this.pages) this.pages.close();
    this.list.destroy();
  }
}
