// The Library's filter: facets with counts, ranges, and a few questions people really ask.

import { button, el, freshId, plainName, put } from "./dom.js";
import { bytes, count, day, machine, shortContainer, shortCount } from "./format.js";
import { LISTS, RANGES, rangeText } from "./filter.js";

const SHOWN = 6;
const FACETS = ["kind", "state", "agent", "resolution", "video_codec", "audio_codec", "container", "ext",
  "root", "age", "reason"];
const OPEN = new Set(["kind", "state", "agent", "resolution", "video_codec"]);
export const FACET_KEYS = FACETS;

const QUESTIONS = [
  ["In one place only", { copies: "1..1", state: "present" }],
  ["Has copies", { copies: "2.." }],
  ["Videos not described", { kind: "video", probed: "false" }],
  ["With errors", { error: "true" }],
  ["Missing", { state: "missing" }],
];

export class FilterPanel {
  // onchange(nextParams): the filter that the person now wants
  constructor(onchange) {
    this.onchange = onchange;
    this.more = new Set();
    this.open = new Set(OPEN);
    this.questions = el("div", { class: "questions" });
    this.ranges = el("div");
    this.facets = el("div");
    this.node = el("div", { class: "filter-panel" },
      el("h2", { class: "panel-title" }, "Filter"), this.questions, this.facets, this.ranges);
    this.drawn = "";
  }

  update(params, filter) {
    this.params = params;
    this.filter = filter;
    this.drawQuestions();
    if (!this.ranges.contains(document.activeElement)) this.drawRanges();
  }

  change(edit) {
    const next = new URLSearchParams(this.params);
    edit(next);
    next.delete("open");
    this.onchange(next);
  }

  drawQuestions() {
    put(this.questions, QUESTIONS.map(([label, wish]) => {
      const pairs = Object.entries(wish);
      const on = pairs.every(([key, value]) => this.params.getAll(key).join() === value);
      return button(label, () => this.change((next) => {
        for (const [key, value] of pairs) { next.delete(key); if (!on) next.set(key, value); }
      }), { class: "chip", "aria-pressed": String(on) });
    }));
  }

  showFacets(facets) {
    this.last = facets;
    const now = JSON.stringify([facets, this.filter, [...this.more]]);
    if (now === this.drawn) return;
    this.drawn = now;
    put(this.facets, FACETS.map((key) => this.facet(key, facets[key] || [])));
  }

  facet(key, items) {
    const chosen = this.filter[key] || [];
    if (!items.some((item) => item.files) && !chosen.length) return null;
    const lost = key === "age" ? [] : chosen.filter((value) => !items.some((item) => item.value === value));
    const all = [...items, ...lost.map((value) => ({ value, files: 0, bytes: 0 }))];
    const cut = this.more.has(key) ? all : all.filter((item, i) => i < SHOWN || this.isOn(key, item));
    const details = el("details", { class: "facet", open: this.open.has(key) || chosen.length > 0 },
      el("summary", null, key === "age" ? "Age" : LISTS[key], chosen.length
        ? el("span", { class: "badge" }, chosen.length) : null),
      el("ul", { "aria-label": key === "age" ? "Age" : LISTS[key] }, cut.map((item) => this.item(key, item))),
      all.length > cut.length
        ? button(`${all.length - cut.length} more`, () => { this.more.add(key); this.showFacets(this.last); },
          { class: "link" }) : null);
    details.addEventListener("toggle", () => this.open[details.open ? "add" : "delete"](key));
    return details;
  }

  isOn(key, item) {
    if (item.filter && key === "age") return JSON.stringify(this.filter.mtime) === JSON.stringify(item.filter.mtime);
    return (this.filter[key] || []).includes(item.value);
  }

  item(key, item) {
    const on = this.isOn(key, item);
    const box = el("input", { type: "checkbox", checked: on,
      on: { change: () => this.choose(key, item, !on) } });
    const label = plainName(String((key === "agent" && item.label && machine({ id: item.value, name: item.label }))
      || item.label || (key === "container" ? shortContainer(item.value)
      : item.value) || "(none)"));
    return el("li", null, el("label", { title: `${label}: ${count(item.files)} files, ${bytes(item.bytes)}` },
      box, el("span", { class: "what" }, label), el("span", { class: "n" }, shortCount(item.files))));
  }

  choose(key, item, on) {
    this.change((next) => {
      if (key === "age") {
        next.delete("mtime");
        if (on) next.set("mtime", rangeText(item.filter.mtime));
        return;
      }
      const values = next.getAll(key).filter((value) => value !== item.value);
      next.delete(key);
      for (const value of on ? [...values, item.value] : values) next.append(key, value);
    });
  }

  drawRanges() {
    const keys = Object.keys(RANGES);
    if (!this.rangeFields) {
      this.rangeFields = new Map(keys.map((key) => [key, this.rangeField(key)]));
      put(this.ranges, el("details", { class: "facet", open: true }, el("summary", null, "Ranges"),
        [...this.rangeFields.values()].map((field) => field.node)));
    }
    for (const key of keys) this.rangeFields.get(key).show(this.filter[key] || {});
  }

  rangeField(key) {
    const { label, hint, type } = RANGES[key];
    const [min, max] = ["min", "max"].map((end) => el("input", {
      id: freshId("range"), type: type || "text", placeholder: end === "min" ? hint : null,
        autocomplete: "off",
      "aria-label": `${label}, ${end === "min" ? "at least" : "at most"}`,
        on: { change: () => this.rangeChanged(key, min, max) },
    }));
    const show = (range) => { min.value = this.endText(key, range.min);
      max.value = this.endText(key, range.max); };
    return { node: el("div", { class: type ? "range dates" : "range" },
      el("span", { class: "range-label" }, label), min, el("span", { "aria-hidden": "true" }, "\u2013"), max),
      show };
  }

  endText(key, value) {
    if (value === undefined) return "";
    if (RANGES[key].type !== "date") return RANGES[key].show(value).replace("\u00A0", " ").replace("/s", "");
    return day(value);
  }

  rangeChanged(key, min, max) {
    const range = {};
    for (const [end, input] of [["min", min], ["max", max]]) {
      const value = input.value.trim() ? RANGES[key].parse(input.value) : undefined;
      input.setAttribute("aria-invalid", String(value === null));
      if (value === null) return;
      if (value !== undefined) range[end] = value + (end === "max" && RANGES[key].type === "date" ? 86399
        : 0);
    }
    this.change((next) => {
      if (Object.keys(range).length) next.set(key, rangeText(range));
      else next.delete(key);
    });
  }
}
