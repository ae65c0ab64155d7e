// Junk by reason and extension; unknown types by extension, each of which can be given a kind from here.

import { Latest, call } from "./api.js";
import { busyButton, el, put } from "./dom.js";
import { emptyState, failed, loading } from "./empty.js";
import { bytes, count, percent, plural } from "./format.js";
import { onLive } from "./live.js";
import { href } from "./router.js";
import { toast, told } from "./toast.js";

const KIND_LISTS = {
  video: "media_extensions", audio: "audio_extensions", image: "image_extensions",
    subtitle: "subtitle_extensions", xml: "xml_extensions", other: "other_extensions",
};

function table(label, first, items, link, extra) {
  const all = items.reduce((sum, item) => sum + item.bytes, 0);
  const largest = [...items].sort((a, b) => b.bytes - a.bytes || b.files - a.files);
  return el("table", { class: "plain", "aria-label": label },
    el("thead", null, el("tr", null, el("th", { scope: "col" }, first),
      el("th", { scope: "col", class: "num" }, "Files"), el("th", { scope: "col", class: "num" }, "Size"),
      el("th", { scope: "col", class: "num low" }, "Share"), extra
        ? el("th", { scope: "col" }, "Give it a kind") : null)),
    el("tbody", null, largest.map((item) => el("tr", null,
      el("td", { class: "grow" }, el("a", { href: link(item) }, item.label || item.value
      || "(no extension)")),
      el("td", { class: "num" }, count(item.files)), el("td", { class: "num" }, bytes(item.bytes)),
        el("td", { class: "num muted low" }, percent(item.bytes, all)), extra ? el("td", null, extra(item))
        : null))));
}

const total = (answer) => `${plural(answer.total.files, "file")}, ${bytes(answer.total.bytes)}`;

function card(title, lead, content) {
  return el("section", { class: "card" }, el("h2", null, title), el("p", { class: "muted" }, lead), content);
}

export class JunkView {
  constructor(root) {
    this.root = root;
    this.calls = new Latest();
    put(root, el("h1", { class: "hidden" }, "Junk and unknown types"), loading());
    this.stops = [onLive("again", () => this.load())];
  }

  update() { this.load(); }

  async load() {
    const signal = this.calls.next();
    try {
      const [junk, unknown] = await Promise.all([
        call("facets", { filter: { kind: ["junk"] }, keys: ["reason", "ext"], limit: 100 }, signal),
        call("facets", { filter: { kind: ["unknown"] }, keys: ["ext"], limit: 300 }, signal)]);
      this.draw(junk, unknown);
    } catch (error) {
      if (error.name !== "AbortError") put(this.root, failed(error, () => this.load()));
    }
  }

  draw(junk, unknown) {
    put(this.root, el("div", { class: "page-head" }, el("h1", null, "Junk and unknown types")),
      el("div", { class: "cards two" }, el("div", { class: "stack" }, this.junkCards(junk)),
        this.unknownCard(unknown)));
  }

  junkCards(junk) {
    if (!junk.total.files) return card("Junk", "Temporary files, thumbnails and other leftovers.",
      emptyState("No junk found", "What counts as junk is set by junk_patterns.",
        el("a", { class: "button", href: href("settings") }, "See the patterns")));
    const all = href("library", { kind: "junk", sort: "size", order: "desc" });
    return [card("Junk by reason", `${total(junk)} match the junk patterns. Nothing is ever deleted from here.`,
      [table("Junk by reason", "Reason", junk.facets.reason || [],
        (item) => href("library", { kind: "junk", reason: item.value, sort: "size", order: "desc" })),
      el("p", null, el("a", { href: all }, "All junk in the Library"), " \u00B7 ",
        el("a", { href: href("settings") }, "Edit the patterns"))]),
    card("Junk by extension", "The same files by their extension.",
      table("Junk by extension", "Extension", junk.facets.ext || [],
        (item) => href("library", { kind: "junk", ext: item.value })))];
  }

  unknownCard(unknown) {
    if (!unknown.total.files) return card("Unknown types", "Extensions that are in no list.",
      emptyState("Every extension has a kind", "New ones show up here by themselves."));
    return card("Unknown types",
      `${total(unknown)} have an extension that is in no list. Give an extension a kind and the catalogue is classified again at once.`,
      table("Unknown types", "Extension", unknown.facets.ext || [],
        (item) => href("library", { kind: "unknown", ext: item.value }), (item) => this.kindPicker(item)));
  }

  kindPicker(item) {
    if (!item.value) return el("span", { class: "muted" }, "\u2013");
    const select = el("select", { "aria-label": `Kind of ${item.value}` },
      Object.keys(KIND_LISTS).map((kind) => el("option", { value: kind, selected: kind === "other" }, kind)));
    return el("div", { class: "row nowrap" }, select,
      busyButton("Set", told(() => this.give(item.value, select.value)),
      { class: "small", "aria-label": `Set the kind of ${item.value}` }));
  }

  async give(ext, kind) {
    const { settings } = await call("settings");
    const set = {};
    for (const [one, list] of Object.entries(KIND_LISTS)) {
      const setting = settings.find(({ name }) => name === list);
      if (!setting) continue;
      const without = setting.value.filter((value) => value !== ext);
      if (one === kind) set[list] = [...without, ext];
      else if (without.length !== setting.value.length) set[list] = without;
    }
    const answer = await call("settings", { set });
    toast(`${ext} is now ${kind}${answer.reclassified === undefined ? "" : `: ${plural(answer.reclassified, "file")} reclassified`}`, "good");
    await this.load();
  }

  destroy() {
    this.stops.forEach((stop) => stop());
    this.calls.stop();
  }
}
