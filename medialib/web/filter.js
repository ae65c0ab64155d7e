// The one filter of files: as the URL says it, as the host's JSON wants it, as chips tell it.

import { bitrate, bytes, clock, day, parseBitrate, parseBytes, parseCount, parseSpan,
  shortContainer } from "./format.js";

export const LISTS = {
  kind: "Kind", state: "State", agent: "Machine", root: "Root", resolution: "Resolution",
    video_codec: "Video codec",
  audio_codec: "Audio codec", container: "Container", ext: "Extension", reason: "Reason",
};
const TEXTS = { q: "Search", under: "Under", folder: "In folder", hash: "Hash" };
const FLAGS = { probed: "Described", error: "With errors" };

const plainCount = { show: String, parse: parseCount };
const dateEnd = {
  show: day,
  parse: (text) => (Number.isNaN(Date.parse(text)) ? null
    : Math.round(Date.parse(`${text}T00:00:00`) / 1000)),
};

export const RANGES = {
  size: { label: "Size", show: bytes, parse: parseBytes, hint: "700M, 1.5G" },
  mtime: { label: "Modified", type: "date", ...dateEnd },
  duration: { label: "Duration", show: clock, parse: parseSpan, hint: "1:30:00, 45m" },
  height: { label: "Height", ...plainCount, hint: "720" },
  bitrate: { label: "Bitrate", show: bitrate, parse: parseBitrate, hint: "800k, 5M" },
  copies: { label: "Copies", ...plainCount, hint: "1" },
  first_seen: { label: "First seen", type: "date", ...dateEnd },
  changed: { label: "Changed", type: "date", ...dateEnd },
};

const number = (text) => (text === "" || Number.isNaN(Number(text)) ? null : Number(text));

export function filterOf(params) {
  const filter = {};
  for (const key of Object.keys(LISTS)) if (params.has(key)) filter[key] = params.getAll(key);
  for (const key of Object.keys(TEXTS)) if ((params.get(key) || "").trim()) filter[key] = params.get(key);
  for (const key of Object.keys(FLAGS)) if (params.has(key)) filter[key] = params.get(key) !== "false";
  for (const key of Object.keys(RANGES)) {
    if (!params.has(key)) continue;
    const [min, max] = params.get(key).split("..");
    const range = {};
    if (number(min || "") !== null) range.min = number(min);
    if (number(max || "") !== null) range.max = number(max);
    if (Object.keys(range).length) filter[key] = range;
  }
  return filter;
}

export function rangeText(range) {
  return `${range.min ?? ""}..${range.max ?? ""}`;
}

function tellRange(key, { min, max }) {
  const { show } = RANGES[key];
  if (min === max) return show(min);
  if (min === undefined) return `at most ${show(max)}`;
  return max === undefined ? `at least ${show(min)}` : `${show(min)} \u2013 ${show(max)}`;
}

// [{key, label, text, value}]: one chip for every part of the filter that can be taken away by itself.
export function chipsOf(filter, names = {}) {
  const chips = [];
  for (const [key, value] of Object.entries(filter)) {
    if (LISTS[key]) {
      for (const one of value) chips.push({ key, value: one, label: LISTS[key], text: (names[key] || {})[one]
        || (key === "container" ? shortContainer(one) : one) || "(none)" });
    } else if (RANGES[key]) chips.push({ key, label: RANGES[key].label, text: tellRange(key, value) });
    else if (FLAGS[key]) chips.push({ key, label: FLAGS[key], text: value ? "yes" : "no" });
    else if (key !== "q") chips.push({ key, label: TEXTS[key], text: value });
  }
  return chips;
}

export function withoutChip(params, chip) {
  const next = new URLSearchParams(params);
  const rest = chip.value === undefined ? [] : next.getAll(chip.key).filter((value) => value !== chip.value);
  next.delete(chip.key);
  for (const value of rest) next.append(chip.key, value);
  next.delete("open");
  return next;
}

export function withoutFilter(params) {
  const next = new URLSearchParams();
  for (const key of ["sort", "order"]) if (params.has(key)) next.set(key, params.get(key));
  return next;
}
