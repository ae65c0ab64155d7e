// One machine on the Machines page: state, abilities, live progress, roots, errors, handles.

import { meter } from "./charts.js";
import { stateMark } from "./columns.js";
import { add, busyButton, button, el, name, pathName, plainName, put } from "./dom.js";
import { ago, bytes, count, plural } from "./format.js";
import { ProgressLine } from "./progress_line.js";
import { href } from "./router.js";

const STATE_WORDS = { online: "online", scanning: "scanning", away: "not connected" };
const BEST_HASH = "blake3";

function fact(label, value, tone) {
  return value ? [el("dt", null, label), el("dd", { class: tone || null }, value)] : null;
}

export class MachineCard {
  constructor(view) {
    this.view = view;
    this.line = null;
    this.live = el("div");
    this.head = el("div", { class: "machine-head" });
    this.body = el("div");
    this.node = el("article", { class: "card machine" }, this.head, this.live, this.body);
    this.drawn = "";
  }

  update(agent) {
    this.agent = agent;
    this.progress(agent.stats || {}, false);
    const { stats, last_seen: seen, ...rest } = agent;
    this.drawHead(agent);
    // What did not change is not drawn again: an open list of errors stays open, focus stays put.
    const now = JSON.stringify([rest, (stats || {}).outbox]);
    if (now === this.drawn) return;
    this.drawn = now;
    put(this.body, this.facts(agent), this.roots(agent), this.errors(agent));
  }

  drawHead(agent) {
    if (!this.actions) this.actions = this.handles();
    const word = STATE_WORDS[agent.state] || agent.state;
    if (!this.titleBox) {
      this.titleBox = el("div");
      put(this.head, this.titleBox, this.actions);
    }
    put(this.titleBox, el("h2", null, el("span", { class: `dot d-${agent.state}` }), plainName(agent.name),
      agent.id === "local" ? el("span", { class: "pill" }, "this host") : null),
      el("p", { class: "muted" },
        `${word}${agent.state === "away" ? `, last seen ${ago(agent.last_seen)}` : ""} \u00B7 ${plural(agent.files || 0, "file")} \u00B7 ${bytes(agent.bytes || 0)}${agent.missing ? ` \u00B7 ${count(agent.missing)} missing` : ""}`));
  }

  handles() {
    const { view } = this;
    const more = el("details", { class: "menu" }, el("summary", { class: "button small" }, "More"));
    const item = (label, run, kind) => button(label, () => { more.open = false; run(); }, { class: kind });
    add(more, el("div", { class: "menu-items" },
      item("Settings of this machine", () => view.ownSettings(this.agent)),
      item("Compact its cache", () => view.compact(this.agent)),
      item("Clear its cache", () => view.clear(this.agent)),
      item("Forget this machine", () => view.forget(this.agent), "danger")));
    more.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && more.open) { more.open = false; more.firstChild.focus();
        event.stopPropagation(); }
    });
    more.addEventListener("focusout", (event) => { if (event.relatedTarget
      && !more.contains(event.relatedTarget)) more.open = false; });
    return el("div", { class: "row" }, busyButton("Scan now", () => view.scan(this.agent),
      { class: "small" }), button("Add a folder", () => view.addRoot(this.agent), { class: "small" }), more);
  }

  progress(stats, changed = true) {
    if (!stats.active) { this.line = null; put(this.live); return; }
    if (!this.line) {
      this.line = new ProgressLine(this.agent ? plainName(this.agent.name) : "", false);
      put(this.live, this.line.node);
    }
    this.line.update(stats);
    if (changed && this.agent) this.agent.stats = stats;
  }

  facts(agent) {
    const hashes = agent.hash_algos || [];
    const outbox = (agent.stats || {}).outbox;
    return el("dl", { class: "facts across" },
      fact("Version", agent.version ? `${agent.version} (protocol ${agent.protocol})` : ""),
        fact("Python", agent.python), fact("System", agent.platform),
      fact("Address", agent.address ? `${agent.address}${agent.port ? `:${agent.port}` : ""}` : ""),
      agent.version ? fact("ffprobe", agent.ffprobe || "missing: videos are not described", agent.ffprobe ? ""
        : "warn-text") : null,
      fact("Hashes", hashes.join(", ") + (hashes.length && !hashes.includes(BEST_HASH)
        ? " (blake3 is not installed: slower)" : "")),
      outbox ? fact("Outbox", `${plural(outbox, "batch", "batches")} waiting to be delivered`, "warn-text")
        : null,
      agent.commands_waiting ? fact("Waiting",
        `${plural(agent.commands_waiting, "command")} for its next heartbeat`) : null,
      agent.rejected ? fact("Refused", plural(agent.rejected, "record"), "warn-text") : null,
      fact("Own settings",
        Object.keys(agent.settings || {}).filter((one) => one !== "remote_roots").join(", ")));
  }

  roots(agent) {
    if (!agent.roots.length) return el("p", { class: "notice" }, "No folder is scanned here yet. ",
      button("Add a folder", () => this.view.addRoot(agent), { class: "link" }));
    return el("table", { class: "plain roots", "aria-label": `Folders of ${plainName(agent.name)}` },
      el("thead", null, el("tr", null, ["Folder", "State", "Files", "Size", "Disk",
        ""].map((label, i) => el("th", { scope: "col", class: ["", "", "num", "num low", "low", ""][i]
        || null }, label || el("span", { class: "hidden" }, "Actions"))))),
      el("tbody", null, agent.roots.map((root) => this.rootRow(agent, root))));
  }

  rootRow(agent, root) {
    const used = root.total_bytes ? root.total_bytes - (root.free_bytes || 0) : 0;
    const disk = root.total_bytes ? el("div", { class: "disk" }, meter(used, root.total_bytes),
      el("span", { class: "muted" }, `${bytes(root.free_bytes)} free of ${bytes(root.total_bytes)}`)) : null;
    const tags = [root.label, root.fs, root.rotational === true || root.rotational === 1 ? "spinning"
      : null].filter(Boolean).join(" \u00B7 ");
    return el("tr", { class: root.state === "offline" ? "is-offline" : null },
      el("td", { class: "grow" }, el("a", { href: href("folders", { agent: agent.id, path: root.path }) },
        pathName(root.path)),
        el("div", { class: "muted" }, [tags, root.scan && root.scan.ended ? `scanned ${ago(root.scan.ended)}`
          : "not scanned yet"].filter(Boolean).join(" \u00B7 ")),
        root.reason ? el("div", { class: "warn-text" }, root.reason) : null,
        root.accept_empty ? button("It really was emptied\u2026", () => this.view.acceptEmpty(agent, root),
          { class: "small" }) : null,
        root.accept_disk ? button("The disk was replaced\u2026", () => this.view.acceptDisk(agent, root),
          { class: "small" }) : null),
      el("td", null, stateMark(root.state)), el("td", { class: "num files-cell" },
        el("span", { class: "how-many" }, count(root.files)), root.missing
        ? el("span", { class: "muted" }, ` (${count(root.missing)} missing)`) : null),
        el("td", { class: "num low" }, bytes(root.bytes)),
      el("td", { class: "low" }, disk),
      el("td", { class: "num" }, !(agent.remote_roots || []).includes(root.path) ? null
        : button("Remove", () => this.view.removeRoot(agent, root),
        { class: "link", "aria-label": `Stop scanning ${plainName(root.path)}` }),
        root.state === "offline" ? button("Forget", () => this.view.forget(agent, root),
          { class: "link", "aria-label": `Forget ${plainName(root.path)}` }) : null));
  }

  errors(agent) {
    const { summary = [], latest = [] } = agent.errors || {};
    if (!summary.length && !latest.length) return null;
    const all = summary.reduce((sum, one) => sum + one.count, 0);
    return el("details", { class: "errors" },
      el("summary", null, el("span", { class: "warn-text" }, plural(all || latest.length, "error")), " ",
        el("span", { class: "muted" }, summary.map((one) =>
        `${one.stage}: ${one.class} (${count(one.count)})`).join(", "))),
      el("div", { class: "scroll-x", tabindex: "0" }, el("table", { class: "plain" },
        el("thead", null, el("tr", null, ["File", "What", "Tries",
          "Next try"].map((label) => el("th", { scope: "col" }, label)))),
        el("tbody", null, latest.map((one) => el("tr", null,
          el("td", { class: "grow" }, name(one.path || "")),
          el("td", null, `${one.stage}: ${one.class}`, el("div", { class: "muted" }, one.message || "")),
          el("td", { class: "num" }, one.attempts ?? ""),
            el("td", { class: "muted" }, this.nextTry(one.next_try))))))));
  }

  nextTry(when) {
    if (!when) return "when it changes";
    const wait = when - Date.now() / 1000;
    return wait <= 0 ? "next scan"
      : `in ${wait < 5400 ? `${Math.ceil(wait / 60)} min` : `${Math.round(wait / 3600)} h`}`;
  }
}
