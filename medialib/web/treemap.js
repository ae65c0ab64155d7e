// A squarified treemap in SVG: area is size. Two levels, so that one sees into the large folders.

import { shorten } from "./charts.js";
import { el, plainName, put, svg } from "./dom.js";
import { bytes, count } from "./format.js";

const LEAST_AREA = 14;

// Bruls, Huizing, van Wijk: rows are filled along the shorter side while their shapes get squarer.
function squarify(items, box) {
  const placed = [];
  const all = items.reduce((sum, item) => sum + item.bytes, 0);
  if (!all || box.width <= 0 || box.height <= 0) return placed;
  const scale = (box.width * box.height) / all;
  let { x, y, width, height } = box;
  let rest = items.filter((item) => item.bytes > 0).map((item) => ({ item, area: item.bytes * scale }));
  while (rest.length) {
    const side = Math.min(width, height);
    let taken = 1;
    let sum = rest[0].area;
    let worst = Math.max((side * side) / sum, sum / (side * side));
    while (taken < rest.length) {
      const next = sum + rest[taken].area;
      const bad = Math.max((side * side * rest[0].area) / (next * next),
        (next * next) / (side * side * rest[taken].area));
      if (bad > worst) break;
      worst = bad;
      sum = next;
      taken += 1;
    }
    const depth = sum / side;
    let along = 0;
    for (const { item, area } of rest.slice(0, taken)) {
      const part = area / depth;
      placed.push(width >= height ? { item, x, y: y + along, width: depth, height: part }
        : { item, x: x + along, y, width: part, height: depth });
      along += part;
    }
    if (width >= height) { x += depth; width -= depth; } else { y += depth; height -= depth; }
    rest = rest.slice(taken);
    if (width < 0.5 || height < 0.5) break;
  }
  return placed;
}

export class Treemap {
  // `link(item)` → address of a folder
  constructor(link) {
    this.link = link;
    this.items = [];
    this.node = el("div", { class: "treemap" });
    this.observer = new ResizeObserver(() => this.draw());
    this.observer.observe(this.node);
  }

  destroy() { this.observer.disconnect(); }

  show(items) {
    this.items = items;
    this.drawn = "";
    this.draw();
  }

  draw() {
    const width = this.node.clientWidth;
    const height = this.node.clientHeight;
    const key = `${width}x${height}`;
    if (!width || !height || key === this.drawn) return;
    this.drawn = key;
    const style = getComputedStyle(this.node);
    const em = parseFloat(style.fontSize);
    this.family = style.fontFamily;
    const cells = squarify(this.items, { x: 0, y: 0, width, height });
    put(this.node, svg("svg", { width, height, role: "group",
      "aria-label": "Treemap of the folders by size" },
      cells.filter((cell) => cell.width * cell.height >= LEAST_AREA).map((cell, i) =>
        this.cell(cell, i, em))));
  }

  cell(cell, i, em) {
    const { item } = cell;
    const words = `${plainName(item.name)}: ${bytes(item.bytes)}, ${count(item.files)} files${item.state === "offline" ? ", offline" : ""}`;
    const head = cell.width > em * 3.5 && cell.height > em * 1.7;
    const tone = item.own ? "own" : `t${i % 8}`;
    const parts = [svg("title", null, words), svg("rect",
      { class: `cell ${tone} ${item.state === "offline" ? "off" : ""}`, x: cell.x + 0.75, y: cell.y + 0.75,
      width: Math.max(0.5, cell.width - 1.5), height: Math.max(0.5, cell.height - 1.5), rx: 3 })];
    if (head && item.folders && item.folders.length && cell.height > em * 4) parts.push(this.inner(cell, em));
    if (head) parts.push(this.label(cell, em));
    return svg("a", { href: this.link(item), "aria-label": words }, parts);
  }

  inner(cell, em) {
    const box = { x: cell.x + 4, y: cell.y + em * 3.1, width: cell.width - 8,
      height: cell.height - em * 3.1 - 4 };
    const rest = cell.item.bytes - cell.item.folders.reduce((sum, folder) => sum + folder.bytes, 0);
    const parts = rest > 0 ? [...cell.item.folders,
      { name: "", bytes: rest }].sort((a, b) => b.bytes - a.bytes) : cell.item.folders;
    return squarify(parts, box).filter((one) => one.width * one.height >= LEAST_AREA * 3).map((one) => [
      svg("rect", { class: one.item.name ? "inner" : "inner files", x: one.x + 0.5, y: one.y + 0.5,
        width: Math.max(0.5, one.width - 1), height: Math.max(0.5, one.height - 1), rx: 2 }),
      one.item.name && one.width > em * 4 && one.height > em * 1.5
        ? this.text(one.x + em * 0.35, one.y + em * 1.05, one.width - em * 0.7, em * 0.85,
        plainName(one.item.name), "inner-label") : null,
    ]);
  }

  label(cell, em) {
    const room = cell.width - em;
    const two = cell.height > em * 2.9;
    return [this.text(cell.x + em * 0.5, cell.y + em * 1.3, room, em, plainName(cell.item.name),
      "cell-label"),
      two ? this.text(cell.x + em * 0.5, cell.y + em * 2.5, room, em * 0.9,
        `${bytes(cell.item.bytes)} \u00B7 ${count(cell.item.files)}`, "cell-size") : null];
  }

  text(x, y, room, em, words, className) {
    const font = `${className === "cell-label" ? "bold " : ""}${em}px ${this.family}`;
    return svg("text", { x, y, class: className }, shorten(words, font, room));
  }
}
