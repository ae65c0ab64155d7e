// A long list behind keyset pages: only pages near the eye are kept; tokens of pages once seen are remembered.

import { isAbort } from "./api.js";

const PAGE = 200;
const KEPT_PAGES = 40;
const NEAR_PAGES = 20;

export class PagedRows {
  // fetchPage({after, skip, of, limit}, signal) → {files, next, skipped}; about() → rows of the list
  constructor(fetchPage, about, onchange, onerror) {
    this.about = about;
    this.fetchPage = fetchPage;
    this.onchange = onchange;
    this.onerror = onerror;
    this.pages = new Map();
    this.tokens = new Map([[0, null]]);
    this.total = null;
    this.wanted = [];
    this.busy = null;
    this.inOrder = false; // the host finds no far places: from page to page then
    this.closed = false;
  }

  get(index) {
    const page = this.pages.get(Math.floor(index / PAGE));
    return page ? page[index % PAGE] : undefined;
  }

  // How many rows the list has, as far as that is known by now.
  get length() {
    if (this.total !== null) return this.total;
    const known = [...this.pages.keys()];
    return known.length ? Math.max(...known.map((p) => p * PAGE + this.pages.get(p).length)) : 0;
  }

  want(first, last) {
    const from = Math.floor(Math.max(0, first) / PAGE);
    const to = Math.floor(Math.max(0, last) / PAGE);
    this.wanted = [];
    for (let page = from; page <= to; page += 1) this.wanted.push(page);
    if (last % PAGE > PAGE / 2) this.wanted.push(to + 1);
    if (this.busy && !this.wanted.includes(this.busy.page)) this.busy.controller.abort();
    this.pump();
  }

  missing() {
    const limit = this.total === null ? Infinity : Math.ceil(this.total / PAGE);
    return this.wanted.find((page) => !this.pages.has(page) && page < limit);
  }

  async pump() {
    const page = this.missing();
    if (this.busy || this.closed || page === undefined) return;
    const start = this.tokens.has(page) ? page : Math.max(...[...this.tokens.keys()].filter((p) => p < page));
    const controller = new AbortController();
    this.busy = { page, controller };
    const ask = this.askFor(start, page);
    let failed = false;
    try {
      const answer = await this.whole(ask, controller.signal, page);
      // A host that cannot skip answered the page whose place was told: go on from there.
      const skipped = !ask.skip || answer.skipped !== undefined;
      if (!skipped && !ask.after) this.inOrder = true;
      this.store(skipped ? page : ask.after ? start : 0, answer);
    } catch (error) {
      this.pages.delete(page); // what came of it is not all of it
      failed = !isAbort(error);
      if (failed && !this.closed) this.onerror(error);
    }
    this.busy = null;
    if (!failed) this.pump();
  }

  // Near pages are reached from one that is known; far ones are counted from the start of the list.
  askFor(start, page) {
    if (page - start > NEAR_PAGES && !this.inOrder) return { skip: page * PAGE, of: this.about() || undefined,
      limit: PAGE };
    const ask = { after: this.tokens.get(start) ?? undefined, limit: PAGE };
    return start < page ? { ...ask, skip: (page - start) * PAGE } : ask;
  }

  // The host may end an answer early to stay quick; a page is whole when it is full or the last. What
  // came so far is shown meanwhile, where it is known which page it is.
  async whole(ask, signal, page) {
    const answer = await this.fetchPage(ask, signal);
    while (answer.files.length < PAGE && answer.next) {
      if (!ask.skip && !this.closed) {
        this.pages.set(page, answer.files);
        this.onchange();
      }
      const more = await this.fetchPage({ after: answer.next, limit: PAGE - answer.files.length }, signal);
      answer.files = [...answer.files, ...more.files];
      answer.next = more.next;
    }
    return answer;
  }

  store(page, { files, next }) {
    if (this.closed) return;
    this.pages.set(page, files);
    if (next) this.tokens.set(page + 1, next);
    else if (files.length || page === 0) this.total = page * PAGE + files.length;
    else this.total = Math.min(this.total ?? Infinity, page * PAGE); // it ends somewhere before
    this.forgetFar(page);
    this.onchange();
  }

  forgetFar(near) {
    if (this.pages.size <= KEPT_PAGES) return;
    const far = [...this.pages.keys()].sort((a, b) => Math.abs(b - near) - Math.abs(a - near));
    for (const page of far.slice(0, this.pages.size - KEPT_PAGES)) this.pages.delete(page);
  }

  close() {
    this.closed = true;
    if (this.busy) this.busy.controller.abort();
  }
}
