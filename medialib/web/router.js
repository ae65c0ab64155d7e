// Where we are lives behind the '#': "#library?kind=video&sort=size". Back and copied links just work.

const listeners = new Set();

export function here() {
  const text = location.hash.slice(1);
  const cut = text.indexOf("?");
  const view = cut < 0 ? text : text.slice(0, cut);
  return { view: view || "overview", params: new URLSearchParams(cut < 0 ? "" : text.slice(cut + 1)) };
}

export function href(view, params) {
  const query = params instanceof URLSearchParams ? params : new URLSearchParams();
  if (query !== params) {
    for (const [key, value] of Object.entries(params || {})) {
      for (const one of [value].flat()) {
        if (one !== null && one !== undefined && one !== "") query.append(key, one);
      }
    }
  }
  const text = query.toString();
  return `#${view}${text ? `?${text}` : ""}`;
}

function tell() {
  const place = here();
  for (const listener of [...listeners]) listener(place);
}

export function go(view, params, replace = false) {
  const target = href(view, params);
  if (target === (location.hash || "#overview")) return;
  history[replace ? "replaceState" : "pushState"](null, "", target);
  tell();
}

export function onPlace(listener) {
  listeners.add(listener);
}

addEventListener("hashchange", tell);
