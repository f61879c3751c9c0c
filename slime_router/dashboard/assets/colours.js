// What the colour of a token stands for. The colours themselves are in tokens.css.

import { h } from "./dom.js";

export const MODES = [
  ["source", "Source"],
  ["mask", "Mask"],
  ["logprob", "Logprob"],
  ["version", "Version"],
];
const SOURCE_CLASSES = ["s-template", "s-message", "s-sampled"];
const SAMPLED = 2;
const STEPS = [0.05, 0.25, 0.7, 1.5, 3, 5]; // of -logprob
const VERSIONS = 8;

export function classOf(mode, store, index) {
  const isSampled = store.sources[index] === SAMPLED;
  if (mode === "source") return SOURCE_CLASSES[store.sources[index]];
  if (mode === "mask") return store.mask[index] ? "m-trained" : isSampled ? "m-left" : "m-plain";
  if (!isSampled) return "m-plain";
  if (mode === "logprob") return `lp-${heat(store.logprobs[index])}`;
  return store.versionOf[index] < 0 ? "v-missing" : `v-${store.versionOf[index] % VERSIONS}`;
}

function heat(logprob) {
  if (logprob === null || logprob === undefined) return "missing";
  const step = STEPS.findIndex((edge) => -logprob < edge);
  return step < 0 ? STEPS.length : step;
}

/** What the colours of a mode mean, as a row of samples. */
export function legend(mode, store) {
  const samples = {
    source: () => [["s-template", "template"], ["s-message", "message"], ["s-sampled", "sampled"]],
    mask: () => [["m-trained", "trained"], ["m-left", "sampled, not trained"], ["m-plain", "not sampled"]],
    logprob: () => [
      ...STEPS.map((edge, step) => [`lp-${step}`, `> −${edge}`]),
      [`lp-${STEPS.length}`, "less"],
      ["lp-missing", "missing"],
    ],
    version: () => [
      ...store.versions.map((version, index) => [`v-${index % VERSIONS}`, String(version)]),
      ["v-missing", "none reported"],
    ],
  }[mode]();
  return h("ul", { class: "legend", "aria-label": "Colours" },
    samples.map(([name, text]) => h("li", {}, h("span", { class: `t ${name}`, "aria-hidden": "true" }, "ab"), text)));
}
