// Elements made by hand: text is always text, names from disk always marked where they are not plain.

const SVG = "http://www.w3.org/2000/svg";

// What must be seen in a name: undecodable bytes (U+EF80..U+EFFF stand for 0x80..0xFF), control
// characters, and invisible or direction-changing characters that make one name look like another.
const ODD = /[\uEF80-\uEFFF\u0000-\u001F\u007F-\u009F\u200B-\u200F\u2028-\u202E\u2060-\u2069\uFEFF]/;

function fill(node, attrs, children) {
  for (const [key, value] of Object.entries(attrs || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key === "on") for (const [type, fn] of Object.entries(value)) node.addEventListener(type, fn);
    else if (key === "style") for (const [name, v] of Object.entries(value)) node.style.setProperty(name, v);
    else if (key === "value" || key === "checked" || key === "disabled"
      || key === "selected") node[key] = value;
    else node.setAttribute(key, value === true ? "" : value);
  }
  add(node, children);
  return node;
}

export function add(node, children) {
  for (const child of [children].flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    node.append(child instanceof Node ? child : String(child));
  }
  return node;
}

export function el(tag, attrs, ...children) {
  return fill(document.createElement(tag), attrs, children);
}

export function svg(tag, attrs, ...children) {
  return fill(document.createElementNS(SVG, tag), attrs, children);
}

export function put(node, ...children) {
  node.replaceChildren();
  return add(node, children);
}

function mark(char) {
  const code = char.codePointAt(0);
  const hex = code.toString(16).toUpperCase();
  if (code >= 0xef80 && code <= 0xefff) {
    const byte = (code - 0xef00).toString(16).toUpperCase();
    return el("span", { class: "byte", title: `byte 0x${byte}, which is not valid UTF-8` }, `\\x${byte}`);
  }
  const shown = code < 32 ? String.fromCodePoint(0x2400 + code) : `U+${hex.padStart(4, "0")}`;
  return el("span", { class: "byte", title: `invisible character U+${hex.padStart(4, "0")}` }, shown);
}

// The name as nodes; a plain name (nearly all) is one text node.
function nameNodes(text) {
  if (!ODD.test(text)) return [document.createTextNode(text)];
  const nodes = [];
  let plain = "";
  for (const char of text) {
    if (!ODD.test(char)) { plain += char; continue; }
    if (plain) nodes.push(document.createTextNode(plain));
    plain = "";
    nodes.push(mark(char));
  }
  if (plain) nodes.push(document.createTextNode(plain));
  return nodes;
}

export function name(text, attrs) {
  return el("bdi", { class: "name", ...attrs }, nameNodes(text));
}

// A path may be broken behind its separators, before it is broken within a name.
export function pathName(text, attrs) {
  return el("bdi", { class: "name", ...attrs }, text.match(/[^/\\]*[/\\]?/g).map((part) =>
    [nameNodes(part), el("wbr")]));
}

// The same as a string, for titles and labels where no element can stand.
export function plainName(text) {
  return ODD.test(text) ? nameNodes(text).map((node) => node.textContent).join("") : text;
}

// Drawing anew must not take the keyboard's place away: the same link gets the focus back.
export function keepingFocus(root, draw) {
  const held = root.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
  draw();
  if (!held || root.contains(document.activeElement)) return;
  const again = [...root.querySelectorAll("a")].find((link) => link.getAttribute("href") === held);
  if (again) again.focus({ preventScroll: true });
}

let ids = 0;
export function freshId(prefix) {
  ids += 1;
  return `${prefix}-${ids}`;
}

export function button(label, onclick, attrs) {
  return el("button", { type: "button", on: { click: onclick }, ...attrs }, label);
}

// A button must not be pressed twice while its work runs.
export function busyButton(label, work, attrs) {
  const node = button(label, async () => {
    node.disabled = true;
    try { await work(); } finally { node.disabled = false; }
  }, attrs);
  return node;
}
