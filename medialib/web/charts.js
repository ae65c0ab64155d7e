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

// Growth: one value a day. The first and last are written at their points, the scale at the left.
export function growthChart(days, by) {
  const values = days.map((day) => day[by]);
  const say = by === "files" ? count : bytes;
  return responsive("growth", (width, em) => {
    const height = Math.round(em * 13);
    const unit = by === "bytes" ? 1024 ** Math.floor(Math.log(Math.max(1, ...values)) / Math.log(1024)) : 1;
    const top = niceTop(Math.max(1, ...values) / unit, 10) * unit;
    const box = { left: em * 5.6, right: width - em * 0.6, top: em * 1.5, bottom: height - em * 1.9 };
    const x = (i) => box.left + ((box.right - box.left) * i) / (days.length - 1);
    const y = (value) => box.bottom - ((box.bottom - box.top) * value) / top;
    const line = values.map((value, i) =>
      `${i ? "L" : "M"}${x(i).toFixed(1)} ${y(value).toFixed(1)}`).join("");
    const end = values.length - 1;
    const label = `From ${say(values[0])} on ${days[0].day} to ${say(values[end])} on ${days[end].day}`;
    return svg("svg", { width, height, role: "img", "aria-label": label },
      [0, 0.5, 1].map((part) => [
        svg("line", { class: "grid", x1: box.left, x2: box.right, y1: y(top * part), y2: y(top * part) }),
        svg("text", { class: "share", x: box.left - em * 0.6, y: y(top * part), "text-anchor": "end",
          "dominant-baseline": "central" }, say(top * part)),
      ]),
      svg("path", { class: "area", d: `${line}L${x(end)} ${box.bottom}L${box.left} ${box.bottom}Z` }),
      svg("path", { class: "line", d: line }),
      svg("circle", { class: "point", cx: x(end), cy: y(values[end]), r: em * 0.28 }),
      svg("text", { class: "number", x: x(end), y: Math.max(em * 0.8, y(values[end]) - em * 0.9),
        "text-anchor": "end" }, say(values[end])),
      svg("text", { class: "share", x: box.left, y: height - em * 0.4, "text-anchor": "start" }, days[0].day),
      svg("text", { class: "share", x: box.right, y: height - em * 0.4, "text-anchor": "end" },
        days[end].day));
  });
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
