// Short messages at the edge of the page, read out by screen readers.

import { el } from "./dom.js";

export function toast(text, kind = "info") {
  const node = el("div", { class: `toast ${kind}` }, text);
  const toasts = document.getElementById("toasts");
  for (const other of toasts.querySelectorAll(".toast")) if (other.textContent === text) other.remove();
  toasts.append(node);
  setTimeout(() => node.remove(), kind === "bad" ? 9000 : 4000);
}

export function toastError(error) {
  if (error.name === "AbortError") return;
  toast(error.detail ? `${error.message}: ${error.detail}` : error.message, "bad");
}

// Wraps an action of a button: what fails is told, never thrown away.
export function told(work) {
  return async (...args) => {
    try { return await work(...args); } catch (error) { toastError(error); return undefined; }
  };
}
