// Elements made by hand: a text that comes from outside is never read as HTML.

/**
 * An element. `attributes`: `class`, `on…` listeners, `data-…`, anything else as an attribute;
 * null and false leave one out. Children are nodes, texts or nested lists of them.
 */
export function h(name, attributes = {}, ...children) {
  const element = name.startsWith("svg:")
    ? document.createElementNS("http://www.w3.org/2000/svg", name.slice(4))
    : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : String(value));
  }
  element.append(...nodes(children));
  return element;
}

function nodes(children) {
  return children
    .flat(Infinity)
    .filter((child) => child !== null && child !== undefined && child !== false)
    .map((child) => (child instanceof Node ? child : String(child)));
}

/** Puts these children in place of those that an element has. */
export function fill(element, ...children) {
  element.replaceChildren(...nodes(children));
}

/** What stands where there is nothing to show, or where something failed. */
export function notice(title, text, { kind = "empty", action = null } = {}) {
  return h(
    "div",
    { class: `notice ${kind}`, role: kind === "error" ? "alert" : null },
    h("strong", {}, title),
    h("p", {}, text),
    action,
  );
}

/** 12,345; 1.2M from a million on. */
export function count(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  if (size >= 1e9) return `${(value / 1e9).toFixed(1)}G`;
  if (size >= 1e6) return `${(value / 1e6).toFixed(1)}M`;
  if (size >= 100 || Number.isInteger(value)) return Math.round(value).toLocaleString("en");
  return value.toFixed(size >= 10 ? 1 : 2);
}

/** 1 turn, 2 turns. */
export function many(value, noun) {
  return `${count(value)} ${noun}${value === 1 ? "" : "s"}`;
}

export function percent(ratio) {
  return ratio === null || Number.isNaN(ratio) ? "–" : `${(100 * ratio).toFixed(1)}%`;
}

/** Seconds as people write them: 850 ms, 1.20 s. */
export function seconds(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (value >= 1) return `${value.toFixed(2)} s`;
  return value < 0.01 ? `${(value * 1000).toFixed(1)} ms` : `${Math.round(value * 1000)} ms`;
}
