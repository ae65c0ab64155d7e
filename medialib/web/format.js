// Numbers, dates and spans as people read them, and back from what they type.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
const whole = new Intl.NumberFormat("en");
const two = (n) => String(n).padStart(2, "0");

export function count(n) {
  return n === null || n === undefined ? "" : whole.format(n);
}

// A machine as it calls itself; the one that keeps the catalogue is marked.
export function machine(agent) {
  return agent.id === "local" ? `${agent.name} \u2302` : agent.name;
}

export function plural(n, one, many) {
  return `${count(n)} ${n === 1 ? one : many || `${one}s`}`;
}

export function shortCount(n) {
  if (n < 10000) return count(n);
  return n < 999500 ? `${Math.round(n / 1000)}k` : `${(n / 1e6).toFixed(n < 9.95e6 ? 2 : 1)}M`;
}

export function bytes(n) {
  if (n === null || n === undefined) return "";
  let value = Math.abs(n);
  let unit = 0;
  while (value >= 999.5 && unit < UNITS.length - 1) { value /= 1024; unit += 1; }
  const text = unit === 0 ? String(Math.round(value)) : value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0);
  return `${n < 0 ? "-" : ""}${text}\u00A0${UNITS[unit]}`;
}

export function percent(part, all) {
  if (!all) return "";
  const p = (part / all) * 100;
  return p > 0 && p < 0.1 ? "<0.1%" : `${p.toFixed(p < 9.95 ? 1 : 0)}%`;
}

// Local time, written so that it sorts and aligns. Stamps on disk may be negative or in the year 2446;
// what no calendar holds is shown as a number.
export function day(seconds) {
  if (seconds === null || seconds === undefined) return "";
  const date = new Date(seconds * 1000);
  if (Number.isNaN(date.getTime())) return `${seconds} s`;
  return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
}

export function moment(seconds) {
  const date = new Date((seconds || 0) * 1000);
  const text = day(seconds);
  return text.includes("-")
    ? `${text} ${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}` : text;
}

export function ago(seconds, now = Date.now() / 1000) {
  if (!seconds) return "never";
  const s = Math.max(0, now - seconds);
  if (s < 5) return "just now";
  if (s < 90) return `${Math.round(s)} s ago`;
  if (s < 5400) return `${Math.round(s / 60)} min ago`;
  if (s < 129600) return `${Math.round(s / 3600)} h ago`;
  if (s < 86400 * 60) return `${Math.round(s / 86400)} days ago`;
  return s < 86400 * 700 ? `${Math.round(s / 2629800)} months ago` : `${Math.round(s / 31557600)} years ago`;
}

export function clock(seconds) {
  if (seconds === null || seconds === undefined) return "";
  const s = Math.round(seconds);
  const h = Math.floor(s / 3600);
  return h ? `${h}:${two(Math.floor(s / 60) % 60)}:${two(s % 60)}` : `${Math.floor(s / 60)}:${two(s % 60)}`;
}

export function span(seconds) {
  if (seconds === null || seconds === undefined) return "";
  const s = Math.round(seconds);
  if (s < 90) return `${s} s`;
  if (s < 5400) return `${Math.round(s / 60)} min`;
  return s < 172800 ? `${Math.floor(s / 3600)} h ${Math.round((s % 3600) / 60)} min`
    : `${Math.round(s / 86400)} days`;
}

export function bitrate(bits) {
  if (!bits) return "";
  return bits >= 999500 ? `${(bits / 1e6).toFixed(bits < 9.95e6 ? 1 : 0)} Mb/s`
    : `${Math.round(bits / 1000)} kb/s`;
}

// ffprobe names a container by all its relatives; people know it by one.
export function shortContainer(name) {
  const [first, second] = (name || "").split(",");
  return first === "mov" && second === "mp4" ? "mp4/mov" : first;
}

const FACTORS = { "": 1, k: 2 ** 10, m: 2 ** 20, g: 2 ** 30, t: 2 ** 40, p: 2 ** 50 };

// "1.5 GB", "700m", "12" → bytes; null where it cannot be meant.
export function parseBytes(text) {
  const found = /^\s*([\d.]+)\s*([kmgtp]?)i?b?\s*$/i.exec(text);
  const value = found ? Number(found[1]) * FACTORS[found[2].toLowerCase()] : NaN;
  return Number.isFinite(value) ? Math.round(value) : null;
}

// "1:30:00", "90m", "2h", "45" (minutes) → seconds.
export function parseSpan(text) {
  const clockLike = /^\s*(?:(\d+):)?(\d+):(\d+)\s*$/.exec(text);
  if (clockLike) return Number(clockLike[1] || 0) * 3600 + Number(clockLike[2]) * 60 + Number(clockLike[3]);
  const found = /^\s*([\d.]+)\s*(s|m|min|h)?\s*$/i.exec(text);
  if (!found) return null;
  const factor = { s: 1, m: 60, min: 60, h: 3600 }[(found[2] || "m").toLowerCase()];
  const value = Number(found[1]) * factor;
  return Number.isFinite(value) ? Math.round(value) : null;
}

// "5 Mb", "800k", "2000000" → bits per second.
export function parseBitrate(text) {
  const found = /^\s*([\d.]+)\s*([kmg]?)(?:b(?:it)?(?:\/s|ps)?)?\s*$/i.exec(text);
  const value = found ? Number(found[1]) * { "": 1, k: 1e3, m: 1e6, g: 1e9 }[found[2].toLowerCase()] : NaN;
  return Number.isFinite(value) ? Math.round(value) : null;
}

export function parseCount(text) {
  const value = Number(text.trim());
  return text.trim() && Number.isFinite(value) ? Math.round(value) : null;
}
