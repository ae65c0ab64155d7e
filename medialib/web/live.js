// Server-sent events: progress, counts, agents. A lost connection is told, and mended by itself.

const SILENCE_MS = 30000;
const RETRY_MS = 3000;

const listeners = { counts: new Set(), progress: new Set(), agents: new Set(), state: new Set(),
  again: new Set() };
let source = null;
let state = "connecting";
let heard = 0;
let pings = false;
let everOpen = false;

export function onLive(type, listener) {
  listeners[type].add(listener);
  return () => listeners[type].delete(listener);
}

export const liveState = () => state;

function emit(type, data) {
  for (const listener of [...listeners[type]]) listener(data);
}

function setState(next) {
  if (next === state) return;
  state = next;
  emit("state", next);
}

function opened() {
  heard = Date.now();
  setState("online");
  if (everOpen) emit("again");
  everOpen = true;
}

function parse(event) {
  heard = Date.now();
  try { return JSON.parse(event.data); } catch { return {}; }
}

function connect() {
  if (source) source.close();
  const mine = new EventSource("/events");
  source = mine;
  mine.addEventListener("open", opened);
  mine.addEventListener("ping", (event) => { pings = true; parse(event); });
  mine.addEventListener("counts", (event) => emit("counts", parse(event)));
  mine.addEventListener("agents", (event) => emit("agents", parse(event)));
  mine.addEventListener("progress", (event) => emit("progress", parse(event)));
  mine.addEventListener("error", () => {
    setState("lost");
    if (mine.readyState === EventSource.CLOSED && source === mine) setTimeout(connect, RETRY_MS);
  });
}

// A connection that hangs without an error (a sleeping laptop, a pulled cable) is seen by its silence.
function watch() {
  if (pings && state === "online" && Date.now() - heard > SILENCE_MS) {
    setState("lost");
    connect();
  }
}

export function startLive() {
  connect();
  setInterval(watch, 5000);
}
