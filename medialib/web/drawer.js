// Everything known of one file: facts, hashes, streams, its other copies.

import { Latest, call } from "./api.js";
import { copyPath, copyText } from "./clipboard.js";
import { kindMark, stateMark } from "./columns.js";
import { add, button, el, name, put } from "./dom.js";
import { failed, loading } from "./empty.js";
import { ago, bitrate, bytes, clock, count, machine, moment, plural } from "./format.js";
import { href } from "./router.js";

const MATCH_WORDS = {
  confirmed: "confirmed: the whole content is equal",
    candidate: "candidate: the samples are equal, not yet proven", link: "hard link: the same copy",
};

function facts(pairs) {
  return el("dl", { class: "facts" }, pairs.filter(([, value]) => value !== null && value !== undefined
    && value !== "")
    .map(([key, value]) => [el("dt", null, key), el("dd", null, value)]));
}

function folderOf(file) {
  return file.path.slice(0, Math.max(0, file.path.length - file.name.length - 1));
}

function hashFacts(hashes) {
  if (!hashes || !hashes.sample_hash) return el("p", { class: "muted" }, "Not hashed yet.");
  const code = (text) => el("code", { class: "hash" }, text);
  return facts([
    ["Function", hashes.algo],
    ["Sample hash", code(hashes.sample_hash)],
    ["Full hash", hashes.full_hash ? code(hashes.full_hash) : "not computed yet"],
  ]);
}

function streamText(stream) {
  const parts = [stream.codec_name, stream.profile];
  if (stream.codec_type === "video") parts.push(stream.width ? `${stream.width}\u00D7${stream.height}` : null,
    stream.pix_fmt, frameRate(stream));
  if (stream.codec_type === "audio") parts.push(stream.channel_layout
    || (stream.channels ? `${stream.channels} ch` : null), stream.sample_rate ? `${stream.sample_rate} Hz`
    : null);
  parts.push(bitrate(Number(stream.bit_rate) || 0));
  return parts.filter(Boolean).join(" \u00B7 ");
}

function frameRate(stream) {
  const [top, bottom] = String(stream.avg_frame_rate || stream.r_frame_rate || "").split("/").map(Number);
  return top && bottom ? `${(top / bottom).toFixed(2).replace(/\.?0+$/, "")} fps` : null;
}

function language({ tags }) {
  return tags && tags.language && tags.language !== "und" ? String(tags.language) : "";
}

function streamTable(streams) {
  return el("table", { class: "plain" },
    el("thead", null, el("tr", null, ["#", "Type", "Stream",
      "Language"].map((label) => el("th", { scope: "col" }, label)))),
    el("tbody", null, streams.map((stream) => el("tr", null,
      el("td", null, stream.index), el("td", null, stream.codec_type || ""),
      el("td", null, streamText(stream), stream.tags && stream.tags.title
        ? el("div", { class: "muted" }, String(stream.tags.title)) : null),
      el("td", null, language(stream))))));
}

function copyList(copies) {
  return el("ul", { class: "copies" }, copies.map((copy) => el("li", { class: `is-${copy.state}` },
    el("a", { href: href("library", { open: copy.id }) }, name(copy.path)),
    el("div", { class: "muted" },
      `${machine(copy.agent)} \u00B7 ${copy.state} \u00B7 ${MATCH_WORDS[copy.match] || copy.match}`))));
}

function section(title, ...content) {
  return el("section", null, el("h3", null, title), content);
}

function parsedStreams(file) {
  if (Array.isArray(file.streams)) return file.streams;
  try { return JSON.parse(file.metadata.streams_json).streams || []; } catch { return []; }
}

export class FileDrawer {
  constructor(onclose) {
    this.onclose = onclose;
    this.calls = new Latest();
    this.id = null;
    this.node = el("aside", { class: "drawer", "aria-label": "File", hidden: true });
  }

  stop() { this.calls.stop(); }

  get path() { return this.file ? this.file.path : null; }

  copy() { return copyPath(this.file.path); }

  async show(id) {
    if (id === this.id) return;
    this.id = id;
    this.file = null;
    this.node.hidden = id === null;
    if (id === null) { this.calls.stop(); put(this.node); return; }
    if (!this.node.firstChild) put(this.node, loading());
    try {
      const { file } = await call("file", { id: Number(id) }, this.calls.next());
      if (this.id !== id) return;
      this.file = file;
      this.draw(file);
    } catch (error) {
      if (error.name !== "AbortError") put(this.node, this.closeRow(), failed(error));
    }
  }

  closeRow() {
    return el("div", { class: "drawer-bar" }, button("\u00D7", this.onclose,
      { class: "quiet", "aria-label": "Close (Esc)", title: "Close (Esc)" }));
  }

  draw(file) {
    const bar = this.closeRow();
    bar.prepend(el("div", { class: "row" }, kindMark(file.kind), stateMark(file.state)));
    put(this.node, bar, el("h2", { class: "wrap" }, name(file.name)),
      el("p", { class: "wrap path" }, name(file.path)),
      el("div", { class: "row" },
        button("Copy path", () => this.copy(), { class: "small", title: "Copy path (c)" }),
        el("a", { class: "button small", href: href("folders",
          { agent: file.agent.id, path: folderOf(file) }) }, "Show folder"),
        el("a", { class: "button small", href: href("library",
          { agent: file.agent.id, folder: folderOf(file) }) }, "Files beside it")),
      file.error ? el("p", { class: "notice bad" },
        `${file.error.stage}: ${file.error.class}. ${file.error.message || ""}`) : null,
      this.mainFacts(file), this.media(file), section("Hashes", hashFacts(file.hashes)), this.others(file));
    this.node.scrollTop = 0;
  }

  mainFacts(file) {
    return facts([
      ["Size", `${bytes(file.size)} (${count(file.size)} bytes)`], ["Machine", file.agent.id === "local" ? `${file.agent.name} (this host)` : file.agent.name],
        ["Root", name(file.root || "")],
      ["Modified", moment(file.mtime)], ["Status change", moment(file.ctime)],
        ["First seen", `${moment(file.first_seen)} (${ago(file.first_seen)})`],
      ["Last change", ago(file.changed)], ["Reason", file.reason],
        ["Identity", el("code", null, file.inode_key || "")],
    ]);
  }

  media(file) {
    const meta = file.metadata;
    if (!meta) return file.kind === "video" ? section("Video",
      el("p", { class: "muted" }, "Not described yet: ffprobe has not read this file.")) : null;
    const streams = parsedStreams(file);
    return section("Video", facts([
      ["Duration", clock(meta.duration)], ["Resolution", meta.height ? `${meta.width}\u00D7${meta.height}`
        : null], ["Video", meta.video_codec],
      ["Audio", (meta.audio_codecs || []).join(", ")], ["Container", meta.container],
        ["Bitrate", bitrate(meta.bitrate)],
    ]), streams.length ? streamTable(streams) : null, meta.streams_json ? this.raw(meta.streams_json) : null);
  }

  raw(json) {
    return el("details", null, el("summary", null, "What ffprobe said"),
      button("Copy", () => copyText(json), { class: "small" }), el("pre", { tabindex: "0" }, json));
  }

  others(file) {
    const copies = file.copies || [];
    const whole = file.hashes && (file.hashes.full_hash || file.hashes.sample_hash);
    const part = section(`Other copies${copies.length ? ` (${copies.length})` : ""}`);
    if (copies.length) return add(part, copyList(copies));
    return add(part, el("p", { class: "muted" }, whole
      ? `${plural(0, "other copy", "other copies").replace("0", "No")} in the catalogue.`
      : "Unknown until it is hashed."));
  }
}
