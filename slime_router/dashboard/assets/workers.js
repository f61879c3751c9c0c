// The table of workers.

import { count, h, notice, percent } from "./dom.js";

const LABEL = "worker_addr";
const SHOWN = {
  "sglang:cache_hit_rate": "hitRate",
  "sglang:token_usage": "usage",
};

/** What SGLang says of itself, by worker: `{hitRate, usage}`, ratios in [0, 1]. */
export function engineFigures(text) {
  const found = new Map();
  for (const line of text.split("\n")) {
    const parts = /^([\w:]+)\{(.*)\} (\S+)/.exec(line);
    if (parts === null || !SHOWN[parts[1]]) continue;
    const worker = new RegExp(`(?:^|,)${LABEL}="([^"]*)"`).exec(parts[2])?.[1];
    if (!worker) continue;
    found.set(worker, { ...found.get(worker), [SHOWN[parts[1]]]: Number(parts[3]) });
  }
  return found;
}

export function workerTable(workers, engines) {
  if (!workers.length) {
    return notice("No worker is registered", "POST /add_worker?url=http://HOST:PORT registers one.");
  }
  const busiest = Math.max(1, ...workers.map((worker) => worker.load));
  const heads = ["", "Worker", "State", "Load", "Version", "Cache", "Used", "Context", "Tokens"];
  return h(
    "div",
    { class: "scroll-x" },
    h(
      "table",
      { class: "workers" },
      h("thead", {}, h("tr", {}, heads.map((head) => h("th", { scope: "col" }, head || h("span", { class: "sr" }, "Health"))))),
      h("tbody", {}, workers.map((worker) => row(worker, engines.get(worker.url) ?? {}, busiest))),
    ),
  );
}

function row(worker, engine, busiest) {
  const health = worker.is_healthy ? "good" : "bad";
  const load = h("svg:svg", { class: "meter", viewBox: "0 0 100 6", preserveAspectRatio: "none", "aria-hidden": "true" },
    h("svg:rect", { class: "track", width: 100, height: 6 }),
    h("svg:rect", { class: "bar", width: (100 * worker.load) / busiest, height: 6 }));
  const state = worker.circuit_breaker && worker.circuit_breaker !== "closed"
    ? `${worker.status}, breaker ${worker.circuit_breaker}` : worker.status;
  return h(
    "tr",
    {},
    h("td", {}, h("span", { class: `dot ${health}`, role: "img", "aria-label": worker.is_healthy ? "healthy" : "not healthy" })),
    h("td", { class: "mono" }, worker.url, worker.worker_type === "regular" ? null : h("span", { class: "tag" }, worker.worker_type)),
    h("td", { title: worker.reason ?? "" }, state, worker.reason ? h("span", { class: "dim" }, ` ${worker.reason}`) : null),
    h("td", { class: "load" }, h("span", { class: "num" }, count(worker.load), worker.queued ? ` +${count(worker.queued)}` : ""), load),
    h("td", { class: "mono" }, worker.weight_version ?? "–"),
    h("td", { class: "num" }, percent(engine.hitRate ?? NaN)),
    h("td", { class: "num" }, percent(engine.usage ?? NaN)),
    h("td", { class: "num" }, count(worker.context_len)),
    h("td", {}, { true: "exact", false: "differ" }[String(worker.is_token_exact)] ?? "not checked"),
  );
}
