// Duplicates: proven ones, candidates and identical folders, each apart, largest gain first.

import { Latest, call, download } from "./api.js";
import { copyPath } from "./clipboard.js";
import { KINDS, stateMark } from "./columns.js";
import { openDialog } from "./dialog.js";
import { add, button, busyButton, el, name, put } from "./dom.js";
import { emptyState, failed, loading } from "./empty.js";
import { filterOf } from "./filter.js";
import { bytes, count, day, machine, plural } from "./format.js";
import { hashMixNotice } from "./hash_mix.js";
import { onLive } from "./live.js";
import { go, href } from "./router.js";
import { told } from "./toast.js";

const PAGE = 40;
const SHOWN_FILES = 8;

const TABS = [
  ["confirmed", "Confirmed",
    "The whole content is equal, byte for byte by its full hash. Hard links count as one copy."],
  ["candidate", "Candidates",
    "Size and samples are equal; the rest has not been compared yet. Nothing here counts as space to free until full hashes prove it."],
  ["folders", "Identical folders",
    "Folders whose files are all duplicates of one other folder\u2019s, as one row."],
];

export class DuplicatesView {
  constructor(root) {
    this.root = root;
    this.calls = new Latest();
    this.stops = [onLive("again", () => this.load())];
    this.list = el("div", { class: "groups" });
    this.watch = el("div", { class: "more-mark" });
    this.observer = new IntersectionObserver((seen) => { if (seen.some((one) =>
      one.isIntersecting)) this.more(); }, { rootMargin: "600px" });
    this.observer.observe(this.watch);
    this.head = el("div");
    put(root, el("h1", { class: "hidden" }, "Duplicates"), this.head, this.list, this.watch);
  }

  update(params) {
    this.params = params;
    this.tab = TABS.find(([key]) => key === params.get("state")) || TABS[0];
    this.filter = filterOf(params);
    delete this.filter.state;
    const want = JSON.stringify([this.tab[0], this.filter]);
    this.drawHead();
    if (want === this.shown) return;
    this.shown = want;
    this.load();
  }

  drawHead() {
    const tabs = TABS.map(([key, label]) => el("a",
      { href: href("duplicates", this.with("state", key)), "aria-current": key === this.tab[0] ? "true"
      : null }, label, this.badge(key)));
    const pick = (key, label, options) => el("label", { class: "pick" }, el("span", null, label),
      el("select", { on: { change: (event) => go("duplicates", this.with(key, event.target.value)) } },
        el("option", { value: "" }, "any"), options.map(([value, text]) =>
          el("option", { value, selected: this.params.get(key) === value }, text))));
    put(this.head, el("nav", { class: "tabs", "aria-label": "Which duplicates" }, tabs),
      el("p", { class: "muted lead" }, this.tab[2]), hashMixNotice(this.agents),
      el("div", { class: "bar" }, this.total(), el("div", { class: "tools" },
        this.tab[0] === "folders" ? null : pick("kind", "Kind", KINDS.map((kind) => [kind, kind])),
        pick("agent", "Machine", (this.agents || []).map((agent) => [agent.id, machine(agent)])),
        this.params.get("q") ? button([`\u201C${this.params.get("q")}\u201D `, "\u00D7"],
          () => go("duplicates", this.with("q", "")), { class: "chip on", "aria-label": "Remove the search" })
          : null,
        button("Export", () => this.pickExport(), { class: "small" }))));
  }

  with(key, value) {
    const next = new URLSearchParams(this.params);
    if (value) next.set(key, value);
    else next.delete(key);
    return next;
  }

  badge(key) {
    const d = this.totals;
    if (!d || key === "folders") return null;
    return el("span", { class: "badge" }, count(key === "confirmed" ? d.confirmed_groups
      : d.candidate_groups));
  }

  total() {
    const d = this.totals;
    if (!d || this.tab[0] === "folders") return el("p", { class: "total" });
    if (this.tab[0] === "candidate") return el("p", { class: "total" },
      el("strong", null, count(d.candidate_groups)), " groups to prove", d.candidate_bytes
      ? ` \u00B7 at most ${bytes(d.candidate_bytes)}` : "");
    return el("p", { class: "total" }, el("strong", { class: "good-text" }, bytes(d.reclaimable_bytes || 0)),
      ` can be freed \u00B7 ${plural(d.confirmed_groups, "group")}`);
  }

  async load() {
    const signal = this.calls.next();
    this.next = null;
    this.count = 0;
    put(this.list, loading());
    call("summary", {}, signal).then((summary) => {
      this.totals = summary.duplicates;
      this.agents = summary.agents;
      this.drawHead();
    }).catch(() => {});
    await this.page(signal);
  }

  async page(signal) {
    this.busy = true;
    const path = this.tab[0] === "folders" ? "duplicate_folders" : "duplicates";
    try {
      const answer = await call(path, { filter: this.filter, state: this.tab[0] === "folders" ? undefined
        : this.tab[0], limit: PAGE, after: this.next ?? undefined }, signal);
      if (!this.count) put(this.list);
      this.count += answer.groups.length;
      this.next = answer.next;
      add(this.list, answer.groups.map((group) => (path === "duplicates" ? this.group(group)
        : this.folderGroup(group))));
      if (!this.count && !this.next) put(this.list, this.nothing());
      else if (answer.approximate && !this.next) this.list.append(el("p", { class: "muted" },
        "There was no time to compare all folders: there may be more."));
    } catch (error) {
      if (error.name !== "AbortError") put(this.list, failed(error, () => this.load()));
    }
    this.busy = false;
    // Asked anew whether the end of the list is in sight: a page may bring little or nothing.
    this.observer.unobserve(this.watch);
    this.observer.observe(this.watch);
  }

  more() {
    if (!this.busy && this.next) this.page(this.calls.controller ? this.calls.controller.signal
      : this.calls.next());
  }

  nothing() {
    const filtered = Object.keys(this.filter).length > 0;
    if (filtered) return emptyState("No group fits", "Nothing of this kind matches the filter.",
      button("Clear the filter", () => go("duplicates", { state: this.tab[0] })));
    if (this.tab[0] === "candidate") return emptyState("No candidates",
      "Every match has been proven or ruled out, or nothing is hashed yet.");
    if (this.tab[0] === "folders") return emptyState("No identical folders",
      "Whole folders that exist twice show up here once their files are hashed.");
    return emptyState("No confirmed duplicates",
      "They appear when full hashes are there: see do_full_hash and the off-peak hours in the settings.",
      el("a", { class: "button", href: href("settings") }, "Settings"));
  }

  group(group) {
    const [first] = group.files;
    const links = group.names - group.copies;
    const head = el("div", { class: "group-head" },
      el("h2", null, name(first.name)),
      el("span", { class: `pill ${group.state === "confirmed" ? "good" : "warn"}` }, group.state),
      el("span", { class: "muted" },
        `${plural(group.copies, "copy", "copies")} of ${bytes(group.size)}${links > 0 ? `, ${plural(links, "hard link")}` : ""}`),
      el("strong", { class: "gain" }, group.state === "confirmed" ? `${bytes(group.reclaimable)} to free`
        : `${bytes(group.potential)} if proven`));
    const body = el("tbody");
    const fill = (files) => add(body, files.map((file, i) => this.fileRow(file, group, files, i)));
    fill(group.files.slice(0, SHOWN_FILES));
    const rest = group.files.slice(SHOWN_FILES);
    const foot = rest.length ? button(`${count(group.names - SHOWN_FILES)} more`,
      (event) => { fill(rest); event.target.remove(); }, { class: "link" }) : null;
    return el("article", { class: "group" }, head,
      el("table", { class: "plain" }, el("thead", { class: "hidden" },
        el("tr", null, ["Copy", "Machine", "Path", "Modified", "State",
        ""].map((label) => el("th", { scope: "col" }, label || "Action")))), body),
      foot, group.names > group.files.length ? el("a", { href: href("library", { hash: group.hash }) },
        `All ${count(group.names)} in the Library`) : null);
  }

  fileRow(file, group, files, i) {
    const link = files.findIndex((other) => other.copy !== undefined && other.copy === file.copy) < i
      && file.copy !== undefined;
    return el("tr", { class: `is-${file.state}` },
      el("td", { class: "copy-no muted" }, `${link ? "= " : ""}#${(file.copy ?? i) + 1}`),
        el("td", { class: "who" }, machine(file.agent)),
      el("td", { class: "grow" }, el("a", { href: href("library", { open: file.id, hash: group.hash }) },
        name(file.path))),
      el("td", { class: "num muted low" }, day(file.mtime)),
        el("td", null, file.state === "present" ? null : stateMark(file.state)),
      el("td", null, button("Copy path", () => copyPath(file.path), { class: "link" })));
  }

  folderGroup(group) {
    return el("article", { class: "group" },
      el("div", { class: "group-head" }, el("h2", null, plural(group.files, "file")),
        el("span", { class: `pill ${group.state === "confirmed" ? "good" : "warn"}` }, group.state),
        el("span", { class: "muted" }, `${bytes(group.bytes)} in each folder`),
          el("strong", { class: "gain" },
          group.state === "confirmed" ? `${bytes(group.reclaimable)} to free`
            : `${bytes(group.potential)} if proven`)),
      el("table", { class: "plain" }, el("thead", { class: "hidden" },
        el("tr", null, ["Machine", "Folder", "State",
        "Action"].map((label) => el("th", { scope: "col" }, label)))),
        el("tbody", null, group.folders.map((folder) =>
          el("tr", { class: folder.state === "offline" ? "is-offline" : null },
          el("td", { class: "who" }, machine(folder.agent)),
          el("td", { class: "grow" }, el("a", { href: href("folders",
            { agent: folder.agent.id, path: folder.path }) }, name(folder.path))),
          el("td", null, folder.state === "offline" ? stateMark("offline") : null),
            el("td", null, button("Copy path", () => copyPath(folder.path), { class: "link" })))))));
  }

  pickExport() {
    const folders = this.tab[0] === "folders";
    const body = folders ? { what: "folders", filter: this.filter }
      : { what: "duplicates", filter: this.filter, state: this.tab[0] };
    const file = folders ? "medialib-identical-folders" : `medialib-${this.tab[0]}-duplicates`;
    const save = (format) => told(() => download("export", { ...body, format }, `${file}.${format}`));
    const row = folders ? "one folder a row" : "one file a row";
    openDialog(folders ? "Export the identical folders" : `Export the ${this.tab[1].toLowerCase()}`,
      el("div", { class: "choices" },
        busyButton([el("strong", null, "CSV"), el("span", null, `For spreadsheets: ${row}`)], save("csv"),
          { class: "choice" }),
        busyButton([el("strong", null, "JSON lines"), el("span", null, "For scripts: one group a line")],
          save("jsonl"), { class: "choice" })));
  }

  key(event) {
    const step = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1 }[event.key];
    const links = [...this.list.querySelectorAll("td.grow > a")];
    if (!step || !links.length) return false;
    links[Math.min(links.length - 1, Math.max(0, links.indexOf(document.activeElement) + step))].focus();
    return true;
  }

  focusList() { this.key({ key: "j" }); }

  destroy() {
    this.stops.forEach((stop) => stop());
    this.observer.disconnect();
    this.calls.stop();
  }
}
