// A table of any length in which only the rows in sight exist. Browsers end elements at some millions of
// pixels, so the scroll height is capped: small steps scroll by pixels, dragging the bar moves by share.

import { el } from "./dom.js";

const MAX_HEIGHT = 6e6;
const SETTLE_MS = 160;

export class VirtualList {
  // options: label, head (thead node), width, draw(tr, index, isCursor), onsight(first, last), onopen(index), oncursor(index)
  constructor(options) {
    Object.assign(this, options);
    this.count = 0;
    this.top = 0;
    this.lastScroll = 0;
    this.cursor = -1;
    this.first = 0;
    Object.assign(this, { view: 0, height: 0, headHeight: 0, rowHeight: 30, rows: [] });
    this.body = el("tbody");
    this.table = el("table", { class: "files", role: "grid", "aria-label": this.label, tabindex: "0" },
      this.cols, this.head, this.body);
    this.frame = el("div", { class: "vl-window" }, this.table);
    this.space = el("div", { class: "vl-space" }, this.frame);
    this.node = el("div", { class: "vl" }, this.space);
    this.node.addEventListener("scroll", () => this.scrolled(), { passive: true });
    this.table.addEventListener("keydown", (event) => this.key(event));
    this.body.addEventListener("click", (event) => this.clicked(event));
    this.observer = new ResizeObserver(() => this.measure());
    this.observer.observe(this.node);
  }

  destroy() {
    this.observer.disconnect();
    clearTimeout(this.settling);
  }

  measure() {
    this.view = this.node.clientHeight;
    this.rowHeight = parseFloat(getComputedStyle(this.node).getPropertyValue("--row")) || 30;
    this.headHeight = this.head.getBoundingClientRect().height || this.rowHeight;
    this.setCount(this.count);
  }

  get seen() { return Math.max(0, this.view - this.headHeight); }

  get maxTop() { return Math.max(0, this.count * this.rowHeight - this.seen); }

  get maxScroll() { return Math.max(0, this.height - this.view); }

  setCount(count) {
    this.count = count;
    if (!this.view) return;
    this.height = Math.min(MAX_HEIGHT, count * this.rowHeight + this.headHeight);
    this.space.style.height = `${Math.max(this.height, this.view - 1)}px`;
    this.frame.style.height = `${this.view}px`;
    this.table.setAttribute("aria-rowcount", count + 1);
    this.fit();
    this.moveTo(Math.min(this.top, this.maxTop));
  }

  // As many row elements as fit, drawn again when the window moves.
  fit() {
    const need = Math.min(this.count, Math.ceil(this.seen / this.rowHeight) + 1);
    while (this.rows.length < need) {
      const row = el("tr");
      row.index = -1;
      this.rows.push(row);
      this.body.append(row);
    }
    while (this.rows.length > need) this.rows.pop().remove();
  }

  get scaled() { return this.count * this.rowHeight + this.headHeight > MAX_HEIGHT; }

  scrolled() {
    const scroll = this.node.scrollTop;
    const step = scroll - this.lastScroll;
    this.lastScroll = scroll;
    if (!this.scaled) this.top = scroll;
    else if (scroll <= 0) this.top = 0;
    else if (scroll >= this.maxScroll - 1) this.top = this.maxTop;
    else if (Math.abs(step) < this.view * 2) this.top = Math.min(this.maxTop, Math.max(0, this.top + step));
    else this.top = (scroll / this.maxScroll) * this.maxTop;
    this.paint();
    clearTimeout(this.settling);
    this.settling = setTimeout(() => this.settle(), SETTLE_MS);
  }

  // After scrolling by pixels, the bar is put where the rows in sight really are.
  settle() {
    if (!this.scaled) return;
    const scroll = Math.round((this.top / this.maxTop) * this.maxScroll);
    const edge = this.top > 0 && this.top < this.maxTop;
    this.lastScroll = edge ? Math.min(this.maxScroll - 2, Math.max(1, scroll)) : scroll;
    this.node.scrollTop = this.lastScroll;
  }

  moveTo(top) {
    this.top = Math.min(this.maxTop, Math.max(0, top));
    const scroll = this.scaled ? Math.round((this.top / this.maxTop) * this.maxScroll) : Math.round(this.top);
    // Writing it makes the browser lay out everything at once, and once more after the rows are drawn.
    if (scroll !== this.lastScroll) this.node.scrollTop = scroll;
    this.lastScroll = scroll;
    this.paint();
  }

  paint(all = false) {
    if (!this.view || !this.rows.length) { this.onsight(0, 0); return; }
    const first = Math.min(Math.floor(this.top / this.rowHeight), Math.max(0, this.count - this.rows.length));
    this.turn(first - this.first);
    this.first = first;
    this.rows.forEach((row, i) => {
      const index = first + i;
      if (!all && row.index === index && row.filled) return;
      row.index = index;
      row.setAttribute("aria-rowindex", index + 2);
      row.filled = this.draw(row, index, index === this.cursor);
    });
    this.body.style.transform = `translateY(${first * this.rowHeight - this.top}px)`;
    this.onsight(first, first + this.rows.length - 1);
  }

  // A short move keeps the rows that stay in sight and turns over only the others.
  turn(step) {
    if (Math.abs(step) >= this.rows.length) return;
    for (; step > 0; step -= 1) { const row = this.rows.shift(); this.rows.push(row); this.body.append(row); }
    for (; step < 0; step += 1) { const row = this.rows.pop(); this.rows.unshift(row); this.body.prepend(row);
      }
  }

  setCursor(index, tell = true) {
    if (!this.count) return;
    this.cursor = Math.min(this.count - 1, Math.max(0, index));
    const at = this.cursor * this.rowHeight;
    if (at < this.top) this.moveTo(at);
    else if (at + this.rowHeight > this.top + this.seen) this.moveTo(at + this.rowHeight - this.seen);
    this.paint(true);
    const row = this.rows.find((one) => one.index === this.cursor);
    if (row && row.id) this.table.setAttribute("aria-activedescendant", row.id);
    if (tell) this.oncursor(this.cursor);
  }

  clicked(event) {
    const row = event.target.closest("tr");
    if (!row || !row.filled) return;
    this.setCursor(row.index, false);
    this.onopen(row.index);
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("button")) return;
    const page = Math.max(1, Math.floor(this.seen / this.rowHeight) - 1);
    const steps = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1, PageDown: page, PageUp: -page };
    if (event.key in steps) this.setCursor(this.cursor + steps[event.key]);
    else if (event.key === "Home") this.setCursor(0);
    else if (event.key === "End") this.setCursor(this.count - 1);
    else if (event.key === "Enter" && this.cursor >= 0) this.onopen(this.cursor);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }
}
