// Modal dialogs on the browser's own <dialog>: focus is kept inside and given back, Esc closes.

import { add, button, el, freshId } from "./dom.js";
import { toastError } from "./toast.js";

// `actions`: [{label, kind, run}]; run may return false to stay open. Resolves when it is closed.
export function openDialog(title, body, actions = [], wide = false) {
  const id = freshId("dialog");
  const dialog = el("dialog", { class: wide ? "wide" : null, "aria-labelledby": id });
  const close = () => dialog.close();
  const buttons = actions.map(({ label, kind, run }) => button(label, async (event) => {
    const pressed = event.currentTarget;
    pressed.disabled = true;
    try { if ((await run()) !== false) close(); } catch (error) { toastError(error); }
    pressed.disabled = false;
  }, { class: kind }));
  add(dialog, [
    el("header", null, el("h2", { id }, title), button("\u00D7", close,
      { class: "quiet", "aria-label": "Close" })),
    el("div", { class: "dialog-body" }, body),
    el("footer", null, button(actions.length ? "Cancel" : "Close", close, { autofocus: true }), buttons),
  ]);
  dialog.addEventListener("click", (event) => { if (event.target === dialog) close(); });
  document.body.append(dialog);
  dialog.showModal();
  return { dialog, close, closed: new Promise((done) =>
    dialog.addEventListener("close", () => { dialog.remove(); done(); })) };
}

export const dialogIsOpen = () => Boolean(document.querySelector("dialog[open]"));
