// Fields made from the host's settings table: type, bounds, help, default; used for the host and per machine.

import { button, el, freshId, put } from "./dom.js";
import { bytes, count } from "./format.js";

const LABELS = {
  xml: "XML", s: "(seconds)", algo: "function", do: "Compute", dirs: "folders",
};

export function settingLabel(setting) {
  if (setting.label) return setting.label;
  const words = setting.name.replace(/^agent_/, "").split("_").map((word) => LABELS[word] || word).join(" ");
  return words[0].toUpperCase() + words.slice(1);
}

export function tellValue(setting, value) {
  if (value === null || value === undefined) return "unset";
  if (Array.isArray(value)) return value.length > 8
    ? `${value.slice(0, 8).join(" ")} and ${value.length - 8} more` : value.join(" ") || "none";
  if (typeof value === "boolean") return value ? "on" : "off";
  if (setting.unit === "bytes") return `${count(value)} (${bytes(value)})`;
  return `${value}${setting.unit ? ` ${setting.unit}` : ""}`;
}

const isList = (setting) => ["names", "extensions", "paths"].includes(setting.type);
const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

function inputFor(setting, id, value, describe) {
  const common = { id, "aria-describedby": describe, autocomplete: "off", spellcheck: "false" };
  if (setting.type === "bool") return el("input",
    { ...common, type: "checkbox", class: "switch", checked: Boolean(value) });
  if (setting.type === "choice") return el("select", common,
    setting.choices.map((choice) => el("option", { value: choice, selected: choice === value }, choice)));
  if (isList(setting)) return el("textarea", { ...common,
    rows: Math.min(8, Math.max(2, Math.ceil((value || []).join(" ").length / 60))),
    value: (value || []).join(listGlue(setting)) });
  if (setting.type === "int") return el("input",
    { ...common, type: "number", min: setting.minimum, max: setting.maximum, step: 1, value: value ?? "" });
  return el("input", { ...common, type: "text", value: value ?? "" });
}

// Patterns and folder names may hold spaces: one a line. Extensions may not: beside each other.
function listGlue(setting) {
  return setting.type === "extensions" ? " " : "\n";
}

function readInput(setting, input) {
  if (setting.type === "bool") return input.checked;
  if (isList(setting)) return input.value.split(listGlue(setting) === " " ? /[\s,]+/ : /\n/).map((one) =>
    one.trim()).filter(Boolean);
  if (setting.type === "int") return input.value === "" ? setting.default : Number(input.value);
  return input.value;
}

export class SettingField {
  // `value` undefined: not overridden here; `base` is what then holds. onchange() after every edit.
  constructor(setting, { value, base, baseName, onchange }) {
    Object.assign(this, { setting, base, baseName, onchange });
    this.stored = value;
    this.pending = value;
    const id = freshId("setting");
    this.help = freshId("help");
    this.input = inputFor(setting, id, value === undefined ? base : value, this.help);
    this.input.addEventListener("input", () => { this.pending = readInput(setting, this.input);
      this.changed(); });
    this.status = el("div", { class: "field-status" });
    this.problem = el("p", { class: "field-problem", role: "alert" });
    this.node = el("div", { class: `field type-${setting.type}` },
      el("div", { class: "field-text" }, el("label", { for: id }, settingLabel(setting)),
        el("p", { class: "muted", id: this.help }, setting.help || "", this.bounds()),
        el("code", { class: "muted" }, setting.name)),
      el("div", { class: "field-input" }, this.input, this.status, this.problem));
    this.show();
  }

  bounds() {
    const { minimum, maximum, unit } = this.setting;
    return maximum === null ? "" : ` (${count(minimum)} to ${count(maximum)}${unit ? ` ${unit}` : ""})`;
  }

  get dirty() { return !same(this.pending, this.stored); }

  get isBase() { return this.pending === undefined || same(this.pending, this.base); }

  // What to send: null goes back to the default or the general value.
  get wish() { return this.pending === undefined
    || (this.baseName === "default" && same(this.pending, this.base)) ? null : this.pending; }

  reset() {
    this.pending = undefined;
    if (this.setting.type === "bool") this.input.checked = Boolean(this.base);
    else this.input.value = isList(this.setting) ? (this.base || []).join(listGlue(this.setting)) : this.base
      ?? "";
    this.changed();
  }

  changed() {
    this.problem.textContent = "";
    this.show();
    this.onchange();
  }

  show() {
    const held = this.baseName === "default" ? !this.isBase : this.pending !== undefined;
    this.node.classList.toggle("held", held);
    this.node.classList.toggle("dirty", this.dirty);
    put(this.status, held ? [el("span", { class: "pill accent" }, this.baseName === "default" ? "changed"
      : "only here"),
      el("span", { class: "muted" }, ` ${this.baseName}: ${tellValue(this.setting, this.base)} `),
        button("Reset", () => this.reset(), { class: "link",
        "aria-label": `Reset ${settingLabel(this.setting)}` })]
      : el("span", { class: "muted" }, this.baseName));
  }

  refuse(text) {
    this.problem.textContent = text;
    this.input.setAttribute("aria-invalid", "true");
    this.input.focus();
  }
}

// The table has no groups of its own; its names tell what belongs together.
const GROUPS = [
  ["Scanning", /^(follow_|ignore_|rescan_|junk_patterns|junk_exclude)/], ["Types of files", /_extensions$/],
  ["Hashes", /^(hash_|do_full_hash|agent_offpeak)/], ["Agents", /^agent_/], ["Host", /./],
];

export function groupsOf(settings) {
  const groups = new Map(["Hashes", "Scanning", "Agents", "Host",
    "Types of files"].map((group) => [group, []]));
  for (const setting of settings) groups.get(GROUPS.find(([, names]) =>
    names.test(setting.name))[0]).push(setting);
  return [...groups].filter(([, members]) => members.length);
}

// The field that the host's refusal is about: it names the setting first.
export function refusedField(fields, error) {
  const words = `${(error.answer || {}).setting || ""} ${error.message} ${error.detail || ""}`.split(/[\s:]+/);
  return fields.find((field) => words.includes(field.setting.name));
}
