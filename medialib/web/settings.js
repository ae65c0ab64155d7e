// Settings: one form made from the host's table; what differs from its default is marked.

import { Latest, call } from "./api.js";
import { busyButton, button, el, put } from "./dom.js";
import { failed, loading } from "./empty.js";
import { plural } from "./format.js";
import { href } from "./router.js";
import { SettingField, groupsOf, refusedField, settingLabel, tellValue } from "./setting_form.js";
import { toast, toastError } from "./toast.js";

export class SettingsView {
  constructor(root) {
    this.root = root;
    this.calls = new Latest();
    put(root, el("h1", { class: "hidden" }, "Settings"), loading());
  }

  update() {
    if (!this.fields) this.load();
  }

  async load() {
    try {
      const signal = this.calls.next();
      const [answer, { agents }] = await Promise.all([call("settings", {}, signal),
        call("agents", {}, signal)]);
      this.names = new Map(agents.map((agent) => [agent.id, agent.name]));
      this.draw(answer);
    } catch (error) {
      if (error.name !== "AbortError") put(this.root, failed(error, () => this.load()));
    }
  }

  draw(answer) {
    const settings = answer.settings.filter((setting) => setting.name !== "remote_roots");
    this.own = answer.agents || {};
    this.fields = settings.map((setting) => new SettingField(setting,
      { value: setting.value, base: setting.default, baseName: "default", onchange: () => this.showBar() }));
    this.bar = el("div", { class: "save-bar", hidden: true });
    const byName = new Map(this.fields.map((field) => [field.setting.name, field]));
    put(this.root, el("div", { class: "page-head" }, el("h1", null, "Settings"),
      el("p", { class: "muted" }, "For every machine, unless a machine has its own value.")),
      groupsOf(settings).map(([group, members]) =>
        el("section", { class: "card" }, el("h2", null, group),
        members.map((setting) => [byName.get(setting.name).node, this.overrides(setting)]))),
      this.bar);
    this.showBar();
  }

  overrides(setting) {
    const entries = Object.entries(this.own).filter(([, own]) => setting.name in own).map(([agent, own]) =>
      [agent, own[setting.name]]);
    if (!entries.length) return null;
    return el("ul", { class: "overrides", "aria-label": `${settingLabel(setting)} on machines of their own` },
      entries.map(([agent, value]) => el("li", null, "On ",
      el("a", { href: href("machines", { settings: agent }) }, this.names.get(agent) || agent),
        `: ${tellValue(setting, value)}`)));
  }

  showBar() {
    const dirty = this.fields.filter((field) => field.dirty);
    this.bar.hidden = !dirty.length;
    put(this.bar, el("span", null, plural(dirty.length, "unsaved change")),
      button("Discard", () => { this.fields = null; this.load(); }),
      busyButton("Save", () => this.save(), { class: "primary" }));
  }

  async save() {
    const set = {};
    for (const field of this.fields.filter((one) => one.dirty)) set[field.setting.name] = field.wish;
    try {
      const answer = await call("settings", { set });
      toast(answer.reclassified ? `Saved: ${plural(answer.reclassified, "file")} reclassified` : "Saved",
        "good");
      this.draw(answer);
    } catch (error) {
      const field = refusedField(this.fields, error);
      if (field) field.refuse([error.message, error.detail].filter(Boolean).join(": "));
      else toastError(error);
    }
  }

  destroy() { this.calls.stop(); }
}
