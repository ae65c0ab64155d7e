// Copying text, also over plain http on the LAN, where browsers give pages no clipboard object.

import { button, el } from "./dom.js";
import { toast } from "./toast.js";

const BYTES = /[\uEF80-\uEFFF]/;

// A name with undecodable bytes is no text; the shell's own quoting says it exactly.
function shellQuoted(path) {
  let quoted = "";
  for (const char of path) {
    const code = char.codePointAt(0);
    if (code >= 0xef80 && code <= 0xefff) quoted += `\\x${(code - 0xef00).toString(16)}`;
    else if (char === "'" || char === "\\") quoted += `\\${char}`;
    else quoted += char === "\n" ? "\\n" : char;
  }
  return `$'${quoted}'`;
}

function copyOldWay(text) {
  const area = el("textarea", { class: "hidden", "aria-hidden": "true" });
  area.value = text;
  const dialog = document.querySelector("dialog[open]") || document.body;
  const before = document.activeElement;
  dialog.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  if (before) before.focus();
  return done;
}

export async function copyText(text, what = "Copied") {
  let done = false;
  try {
    await navigator.clipboard.writeText(text);
    done = true;
  } catch { done = copyOldWay(text); }
  toast(done ? what : "The browser did not allow copying", done ? "good" : "bad");
}

export function copyPath(path) {
  if (BYTES.test(path)) return copyText(shellQuoted(path),
    "Path copied, quoted for the shell: its name is not valid UTF-8");
  return copyText(path, "Path copied");
}

export function copyButton(text, label = "Copy") {
  return button(label, () => copyText(text), { class: "small" });
}
