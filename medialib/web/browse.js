// Choosing a folder of a machine by walking through it: straight, or by the heartbeat, which takes longer.

import { Latest, call } from "./api.js";
import { openDialog } from "./dialog.js";
import { busyButton, button, el, name, put } from "./dom.js";
import { loading } from "./empty.js";
import { bytes } from "./format.js";
import { toastError } from "./toast.js";

const ASK_AGAIN_MS = 1000;
const PATIENCE_MS = 90000;
const NOT_YET = 504;

export class FolderBrowser {
  // `onpick(path)` adds the root; it may fail, which is told here.
  constructor(agent, onpick) {
    this.agent = agent;
    this.onpick = onpick;
    this.calls = new Latest();
    this.path = el("input", { type: "text", "aria-label": "Folder", autocomplete: "off", spellcheck: "false",
      placeholder: "/path/of/a/folder" });
    this.note = el("div", { role: "status" });
    this.list = el("ul", { class: "browse", "aria-label": "Folders" });
    this.form = el("form", { class: "row nowrap",
      on: { submit: (event) => { event.preventDefault(); this.open(this.path.value); } } },
      this.path, el("button", { type: "submit" }, "Open"));
    this.add = busyButton("Add this folder", () => this.pick(), { class: "primary", disabled: true });
    const shown = openDialog(`Add a folder of ${agent.name}`,
      [this.form, this.note, this.list, el("div", { class: "row end" }, this.add)], [], true);
    this.close = shown.close;
    this.path.focus();
    shown.closed.then(() => this.calls.stop());
    this.open(null);
  }

  async open(path) {
    const signal = this.calls.next();
    put(this.note, loading("Asking the machine; behind a firewall it answers at its next heartbeat"));
    this.add.disabled = true;
    try {
      const answer = await this.ask(path, signal);
      this.here = answer.path;
      this.path.value = answer.path;
      this.draw(answer);
    } catch (error) {
      if (error.name === "AbortError") return;
      put(this.note, el("p", { class: "notice bad" },
        [error.message, error.detail].filter(Boolean).join(": ")));
      put(this.list, this.here && this.here !== path ? this.entry(`Back to ${this.here}`, this.here) : null);
    }
  }

  async ask(path, signal) {
    const until = Date.now() + PATIENCE_MS;
    for (;;) {
      try {
        return await call("agents/ls", { agent: this.agent.id, path: path || "" }, signal);
      } catch (error) {
        if (error.status !== NOT_YET || Date.now() > until) throw error;
      }
      await new Promise((done) => setTimeout(done, ASK_AGAIN_MS));
      if (signal.aborted) throw new DOMException("left", "AbortError");
    }
  }

  entry(label, path) {
    return el("li", null, button(label, () => this.open(path), { class: "entry" }));
  }

  draw(answer) {
    put(this.note, el("p", { class: "muted" },
      `${answer.dirs.length} folders, ${answer.files.length} files here${answer.truncated ? " (the list is cut)" : ""}`));
    put(this.list, answer.parent !== null && answer.parent !== undefined && answer.parent !== answer.path
      ? this.entry("\u2191 up", answer.parent) : null,
      answer.dirs.map((dir) => this.entry([el("span", { class: "folder-icon", "aria-hidden": "true" }),
        name(dir.name)], dir.path)),
      answer.files.slice(0, 30).map((file) => el("li", { class: "muted entry" }, name(file.name), " ",
        bytes(file.size))));
    this.add.disabled = !answer.path;
    this.list.scrollTop = 0;
  }

  async pick() {
    try {
      await this.onpick(this.path.value || this.here);
      this.close();
    } catch (error) { toastError(error); }
  }
}
