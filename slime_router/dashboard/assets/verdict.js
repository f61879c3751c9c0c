// The drift doctor's verdict: do the held tokens agree with what a router that forwards text would send?

import { post } from "./api.js";
import { count, fill, h } from "./dom.js";

const BY_ITSELF = 20000; // tokens; for more, somebody has to ask

/** Of one turn: its tokens beside its own text. Of two: the tokens of the first beside the other's text. */
export function verdict(element, stores, jump, signal) {
  const [held, other] = [stores[0], stores[1] ?? stores[0]];
  const ask = async () => {
    fill(element, h("p", { class: "dim" }, "The drift doctor compares …"));
    try {
      const found = await post("diagnose", { tokens: held.ids, text: other.text() }, { signal });
      fill(element, shown(found, stores.length > 1, jump));
    } catch (error) {
      if (error.name === "AbortError") return;
      fill(element, h("p", { class: "bad", role: "alert" }, `The drift doctor: ${error.message}`));
    }
  };
  if (!held.length) return;
  if (held.length + other.length <= 2 * BY_ITSELF) ask();
  else fill(element, h("p", { class: "dim" }, "These are many tokens. ", h("button", { type: "button", onclick: ask }, "Ask the drift doctor")));
}

function shown(found, isPair, jump) {
  const rendered = isPair ? "the other's text, encoded" : "its own text, encoded";
  if (found.is_same) {
    return h("p", {}, h("b", { class: "good" }, "No drift. "), `All ${count(found.held_tokens)} tokens agree with ${rendered}.`);
  }
  const at = found.first_difference;
  const side = (glimpse) => (glimpse === null ? "has ended" : `${glimpse.id} ${JSON.stringify(glimpse.token)}`);
  const more = found.differences.length;
  return [
    h("p", {}, h("b", { class: "warn" }, found.class.replaceAll("_", " ")),
      ` at token ${count(at.index)}, beside ${rendered}. `,
      h("button", { type: "button", class: "quiet", onclick: () => jump(at.index) }, "Show it")),
    h("p", { class: "dim" }, found.explanation),
    h("p", { class: "mono" }, `held ${side(at.held)} · text ${side(at.rendered)}`,
      more ? h("span", { class: "dim" }, ` · ${found.has_more_differences ? "more than " : ""}${more} more`) : null),
  ];
}
