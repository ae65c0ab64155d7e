// Overview: what there is, what is wrong, what could go, what happened lately.

import { Latest, call } from "./api.js";
import { barChart, daysBetween, growthChart, splitBar } from "./charts.js";
import { KINDS, stateMark } from "./columns.js";
import { button, el, keepingFocus, name, plainName, put } from "./dom.js";
import { emptyState, failed, loading } from "./empty.js";
import { ago, bytes, count, machine, plural, shortContainer } from "./format.js";
import { onLive } from "./live.js";
import { ProgressLine } from "./progress_line.js";
import { rangeText } from "./filter.js";
import { go, href } from "./router.js";

const FACETS = ["video_codec", "resolution", "container", "ext", "age"];
const TITLES = { video_codec: "Video codec", resolution: "Resolution", container: "Container",
  ext: "Extension", age: "Age (last modified)" };
const REFRESH_MS = 5000;

function tile(label, value, note, link, tone) {
  return el("a", { class: `tile ${tone || ""}`, href: link }, el("span", { class: "tile-label" }, label),
    el("strong", null, value), el("span", { class: "muted" }, note));
}

function card(title, className, ...content) {
  return el("section", { class: `card ${className}` }, el("h2", null, title), content);
}

export class OverviewView {
  constructor(root) {
    this.root = root;
    this.calls = new Latest();
    this.lines = new Map();
    put(root, el("h1", { class: "hidden" }, "Overview"), loading());
    this.stops = [
      onLive("counts", () => this.later()), onLive("agents", () => this.later()),
        onLive("again", () => this.load()),
      onLive("progress", (data) => this.progress(data)),
    ];
  }

  update(params) {
    this.by = params.get("by") === "files" ? "files" : "bytes";
    if (this.summary) this.draw();
    else this.load();
  }

  later() {
    if (this.timer) return;
    this.timer = setTimeout(() => { this.timer = null; this.load(); },
      Math.max(300, (this.loaded || 0) + REFRESH_MS - Date.now()));
  }

  // The figures first; each slower part fills its place when it arrives.
  async load() {
    const signal = this.calls.next();
    this.loaded = Date.now();
    try {
      this.summary = await call("summary", {}, signal);
      keepingFocus(this.root, () => this.draw());
      const parts = [
        ["facets", { filter: {}, keys: FACETS, limit: 10 }, "charts"], ["growth", { days: 400 }, "growth"],
        ["files", { filter: {}, sort: "changed", order: "desc", limit: 8 }, "recent"],
        ["agents", {}, "agents"],
      ];
      await Promise.all(parts.map(async ([path, body, part]) => {
        try {
          this[part] = await call(path, body, signal);
        } catch (error) {
          if (error.name === "AbortError") return;
          this[part] = { error };
        }
        keepingFocus(this.root, () => this.drawPart(part));
      }));
    } catch (error) {
      if (error.name !== "AbortError" && !this.summary) put(this.root, failed(error, () => this.load()));
    }
  }

  draw() {
    const { summary } = this;
    if (!summary.files && !summary.missing && !summary.offline) { this.drawEmpty(); return; }
    this.places = {
      ...Object.fromEntries(FACETS.map((key) => [key, el("div")])), growth: el("div"), recent: el("div"),
      agents: el("div", { class: "activity" }),
    };
    put(this.root, el("div", { class: "page-head" }, el("h1", null, "Overview"), this.byToggle()),
      this.places.agents, this.tiles(summary),
      el("div", { class: "cards top-cards" }, card("Kinds", "wide-card", this.kinds(summary.kinds)),
        card("Machines", "", this.machines(summary.agents)), card("Growth", "", this.places.growth)),
      el("div", { class: "cards" }, FACETS.map((key) => card(TITLES[key], "", this.places[key])),
        card("Changed lately", "", this.places.recent)));
    for (const part of ["charts", "growth", "recent", "agents"]) this.drawPart(part);
  }

  byToggle() {
    return el("div", { class: "segmented", role: "group", "aria-label": "Measure by" },
      [["bytes", "Size"], ["files", "Files"]].map(([by, label]) =>
      button(label, () => go("overview", by === "bytes" ? {} : { by }, true),
        { "aria-pressed": String(this.by === by) })));
  }

  tiles(s) {
    const d = s.duplicates;
    return el("div", { class: "tiles" },
      tile("Files", count(s.files), "in the catalogue", href("library")),
      tile("Size", bytes(s.bytes), "of all these", href("folders")),
      tile("Can be freed", bytes(d.reclaimable_bytes || 0),
        `${plural(d.confirmed_groups, "confirmed group")}`, href("duplicates"), d.reclaimable_bytes ? "good"
        : ""),
      tile("Candidates", count(d.candidate_groups), d.candidate_bytes
        ? `up to ${bytes(d.candidate_bytes)}, not proven` : "not proven yet",
        href("duplicates", { state: "candidate" })),
      tile("Missing", count(s.missing), "gone from their folder", href("library", { state: "missing" }),
        s.missing ? "warn" : ""),
      tile("Offline", count(s.offline), "on disks not connected", href("library", { state: "offline" }), ""));
  }

  kinds(kinds) {
    const items = KINDS.filter((kind) => kinds[kind]).map((kind) => ({
      label: kind, color: `k-${kind}`, files: kinds[kind].files, bytes: kinds[kind].bytes,
      href: kind === "junk" || kind === "unknown" ? href("junk") : href("library", { kind }),
    })).sort((a, b) => b[this.by] - a[this.by]);
    return [splitBar("Kinds", items, this.by), barChart("Kinds", items, this.by)];
  }

  machines(agents) {
    const items = this.ordered("agent", agents).map((agent) =>
      ({ label: machine(agent), files: agent.files, bytes: agent.bytes,
      href: href("library", { agent: agent.id }), color: agent.state === "away" ? "dim" : "" }));
    const away = agents.filter((agent) => agent.state === "away");
    return [barChart("Machines", items, this.by), away.length
      ? el("p", { class: "muted" }, `Not connected: ${away.map((agent) => agent.name).join(", ")}`) : null,
      el("p", null, el("a", { href: href("machines") }, "All machines"))];
  }

  drawPart(part) {
    const data = this[part];
    if (!this.places) return;
    const places = part === "charts" ? FACETS.map((key) => this.places[key]) : [this.places[part]];
    const say = (text) => places.forEach((place) => put(place, text()));
    if (!data) say(() => (part === "agents" ? null : loading()));
    else if (data.error instanceof Error) say(() =>
      el("p", { class: "muted" }, `Not available: ${data.error.message}`));
    else if (part === "charts") this.drawCharts(data);
    else this[`${part}Part`](places[0], data);
  }

  drawCharts({ facets }) {
    for (const key of FACETS) {
      const items = this.ordered(key, facets[key] || []).map((item) => ({
        label: item.label || (key === "container" ? shortContainer(item.value) : item.value) || "(none)",
        files: item.files, bytes: item.bytes,
        href: href("library", item.filter && item.filter.mtime ? { mtime: rangeText(item.filter.mtime) }
          : { [key]: item.value }),
      }));
      put(this.places[key], barChart(TITLES[key], items, this.by));
    }
  }

  ordered(key, items) {
    return key === "age" ? items : [...items].sort((a, b) => b[this.by] - a[this.by]);
  }

  growthPart(place, { days }) {
    if (days.length < 2) {
      put(place, el("p", { class: "muted" }, "One point a day is kept: the curve starts on the second day."));
      return;
    }
    const [first, end] = [days[0][this.by], days[days.length - 1][this.by]];
    const gain = `${end < first ? "\u2212" : "+"}${this.by === "files" ? count(Math.abs(end - first)) : bytes(Math.abs(end - first))}`;
    put(place, growthChart(days, this.by), el("p", { class: "muted" },
      `${gain} in ${plural(daysBetween(days[0].day, days[days.length - 1].day), "day")}, since ${days[0].day}`));
  }

  recentPart(place, { files }) {
    const word = (file) => {
      if (file.state !== "present") return stateMark(file.state);
      return el("span", { class: "muted" }, file.first_seen >= file.changed - 1 ? "new" : "changed");
    };
    put(place, el("ul", { class: "recent" }, files.map((file) => el("li", null, word(file),
      el("a", { href: href("library", { sort: "changed", order: "desc", open: file.id }),
        title: plainName(file.path) },
        name(file.name)),
      el("span", { class: "muted" }, ago(file.changed))))));
  }

  agentsPart(place, { agents }) {
    this.lines = new Map();
    put(place, agents.filter((agent) => agent.stats && agent.stats.active).map((agent) =>
      this.line(agent.id, agent.name, agent.stats)));
    this.named = new Map(agents.map((agent) => [agent.id, agent.name]));
  }

  line(id, agentName, stats) {
    const line = new ProgressLine(agentName);
    line.update(stats);
    this.lines.set(id, line);
    return line.node;
  }

  progress({ agent, stats }) {
    const line = this.lines.get(agent);
    if (line && stats.active) line.update(stats);
    else if (line) { line.node.remove(); this.lines.delete(agent); this.later(); } else if (stats.active
      && this.places && this.named) this.places.agents.append(this.line(agent, this.named.get(agent) || agent,
      stats));
    else if (stats.active) this.later();
  }

  drawEmpty() {
    this.places = null;
    put(this.root, el("h1", { class: "hidden" }, "Overview"), emptyState("Nothing is catalogued yet",
      "Add a folder of this machine, or run the agent on another one. Files appear here while they are read; nothing on the disks is ever changed.",
      el("a", { class: "button primary", href: href("machines", { add: "local" }) },
        "Add a folder of this machine"),
      el("a", { class: "button", href: href("machines", { new: 1 }) }, "Add another machine")));
  }

  destroy() {
    this.stops.forEach((stop) => stop());
    clearTimeout(this.timer);
    this.calls.stop();
  }
}
