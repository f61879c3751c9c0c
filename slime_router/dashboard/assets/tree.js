// The turns of a session as a tree. A turn that continues another stays in its column; a fork moves right.

import { count, h } from "./dom.js";

const INDENT_PX = 14;
const MAX_INDENT = 12;
const DEPARTS = ["fork", "drift", "realigned", "branch"];
const WHY = {
  start: "a new conversation",
  branch: "departs inside an older prompt",
  extension: "begins with all of the turn before",
  fork: "another way on from the same turn",
  drift: "departs inside an answer: its tokens came back otherwise",
  realigned: "departs near the end of an answer, and continues it all the same",
  sample: "another sample of one request",
  retry: "the same prompt, sent again",
  empty: "no token was sampled",
};

/** The first characters of a turn's id, without what all ids begin with. */
export function shortId(id) {
  return id ? id.replace(/^turn_/, "").slice(0, 8) : "–";
}

/** The turns in the order of the tree, each with its depth. */
export function ordered(turns) {
  const known = new Set(turns.map((turn) => turn.turn_id));
  const above = (turn) => [turn.cause === "extension" ? turn.parent : turn.of, turn.parent].find((id) => known.has(id));
  const below = new Map();
  for (const turn of turns) {
    const key = above(turn) ?? "";
    if (!below.has(key)) below.set(key, []);
    below.get(key).push(turn);
  }
  const found = [];
  const open = (below.get("") ?? []).map((turn) => ({ turn, depth: 0 })).reverse();
  while (open.length) {
    const { turn, depth } = open.pop();
    found.push({ turn, depth });
    const children = below.get(turn.turn_id) ?? [];
    const ways = (isMain) => children.filter((child) => (child.cause === "extension") === isMain).reverse();
    open.push(...ways(true).map((child) => ({ turn: child, depth })));
    open.push(...ways(false).map((child) => ({ turn: child, depth: depth + 1 })));
  }
  return found;
}

export function treeOf(tree, session, chosen) {
  const list = h("ul", { class: "tree", "aria-label": "Turns" },
    ordered(tree.turns).map(({ turn, depth }) => item(turn, depth, session, chosen)));
  list.addEventListener("keydown", walk);
  return list;
}

function item(turn, depth, session, chosen) {
  const place = `#/sessions/${encodeURIComponent(session)}/turn/${encodeURIComponent(turn.turn_id)}`;
  const link = h(
    "a",
    { href: place, class: "turn", "data-turn": turn.turn_id, "aria-current": turn.turn_id === chosen ? "true" : null, title: turn.turn_id },
    h("span", { class: `cause c-${turn.cause}`, title: WHY[turn.cause] }, turn.cause),
    h("span", { class: "mono" }, shortId(turn.turn_id)),
    h("span", { class: "sizes num", title: "prompt tokens → sampled tokens" }, `${count(turn.prompt_tokens)} → ${count(turn.output_tokens)}`),
    DEPARTS.includes(turn.cause) && turn.of
      ? h("span", { class: "from dim" }, `from ${shortId(turn.of)} at token ${count(turn.departs_at)}`)
      : null,
    turn.left_out && turn.left_out !== turn.cause
      ? h("span", { class: "tag warn" }, `not trained: ${turn.left_out}`) : null,
    turn.finish_reason === "stop" ? null : h("span", { class: "tag" }, turn.finish_reason),
  );
  const element = h("li", {}, link);
  element.style.setProperty("--indent", `${Math.min(depth, MAX_INDENT) * INDENT_PX}px`);
  return element;
}

/** Up and down in any list of links. */
export function walk(event) {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step) return;
  const links = [...event.currentTarget.querySelectorAll("a")];
  const next = links[links.indexOf(document.activeElement) + step];
  if (next) {
    event.preventDefault();
    next.focus();
  }
}
