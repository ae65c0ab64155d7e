// Machines: every agent and the host's own scanner, what they do, and the handles to steer them.

import { Latest, call } from "./api.js";
import { FolderBrowser } from "./browse.js";
import { copyButton } from "./clipboard.js";
import { openDialog } from "./dialog.js";
import { el, put } from "./dom.js";
import { failed, loading } from "./empty.js";
import { bytes, count, plural } from "./format.js";
import { hashMixNotice } from "./hash_mix.js";
import { onLive } from "./live.js";
import { MachineCard } from "./machine_card.js";
import { go } from "./router.js";
import { SettingField, groupsOf, refusedField } from "./setting_form.js";
import { toast, told } from "./toast.js";

const REFRESH_MS = 15000;
const HOST_PORT = "8765";
const CLEAR_WARNING = "The agent forgets what it knows and reads every file again at its next scan. The catalogue here keeps everything.";

export class MachinesView {
  constructor(root) {
    this.root = root;
    this.calls = new Latest();
    this.cards = new Map();
    put(root, el("h1", { class: "hidden" }, "Machines"), loading());
    this.stops = [
      onLive("agents", () => this.load()), onLive("again", () => this.load()),
      onLive("progress", ({ agent, stats }) => { const card = this.cards.get(agent);
        if (card) card.progress(stats); else this.load(); }),
    ];
    this.timer = setInterval(() => { if (!document.hidden) this.load(); }, REFRESH_MS);
  }

  update(params) {
    this.params = params;
    if (this.agents) this.fromUrl();
    else this.load();
  }

  // Links from other pages may ask for a dialog: adding a root, adding a machine, a machine's settings.
  fromUrl() {
    const find = (key) => this.agents.find((agent) => agent.id === this.params.get(key));
    const wish = ["add", "new", "settings"].find((key) => this.params.has(key));
    if (!wish) return;
    const [add, settings, fresh] = [find("add"), find("settings"), this.params.has("new")];
    go("machines", {}, true);
    if (add) this.addRoot(add);
    else if (settings) this.ownSettings(settings);
    else if (fresh) this.how.scrollIntoView({ block: "center" });
  }

  async load() {
    const signal = this.calls.next();
    try {
      const [{ agents }, summary] = await Promise.all([call("agents", {}, signal), this.host ? null
        : call("summary", {}, signal)]);
      if (summary) this.host = summary.host || {};
      this.agents = agents;
      this.draw();
      this.fromUrl();
    } catch (error) {
      if (error.name !== "AbortError" && !this.agents) put(this.root, failed(error, () => this.load()));
    }
  }

  draw() {
    if (!this.grid) {
      this.grid = el("div", { class: "machines" });
      this.title = el("p", { class: "total" });
      this.how = this.howTo();
      this.mixed = el("div");
      put(this.root, el("div", { class: "page-head" }, el("h1", null, "Machines"), this.title), this.mixed,
        this.grid, this.how);
    }
    this.drawMixed();
    const away = this.agents.filter((agent) => agent.state === "away").length;
    put(this.title, `${plural(this.agents.length, "machine")}${away ? `, ${away} not connected` : ""}`);
    for (const [id, card] of this.cards) if (!this.agents.some((agent) =>
      agent.id === id)) { card.node.remove(); this.cards.delete(id); }
    for (const agent of this.agents) {
      if (!this.cards.has(agent.id)) {
        this.cards.set(agent.id, new MachineCard(this));
        this.grid.append(this.cards.get(agent.id).node);
      }
      this.cards.get(agent.id).update(agent);
    }
  }

  // Drawn anew only when it changes, so that its button keeps the focus.
  drawMixed() {
    const key = JSON.stringify(this.agents.map(({ id, name, files, missing, hash_algo, hash_algos }) =>
      [id, name, Boolean(files || missing), hash_algo, hash_algos]));
    if (key === this.mixedKey) return;
    this.mixedKey = key;
    put(this.mixed, hashMixNotice(this.agents));
  }

  // A page opened as localhost, perhaps through a tunnel, must not send people's other machines to
  // themselves: then the host's own address, port and scheme are told.
  hostAddress() {
    const here = /^(localhost|127\.|\[::1\])/.test(location.hostname);
    const { addresses = [], port, scheme } = this.host;
    const [first] = addresses;
    const secure = here && scheme ? scheme === "https" : location.protocol === "https:";
    const at = {
      name: here && first ? first : location.hostname, secure,
      port: String((here && port) || location.port || (secure ? 443 : 80)),
      others: addresses.filter((one) => one !== (here ? first : location.hostname)),
    };
    const bracketed = at.name.includes(":") && !at.name.startsWith("[") ? `[${at.name}]` : at.name;
    return { ...at, name: bracketed, alone: here && /^(localhost|127\.|::1$)/.test(first || "") };
  }

  howTo() {
    const { name, port, secure, others, alone } = this.hostAddress();
    const at = `${secure ? "https" : "http"}://${name}:${port}`;
    const host = secure ? at : port === HOST_PORT ? name : `${name}:${port}`;
    const line = (label, text) => el("div", { class: "paste" }, el("span", { class: "muted" }, label),
      el("code", null, text), copyButton(text));
    return el("section", { class: "card how", id: "add-machine" }, el("h2", null, "Add a machine"),
      alone ? el("p", { class: "notice warn" },
        "This host listens on this machine only. Start it without --bind 127.0.0.1, and other machines can reach it.") : null,
      el("p", { class: "muted" },
        "Paste one line there. It needs Python 3.8 or newer and nothing else; it shows up here within seconds."),
      line("Linux, macOS, NAS", `curl -O ${at}/agent.py && python3 agent.py ${host}`),
      line("Windows PowerShell",
        `Invoke-WebRequest ${at}/agent.py -OutFile agent.py; python agent.py ${host}`),
      others.length && !alone ? el("p", { class: "muted" },
        `From another network, put the address there that it reaches: ${others.join(", ")}.`) : null,
      secure ? el("p", { class: "muted" },
        "With a certificate of your own making, add --cafile FILE to the agent and --cacert FILE to curl.") : null,
      el("p", { class: "muted" },
        "Then add its folders with \u201CAdd a folder\u201D, or name them at the end of the line. Videos are described where ffprobe is installed."),
      el("p", null, el("a", { href: "/agent.py", download: "agent.py" }, "Download agent.py")));
  }

  async command(agent, what, done) {
    const answer = await call(`agents/${what}`, { agent: agent.id });
    toast(answer.message || (answer.queued ? `${done}: ${agent.name} hears it at its next heartbeat` : done),
      "good");
    await this.load();
  }

  scan(agent) { return told(() => this.command(agent, "scan_now", "Scan started"))(); }

  compact(agent) { return told(() => this.command(agent, "compact_cache", "Cache compacted"))(); }

  clear(agent) {
    openDialog(`Clear the cache of ${agent.name}?`, el("p", null, CLEAR_WARNING),
      [{ label: "Clear the cache", kind: "danger",
      run: () => this.command(agent, "clear_cache", "Cache cleared") }]);
  }

  addRoot(agent) {
    return new FolderBrowser(agent, async (path) => {
      const roots = agent.remote_roots || [];
      if (agent.roots.some((root) => root.path === path
        && root.state !== "offline")) throw new Error("This folder is there already");
      await call("agents/set", { agent: agent.id, roots: [...roots.filter((root) => root !== path), path] });
      toast("Folder added; it is scanned now", "good");
      await this.load();
    });
  }

  removeRoot(agent, root) {
    openDialog("Stop scanning this folder?", el("p", null,
      `${root.path} of ${agent.name} is scanned no more. Its ${plural(root.files || 0, "file")} stay in the catalogue as offline until you forget them.`), [{
      label: "Stop scanning", kind: "danger", run: async () => {
        await call("agents/set", { agent: agent.id, roots: agent.remote_roots.filter((path) =>
          path !== root.path) });
        await this.load();
      },
    }]);
  }

  acceptEmpty(agent, root) {
    openDialog("Accept that it is empty?", el("p", null,
      `${root.path} of ${agent.name} lists nothing although ${plural(root.files || 0, "file")} were known there. If it really was emptied, they become missing. If a disk is not mounted, connect it instead.`), [{
      label: "It really is empty", kind: "danger",
        run: async () => { await call("agents/accept_empty", { agent: agent.id, path: root.path });
        await this.load(); },
    }]);
  }

  acceptDisk(agent, root) {
    openDialog("Take what is there now?", el("p", null,
      `Nothing of the ${plural(root.files || 0, "known file")} is found at ${root.path} of ${agent.name}: another disk is there, and it has no name of its own to tell it by. If it took the place of the old one, what is on it is catalogued, and the known files become missing; they keep what is known of them. If the old disk is only unplugged, connect it instead.`), [{
      label: "Take what is there now", kind: "danger",
        run: async () => { await call("agents/accept_empty", { agent: agent.id, path: root.path });
        await this.load(); },
    }]);
  }

  // The count comes first; the host refuses when it is no longer true at the moment of the answer.
  forget(agent, root = null) {
    return told(async () => {
      const body = root ? { agent: agent.id, root: root.path } : { agent: agent.id };
      const plan = await call("agents/forget", body);
      const what = root ? `${root.path} of ${agent.name}` : agent.name;
      openDialog(`Forget ${what}?`, [el("p", null, el("strong", null, plural(plan.files, "file")),
        ` (${bytes(plan.bytes || 0)}) leave the catalogue, with their hashes and first-seen dates. Nothing on the disk is touched.`),
        el("p", { class: "muted" }, "If it is connected and scanned again, they come back as new files.")], [{
        label: `Forget ${count(plan.files)} ${plan.files === 1 ? "file" : "files"}`, kind: "danger",
          run: async () => {
          await call("agents/forget", { ...body, confirm: plan.files });
          toast("Forgotten", "good");
          await this.load();
        },
      }]);
    })();
  }

  ownSettings(agent) {
    return told(async () => {
      const { settings } = await call("settings");
      const fields = settings.filter((setting) => setting.per_agent !== false
        && setting.name !== "remote_roots").map((setting) => new SettingField(setting, {
        value: (agent.settings || {})[setting.name], base: setting.value, baseName: "general value",
          onchange: () => {},
      }));
      const byName = new Map(fields.map((field) => [field.setting.name, field]));
      openDialog(`Settings of ${agent.name}`, groupsOf(fields.map((field) =>
        field.setting)).map(([group, members]) => el("section", null, el("h3", null, group),
        members.map((setting) => byName.get(setting.name).node))), [{
        label: "Save", kind: "primary", run: () => this.saveOwn(agent, fields),
      }], true);
    })();
  }

  async saveOwn(agent, fields) {
    const settings = {};
    for (const field of fields.filter((one) => one.dirty)) settings[field.setting.name] = field.wish;
    try {
      if (Object.keys(settings).length) await call("agents/set", { agent: agent.id, settings });
    } catch (error) {
      const field = refusedField(fields, error);
      if (!field) throw error;
      field.refuse([error.message, error.detail].filter(Boolean).join(": "));
      return false;
    }
    toast("Saved", "good");
    await this.load();
    return true;
  }

  destroy() {
    this.stops.forEach((stop) => stop());
    clearInterval(this.timer);
    this.calls.stop();
  }
}
