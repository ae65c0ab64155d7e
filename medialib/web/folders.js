// Folders: where the space is. A tree with sizes beside a treemap of the folder one is in.

import { Latest, call } from "./api.js";
import { meter } from "./charts.js";
import { copyPath } from "./clipboard.js";
import { stateMark } from "./columns.js";
import { add, button, el, name, pathName, plainName, put } from "./dom.js";
import { emptyState, failed, loading } from "./empty.js";
import { bytes, count, machine, percent, plural } from "./format.js";
import { onLive } from "./live.js";
import { go, href } from "./router.js";
import { toastError } from "./toast.js";
import { Treemap } from "./treemap.js";

const SHOWN = 200;
const place = (folder) => href("folders", { agent: folder.agent.id, path: folder.path });

export class FoldersView {
  constructor(root) {
    this.root = root;
    this.calls = new Latest();
    this.treemap = new Treemap((item) => item.href || place(item));
    this.stops = [onLive("again", () => this.load()), onLive("agents", () => this.load())];
  }

  update(params) {
    this.agent = params.get("agent");
    this.path = params.get("path");
    this.load();
  }

  async load() {
    const key = `${this.agent}\n${this.path}`;
    if (key !== this.shown) put(this.root, el("h1", { class: "hidden" }, "Folders"), loading());
    const ask = this.agent ? { agent: this.agent, path: this.path, depth: 2 } : { depth: 2 };
    try {
      const answer = await call("folders", ask, this.calls.next());
      this.shown = key;
      this.draw(answer);
    } catch (error) {
      if (error.name !== "AbortError") put(this.root, this.crumbs({}), failed(error, () => this.load()));
    }
  }

  draw(answer) {
    if (!this.agent && !answer.folders.length) {
      put(this.root, el("h1", { class: "hidden" }, "Folders"),
        emptyState("No folders yet", "Folders and their sizes appear as soon as a root is scanned.",
        el("a", { class: "button primary", href: href("machines", { add: "local" }) },
          "Add a folder of this machine")));
      return;
    }
    this.answer = answer;
    const body = el("tbody");
    this.fillRows(body, answer, 0);
    put(this.root, el("h1", { class: "hidden" }, "Folders"), this.crumbs(answer),
      el("div", { class: "folder-split" },
        el("div", { class: "tree-scroll", tabindex: "-1" }, el("table", { class: "plain tree" },
          el("thead", null, el("tr", null, el("th", { scope: "col" }, "Folder"),
            el("th", { scope: "col" }, "Share"), el("th", { scope: "col", class: "num" }, "Size"),
            el("th", { scope: "col", class: "num low" }, "Files"))), body)),
        this.treemap.node));
    this.treemap.show(this.mapItems(answer));
  }

  mapItems(answer) {
    const items = answer.folders.map((folder) => (this.agent ? folder
      : { ...folder, name: `${machine(folder.agent)}: ${folder.name}` }));
    if (answer.own && answer.own.bytes) items.push({ name: "files here", own: true, ...answer.own,
      href: this.filesHere(answer) });
    return items.sort((a, b) => b.bytes - a.bytes);
  }

  filesHere(answer) {
    return href("library", { agent: answer.agent.id, folder: answer.path, sort: "size", order: "desc" });
  }

  crumbs(answer) {
    const parts = [el("a", { href: href("folders") }, "All machines")];
    if (answer.agent) {
      const root = this.rootOf(answer);
      const rest = answer.path.slice(root.length).split("/").filter(Boolean);
      let path = root;
      parts.push(el("span", { class: "muted" }, machine(answer.agent)),
        el("a", { href: href("folders", { agent: answer.agent.id, path }) }, name(root)));
      for (const piece of rest) {
        path = `${path.replace(/\/$/, "")}/${piece}`;
        parts.push(el("a", { href: href("folders", { agent: answer.agent.id, path }) }, name(piece)));
      }
    }
    const tools = answer.agent ? el("div", { class: "tools" },
      el("a", { class: "button small", href: href("library",
      { agent: answer.agent.id, under: answer.path }) }, "Files under it"),
      button("Copy path", () => copyPath(answer.path), { class: "small" })) : null;
    return el("div", { class: "page-head" }, el("nav", { class: "crumbs", "aria-label": "Folder" },
      parts.map((part, i) => (i ? [el("span", { class: "sep", "aria-hidden": "true" }, "\u203A"), part]
      : part))),
      answer.bytes === undefined ? null : el("p", { class: "total" }, el("strong", null, bytes(answer.bytes)),
        ` in ${plural(answer.files, "file")} `, answer.state === "offline" ? stateMark("offline") : null),
        tools);
  }

  // The root is where going up ends; the host tells it, else it is remembered from the way down.
  rootOf(answer) {
    if (answer.root) return answer.root;
    if (!answer.parent) this.knownRoot = answer.path;
    return this.knownRoot && answer.path.startsWith(this.knownRoot) ? this.knownRoot : answer.path;
  }

  fillRows(body, answer, level, before = null) {
    const most = Math.max(1, ...answer.folders.map((folder) => folder.bytes), answer.own ? answer.own.bytes
      : 0);
    const rows = answer.folders.slice(0, SHOWN).map((folder) => this.row(folder, level, most, answer.bytes));
    if (answer.own && answer.own.files) rows.push(this.ownRow(answer, level, most));
    const left = answer.folders.length - SHOWN + (answer.more || 0);
    if (left > 0) rows.push(el("tr", { class: "muted" },
      el("td", { colspan: 4 }, `and ${plural(left, "smaller folder")}`)));
    if (before) before.after(...rows);
    else add(body, rows);
    return rows;
  }

  bar(part, most, all) {
    return el("td", { class: "share-cell" }, meter(part, most),
      el("span", { class: "muted" }, percent(part, all)));
  }

  row(folder, level, most, all) {
    const several = !this.agent && level === 0;
    const toggle = button("\u25B8", () => this.toggle(row, toggle, folder, level),
      { class: "twist", "aria-expanded": "false",
      "aria-label": `Show what is in ${plainName(folder.name)}` });
    const row = el("tr", { class: folder.state === "offline" ? "is-offline" : null },
      el("td", { class: "grow" }, el("div", { class: "tree-name",
        style: { "padding-left": `${level * 1.2}em` } }, toggle,
        el("a", { href: place(folder) }, several ? el("span", { class: "muted above" }, machine(folder.agent))
          : null, pathName(folder.name)), folder.state === "offline" ? stateMark("offline") : null)),
      this.bar(folder.bytes, most, all), el("td", { class: "num" }, bytes(folder.bytes)),
        el("td", { class: "num low" }, count(folder.files)));
    return row;
  }

  ownRow(answer, level, most) {
    return el("tr", null, el("td", { class: "grow" },
      el("div", { class: "tree-name leaf", style: { "padding-left": `${level * 1.2}em` } },
      el("a", { class: "muted", href: this.filesHere(answer) }, "files here"))),
      this.bar(answer.own.bytes, most, answer.bytes), el("td", { class: "num" }, bytes(answer.own.bytes)),
        el("td", { class: "num low" }, count(answer.own.files)));
  }

  async toggle(row, toggle, folder, level) {
    if (row.below) {
      const shut = (rows) => rows.forEach((one) => { if (one.below) shut(one.below); one.remove(); });
      shut(row.below);
      row.below = null;
      toggle.setAttribute("aria-expanded", "false");
      return;
    }
    try {
      const answer = await call("folders", { agent: folder.agent.id, path: folder.path, depth: 1,
        limit: SHOWN });
      row.below = this.fillRows(null, answer, level + 1, row);
      toggle.setAttribute("aria-expanded", "true");
    } catch (error) { toastError(error); }
  }

  key(event) {
    const links = [...this.root.querySelectorAll(".tree-name > a")];
    if (event.key === "Backspace" && this.agent) {
      const { parent } = this.answer || {};
      go("folders", parent ? { agent: this.agent, path: parent } : {});
      return true;
    }
    const step = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1 }[event.key];
    if (step && links.length) {
      links[Math.min(links.length - 1, Math.max(0, links.indexOf(document.activeElement) + step))].focus();
      return true;
    }
    const row = document.activeElement && document.activeElement.closest(".tree tr");
    const twist = row && row.querySelector(".twist");
    if (twist && ((event.key === "ArrowRight" && !row.below)
      || (event.key === "ArrowLeft" && row.below))) { twist.click(); return true; }
    return false;
  }

  destroy() {
    this.stops.forEach((stop) => stop());
    this.calls.stop();
    this.treemap.destroy();
  }
}
