// The columns of the file table: what each shows, how wide it is, which key it sorts by.

import { el, name } from "./dom.js";
import { ago, bitrate, bytes, clock, count, day, machine, moment, shortContainer } from "./format.js";

const meta = (row, key) => (row.metadata ? row.metadata[key] : null);
const folderOf = (row) => row.path.slice(0, Math.max(0, row.path.length - row.name.length - 1));

export const KINDS = ["video", "audio", "image", "subtitle", "xml", "other", "unknown", "junk"];

export function kindMark(kind) {
  return el("span", { class: `kind k-${KINDS.includes(kind) ? kind : "unknown"}` }, kind);
}

export function stateMark(state) {
  return el("span", { class: `state s-${state}` }, state);
}

// How much is known about the content, in the word that the duplicate rules use.
function hashWord(row) {
  if (!row.hashes || !row.hashes.sample_hash) return "";
  return row.hashes.full_hash ? "full" : "sample";
}

export const COLUMNS = [
  { key: "name", label: "Name", width: 300, fixed: true, node: (row) => name(row.name) },
  { key: "size", label: "Size", width: 92, number: true, first: "desc", text: (row) => bytes(row.size) },
  { key: "mtime", label: "Modified", width: 104, number: true, first: "desc", text: (row) => day(row.mtime) },
  { key: "kind", label: "Kind", width: 102, node: (row) => kindMark(row.kind) },
  { key: "duration", label: "Duration", width: 88, number: true, first: "desc",
    text: (row) => clock(meta(row, "duration")) },
  { key: "height", label: "Resolution", width: 104, number: true, first: "desc",
    text: (row) => (meta(row, "height") ? `${meta(row, "width")}\u00D7${meta(row, "height")}` : "") },
  { key: "video_codec", label: "Video", width: 106, text: (row) => meta(row, "video_codec")
    || "" },
  { key: "agent", label: "Machine", width: 110, text: (row) => machine(row.agent) },
  { key: "path", label: "Folder", width: 300, node: (row) => name(folderOf(row)) },
  { key: "audio_codec", label: "Audio", width: 88,
    text: (row) => (meta(row, "audio_codecs") || []).join(", ") },
  { key: "bitrate", label: "Bitrate", width: 96, number: true, first: "desc",
    text: (row) => bitrate(meta(row, "bitrate")) },
  { key: "state", label: "State", width: 92, node: (row) => stateMark(row.state) },
  { key: "container", label: "Container", width: 104,
    text: (row) => shortContainer(meta(row, "container")), off: true },
  { key: "ext", label: "Ext.", width: 70, text: (row) => row.ext, off: true },
  { key: "hashes", label: "Hashed", width: 82, unsorted: true, text: hashWord, off: true },
  { key: "reason", label: "Reason", width: 130, text: (row) => row.reason || "", off: true },
  { key: "first_seen", label: "First seen", width: 112, number: true, first: "desc",
    text: (row) => day(row.first_seen), off: true },
  { key: "changed", label: "Changed", width: 112, number: true, first: "desc",
    text: (row) => ago(row.changed), off: true },
  { key: "ctime", label: "Status change", width: 190, number: true, unsorted: true,
    text: (row) => moment(row.ctime), off: true },
  { key: "id", label: "Id", width: 84, number: true, unsorted: true, text: (row) => count(row.id),
    off: true },
];

const STORE = "medialib.columns";

export function chosenColumns() {
  let stored = null;
  try { stored = JSON.parse(localStorage.getItem(STORE)); } catch { /* no storage: the usual columns */ }
  const chosen = Array.isArray(stored) ? COLUMNS.filter((c) => c.fixed || stored.includes(c.key)) : null;
  return chosen || COLUMNS.filter((column) => !column.off);
}

export function chooseColumns(keys) {
  try { localStorage.setItem(STORE, JSON.stringify(keys)); } catch { /* kept for this page only */ }
}
