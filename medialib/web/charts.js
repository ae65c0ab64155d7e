// Charts as SVG drawn at the size they have on the page, with their numbers written on them.

import { el, plainName, put, svg } from "./dom.js";
import { bytes, count, percent } from "./format.js";

const ROW = 1.85;

let ruler = null;
function textWidth(text, font) {
  ruler = ruler || document.createElement("canvas").getContext("2d");
  ruler.font = font;
  return ruler.measureText(text).width;
}

export function shorten(text, font, width) {
  if (textWidth(text, font) <= width) return text;
  let end = text.length;
  while (end > 1 && textWidth(`${text.slice(0, end)}\u2026`, font) > width) end -= 1;
  return `${text.slice(0, end)}\u2026`;
}

// A block that draws itself again whenever its width changes.
function responsive(className, draw) {
  const node = el("div", { class: `chart ${className}` });
  let width = 0;
  const observer = new ResizeObserver(() => {
    if (!node.isConnected) { observer.disconnect(); return; }
    const now = Math.floor(node.clientWidth);
    if (!now || now === width) return;
    width = now;
    const style = getComputedStyle(node);
    put(node, draw(now, parseFloat(style.fontSize), `${style.fontSize} ${style.fontFamily}`));
  });
  observer.observe(node);
  return node;
}

// items: [{label, files, bytes, href, color}]; `by` is "files" or "bytes".
export function barChart(title, items, by) {
  const shown = items.filter((item) => item.files > 0);
  if (!shown.length) return el("p", { class: "muted" }, "Nothing to show yet.");
  return responsive("bars", (width, em, font) => {
    const row = Math.round(em * ROW);
    const most = Math.max(...shown.map((item) => item[by]), 1);
    const all = shown.reduce((sum, item) => sum + item[by], 0);
    const say = (item) => (by === "files" ? count(item.files) : bytes(item.bytes));
    const labelRoom = Math.min(width * 0.36, Math.max(...shown.map((item) =>
      textWidth(plainName(item.label), font))) + em);
    const numberRoom = Math.max(...shown.map((item) => textWidth(say(item), font))) + em * 0.6;
    const shareRoom = em * 3.3;
    const barRoom = Math.max(em * 2, width - labelRoom - numberRoom - shareRoom);
    return svg("svg", { width, height: row * shown.length, role: "group", "aria-label": title },
      shown.map((item, i) => barRow(item, { y: i * row, row, em, font, labelRoom, barRoom, numberRoom, width,
        share: item[by] / most, number: say(item), part: percent(item[by], all) })));
  });
}

function barRow(item, at) {
  const middle = at.y + at.row / 2;
  const height = at.row * 0.5;
  const bar = Math.max(2, at.barRoom * at.share);
  const label = plainName(item.label);
  const text = (x, anchor, className, words) =>
    svg("text", { x, y: middle, "text-anchor": anchor, "dominant-baseline": "central", class: className },
    words);
  const parts = [
    svg("title", null, `${label}: ${count(item.files)} files, ${bytes(item.bytes)}`),
    svg("rect", { class: "hit", x: 0, y: at.y, width: at.width, height: at.row }),
    text(0, "start", "label", shorten(label, at.font, at.labelRoom - at.em * 0.7)),
    svg("rect", { class: "track", x: at.labelRoom, y: middle - height / 2, width: at.barRoom, height,
      rx: 2 }),
    svg("rect", { class: `bar ${item.color || ""}`, x: at.labelRoom, y: middle - height / 2, width: bar,
      height, rx: 2 }),
    text(at.labelRoom + at.barRoom + at.numberRoom, "end", "number", at.number),
    text(at.width, "end", "share", at.part),
  ];
  return item.href ? svg("a", { href: item.href,
    "aria-label": `${label}: ${count(item.files)} files, ${bytes(item.bytes)}` }, parts)
    : svg("g", null, parts);
}

function niceTop(value, base) {
  let step = 1;
  while (step * base < value) step *= base;
  for (const factor of [1, 2, 5, 10, 20, 50, 100, 200, 500]) if (step * factor >= value) return step * factor;
  return value;
}

const DAY_MS = 86400000;
const dayNumber = (text) => Math.round(Date.parse(`${text}T00:00:00Z`) / DAY_MS);
const dayText = (number) => new Date(number * DAY_MS).toISOString().slice(0, 10);

export function daysBetween(first, last) {
  return dayNumber(last) - dayNumber(first);
}

// Days to name below a chart: the first, the last, and firsts of months (or steps of days) between.
function dayTicks(first, last, room) {
  const span = last - first;
  const most = Math.max(2, Math.floor(room));
  if (span < most) return Array.from({ length: span + 1 }, (_, i) => first + i);
  if (span < 62) {
    const step = Math.ceil(span / (most - 1));
    return Array.from({ length: Math.floor(span / step) + 1 }, (_, i) => first + i * step);
  }
  const step = [1, 2, 3, 4, 6, 12, 24, 60].find((months) => span / 30.4 / months <= most) || 120;
  const ticks = [];
  const [year, month] = dayText(first).split("-").map(Number);
  for (let next = Math.ceil(month / step) * step; ; next += step) {
    const number = Math.round(Date.UTC(year, next, 1) / DAY_MS);
    if (number > last) return ticks;
    ticks.push(number);
  }
}

// Growth: a value for each day the host ran, placed by its date. Where days are missing the line is
// dashed: nobody looked. The last value stands at its point, the scale at the left.
export function growthChart(days, by) {
  const values = days.map((day) => day[by]);
  const dates = days.map((day) => dayNumber(day.day));
  const say = by === "files" ? count : bytes;
  const sayRound = (value) => say(value).replace(/\.0+(?=\D)/, "");
  return responsive("growth", (width, em) => {
    const height = Math.round(em * 13);
    const unit = by === "bytes" ? 1024 ** Math.floor(Math.log(Math.max(1, ...values)) / Math.log(1024)) : 1;
    const top = niceTop(Math.max(1, ...values) / unit, 10) * unit;
    const box = { left: em * 5.6, right: width - em * 0.6, top: em * 1.5, bottom: height - em * 1.9 };
    const end = values.length - 1;
    const span = dates[end] - dates[0];
    const x = (date) => box.left + ((box.right - box.left) * (date - dates[0])) / span;
    const y = (value) => box.bottom - ((box.bottom - box.top) * value) / top;
    const at = (i) => `${x(dates[i]).toFixed(1)} ${y(values[i]).toFixed(1)}`;
    const whole = `M${values.map((_, i) => at(i)).join("L")}`;
    let seen = "";
    let unseen = "";
    for (let i = 1; i <= end; i += 1) {
      if (dates[i] - dates[i - 1] > 1) unseen += `M${at(i - 1)}L${at(i)}`;
      else seen += `${i === 1 || dates[i - 1] - dates[i - 2] > 1 ? `M${at(i - 1)}` : ""}L${at(i)}`;
    }
    const label = `From ${say(values[0])} on ${days[0].day} to ${say(values[end])} on ${days[end].day}`;
    const half = ((box.right - box.left) / Math.max(1, span)) / 2;
    return svg("svg", { width, height, role: "img", "aria-label": label },
      [0, 0.5, 1].map((part) => [
        svg("line", { class: "grid", x1: box.left, x2: box.right, y1: y(top * part), y2: y(top * part) }),
        svg("text", { class: "share", x: box.left - em * 0.6, y: y(top * part), "text-anchor": "end",
          "dominant-baseline": "central" }, sayRound(top * part)),
      ]),
      dayTicks(dates[0], dates[end], (box.right - box.left) / (em * 4.4)).map((date) =>
        dayMark(date, { x: x(date), box, height, em, span })),
      svg("path", { class: "area", d: `${whole}L${x(dates[end])} ${box.bottom}L${box.left} ${box.bottom}Z` }),
      svg("path", { class: "line unseen", d: unseen }), svg("path", { class: "line", d: seen }),
      svg("circle", { class: "point", cx: x(dates[end]), cy: y(values[end]), r: em * 0.28 }),
      svg("text", { class: "number", x: x(dates[end]), y: Math.max(em * 0.8, y(values[end]) - em * 0.9),
        "text-anchor": "end" }, say(values[end])),
      days.map((day, i) => svg("rect", { class: "hit", x: x(dates[i]) - half, y: box.top,
        width: Math.max(1, half * 2), height: box.bottom - box.top },
      svg("title", null, `${day.day}: ${count(day.files)} files, ${bytes(day.bytes)}`))));
  });
}

// A tick with its date; months are named without the day. At the edges the text turns inwards.
function dayMark(date, { x, box, height, em, span }) {
  const text = span < 62 ? dayText(date).slice(5) : dayText(date).slice(0, 7);
  const anchor = x - box.left < em * 1.5 ? "start" : box.right - x < em * 1.5 ? "end" : "middle";
  return [svg("line", { class: "grid", x1: x, x2: x, y1: box.bottom, y2: box.bottom + em * 0.35 }),
    svg("text", { class: "share", x, y: height - em * 0.4, "text-anchor": anchor }, text)];
}

// A share as a small bar; the number always stands beside it as text.
export function meter(part, all) {
  const width = `${all ? Math.max(0, Math.min(100, (part / all) * 100)) : 0}%`;
  return el("span", { class: "meter", "aria-hidden": "true" }, el("span", { style: { width } }));
}

// One bar that shows the whole, cut into its parts; the legend beside it carries the numbers.
export function splitBar(title, items, by) {
  const all = items.reduce((sum, item) => sum + item[by], 0) || 1;
  return responsive("split", (width, em) => {
    let x = 0;
    return svg("svg", { width, height: em * 1.1, role: "img",
      "aria-label": `${title}: ${items.map((item) => `${item.label} ${percent(item[by], all)}`).join(", ")}` },
      items.filter((item) => item[by] > 0).map((item) => {
        const part = (width * item[by]) / all;
        const rect = svg("rect", { class: `bar ${item.color}`, x, y: 0, width: Math.max(1, part - 1.5),
          height: em * 1.1, rx: 2 }, svg("title", null, `${item.label}: ${percent(item[by], all)}`));
        x += part;
        return rect;
      }));
  });
}
