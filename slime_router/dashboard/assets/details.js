// All that is known of one token, in a strip below the tokens.

import { SOURCES } from "./tokenstore.js";
import { fill, h } from "./dom.js";
import { shortId } from "./tree.js";

const LEFT_OUT = {
  retry: "its turn was retried",
  undelivered: "its client left",
  over_length: "its turn is too long",
  empty: "its turn is empty",
};

export function details(element, store, index, tree) {
  if (index < 0 || index >= store.length) {
    fill(element, h("span", { class: "dim" },
      "Point at a token, or move with the arrow keys; n and p go to the next and previous reply, d to the first difference."));
    return;
  }
  const logprob = store.logprobs[index];
  const source = SOURCES[store.sources[index]];
  const turn = store.turns[store.turnOf[index]];
  const fields = [
    ["token", index],
    ["id", store.ids[index]],
    ["text", JSON.stringify(store.pieces[index])],
    ["bytes", store.hexOf(index) || "none"],
    ["source", source],
    ["logprob", logprob === null ? "–" : `${logprob.toFixed(4)} (${(100 * Math.exp(logprob)).toFixed(1)}%)`],
    ["version", store.versionOf[index] < 0 ? "–" : store.versions[store.versionOf[index]]],
    ["turn", shortId(turn)],
    ["mask", `${store.mask[index]} ${why(store, index, tree)}`],
  ];
  fill(element, h("dl", {}, fields.map(([name, value]) =>
    h("div", { "data-field": name }, h("dt", {}, name), h("dd", { title: name === "turn" ? turn : null }, value)))));
}

/** Why a token is trained, or is not. */
function why(store, index, tree) {
  if (store.sources[index] !== 2) return "(not sampled)";
  const turn = store.turns[store.turnOf[index]];
  if (store.kind === "turn") {
    const reason = tree.turns.find((each) => each.turn_id === turn)?.left_out;
    return reason ? `(sampled; left out: ${LEFT_OUT[reason] ?? reason})` : "(sampled)";
  }
  if (store.mask[index]) return "(trained)";
  const spans = tree.rows.find((row) => row.row_id === store.id)?.spans ?? [];
  const span = spans.find((each) => index >= each.start && index < each.end);
  if (span === undefined) return "(context: no turn of this row sampled it)";
  return span.is_trained ? "(has no log-probability)" : "(trained in an earlier row)";
}
