// What the trainer gets: the rows of a session, and what was left out, with the reason.

import { count, h, many, notice } from "./dom.js";
import { shortId, walk } from "./tree.js";

const REASONS = {
  empty: "turns without a token",
  undelivered: "the client left before the end of the reply",
  retry: "the same prompt was sent again",
  over_length: "the turn ends after the longest row",
  realigned: "tokens given up at the end of an answer",
  missing_logprobs: "tokens without a log-probability",
};

export function rowList(tree, session, chosen) {
  const { stats, rows } = tree;
  const list = h("ul", { class: "tree", "aria-label": "Rows" }, rows.map((row, number) =>
    h("li", {}, h(
      "a",
      {
        href: `#/sessions/${encodeURIComponent(session)}/row/${encodeURIComponent(row.row_id)}`,
        class: "turn",
        "data-row": row.row_id,
        "aria-current": row.row_id === chosen ? "true" : null,
        title: row.row_id,
      },
      h("span", { class: "cause c-row" }, `row ${number + 1}`),
      h("span", { class: "mono" }, shortId(row.row_id)),
      h("span", { class: "sizes num", title: "trained tokens of all" }, `${count(row.trained_tokens)} of ${count(row.tokens)}`),
    ))));
  list.addEventListener("keydown", walk);
  return [
    h("h2", {}, `Rows (${rows.length})`),
    rows.length ? list : notice("No rows", "No token of this session is trained."),
    h("p", { class: "dim sum" },
      `${count(stats.sampled_tokens)} sampled = ${count(stats.trained_tokens)} trained`,
      Object.entries(stats.left_out).map(([reason, left]) => ` + ${count(left.tokens)} ${reason}`)),
    Object.keys(stats.left_out).length
      ? h("table", { class: "left-out", "aria-label": "Left out" }, h("tbody", {}, Object.entries(stats.left_out).map(([reason, left]) =>
        h("tr", {},
          h("th", { scope: "row" }, h("b", {}, reason), h("br"), REASONS[reason] ?? ""),
          h("td", { class: "num" }, many(left.turns, "turn"), h("br"), many(left.tokens, "token"))))))
      : h("p", { class: "dim" }, "Nothing is left out."),
  ];
}
