// Calls of the host: JSON bodies both ways. A failure is an ApiError with the host's own words.

class ApiError extends Error {
  constructor(status, answer) {
    super(answer.error || `the host answered ${status}`);
    this.status = status;
    this.detail = answer.detail || "";
    this.answer = answer;
  }
}

async function read(response) {
  let answer = {};
  try { answer = await response.json(); } catch (error) { if (error.name === "AbortError") throw error; }
  if (!response.ok || answer.ok === false) throw new ApiError(response.status, answer);
  return answer;
}

async function send(path, body, signal) {
  try {
    return await fetch(path, {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body || {}),
        signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, { error: "The host cannot be reached" });
  }
}

export async function call(name, body, signal) {
  return read(await send(`/api/${name}`, body, signal));
}

// The answer as a file that the browser keeps on disk, not in this page's memory.
export async function download(name, body, filename) {
  const response = await send(`/api/${name}`, body);
  if (!response.ok) await read(response);
  const url = URL.createObjectURL(await response.blob());
  const link = document.createElement("a");
  link.href = url;
  link.download = filename;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
}

export function isAbort(error) {
  return error.name === "AbortError";
}

// Only the newest of overlapping requests counts: starting one ends the one before.
export class Latest {
  constructor() { this.controller = null; }

  next() {
    this.stop();
    this.controller = new AbortController();
    return this.controller.signal;
  }

  stop() {
    if (this.controller) this.controller.abort();
    this.controller = null;
  }
}
