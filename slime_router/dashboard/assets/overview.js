// The overview: what the router does now. Rates are differences of two looks at its counters.

import { Refused, get, getText } from "./api.js";
import { count, fill, h, many, notice, percent, seconds } from "./dom.js";
import { LATENCIES, Window, readHistograms } from "./histograms.js";
import { Series, sparkline } from "./sparkline.js";
import { FAILURES, RATES, rates } from "./rates.js";
import { engineFigures, workerTable } from "./workers.js";

const EVERY_MS = 2000;
const ENGINES_EVERY = 5; // looks; where no worker has figures of its own, six times as many
const MAX_ERRORS = 50;

/** Shows the overview in `main`; `stop` ends its looks. */
export function overview(main, { pulse, askForKey }) {
  const state = { last: null, looks: 0, errors: [], refused: [], window: new Window(), enginesAt: 0, series: new Map(), engines: new Map() };
  const tiles = h("section", { class: "tiles", "aria-label": "Rates" });
  const workers = h("section", { class: "panel", "aria-label": "Workers" });
  const prompts = h("section", { class: "panel", "aria-label": "Prompts" });
  const memory = h("section", { class: "panel", "aria-label": "Memory" });
  const errors = h("section", { class: "panel", "aria-label": "Recent errors" });
  const parts = { tiles, workers, prompts, memory, errors };
  fill(main, h("h1", { class: "sr" }, "Overview"), notice("Loading", "The first look at the router."));
  const stopper = new AbortController();
  let timer = null;

  async function look() {
    try {
      const figures = await get("metrics?format=json", { signal: stopper.signal });
      const fleet = await get("workers", { signal: stopper.signal }).catch((error) => {
        if (error instanceof Refused && error.status) return error;
        throw error;
      });
      state.window.push(readHistograms(await getText("metrics/prometheus", { signal: stopper.signal })));
      state.refused = await failedRequests(stopper.signal);
      if (state.looks >= state.enginesAt) await lookAtEngines();
      if (!tiles.isConnected) {
        const pair = h("div", { class: "columns" }, h("div", {}, workers, errors), h("div", {}, prompts, memory));
        fill(main, h("h1", { class: "sr" }, "Overview"), tiles, pair);
      }
      draw(parts, state, figures, fleet);
      state.looks += 1;
      pulse(`live · ${new Date().toLocaleTimeString()}`, "good");
    } catch (error) {
      if (error.name === "AbortError") return;
      failed(error);
      if (error.needsKey) return;
    }
    timer = setTimeout(look, document.hidden ? 5 * EVERY_MS : EVERY_MS);
  }

  async function lookAtEngines() {
    try {
      state.engines = engineFigures(await getText("engine_metrics", { signal: stopper.signal }));
      state.enginesAt = state.looks + ENGINES_EVERY;
    } catch (error) {
      if (error.name === "AbortError") throw error;
      state.engines = new Map(); // workers without --enable-metrics have none
      state.enginesAt = state.looks + 6 * ENGINES_EVERY;
    }
  }

  function failed(error) {
    if (error.needsKey) {
      pulse("key needed", "bad");
      const action = h("button", { type: "button", class: "primary", onclick: askForKey }, "Enter the key");
      fill(main, notice("An API key is needed", error.message, { kind: "locked", action }));
    } else {
      pulse(error.message, "bad");
      if (!tiles.isConnected) {
        fill(main, notice("No figures yet", `${error.message} The page asks again.`, { kind: "error" }));
      }
    }
  }

  look();
  return {
    stop() {
      stopper.abort();
      clearTimeout(timer);
    },
  };
}

/** The requests that failed last; none for a router that has no such route. */
async function failedRequests(signal) {
  try {
    return (await get("recent_errors", { signal })).errors;
  } catch (error) {
    if (error.status) return [];
    throw error;
  }
}

function draw(parts, state, figures, fleet) {
  const now = { at: performance.now() / 1000, figures };
  const since = state.last === null ? null : rates(state.last, now);
  state.last = now;
  note(state, since);
  fill(parts.tiles, RATES.map((rate) => tile(state, rate, since, figures)), LATENCIES.map((each) => latency(state, each)));
  if (fleet instanceof Refused) {
    fill(parts.workers, h("h2", {}, "Workers"), notice("Not for this key", fleet.message, { kind: "locked" }));
  } else {
    fill(parts.workers, h("h2", {}, `Workers (${fleet.total})`), workerTable(fleet.workers, state.engines));
  }
  fill(parts.prompts, h("h2", {}, "Prompts"), promptTable(figures));
  fill(parts.memory, h("h2", {}, "Memory"), gauges(figures));
  fill(parts.errors, h("h2", {}, "Recent errors"), errorList(state));
}

function tile(state, rate, since, figures) {
  const value = rate.read(since, figures);
  const series = state.series.get(rate.name) ?? new Series();
  state.series.set(rate.name, series);
  if (since !== null || rate.isLevel) series.push(value);
  const show = { percent, seconds }[rate.unit] ?? count;
  return h(
    "article",
    { class: "tile", "data-rate": rate.name, title: rate.help },
    h("h3", {}, rate.title),
    h("p", { class: "figure" }, show(value), rate.unit === "per second" ? h("small", {}, "/s") : null),
    sparkline(series, `${rate.title}, the last minutes`),
  );
}

/** The median of the last minute, with the 95th percentile beside it. */
function latency(state, { name, title, help }) {
  const median = state.window.quantile(name, 0.5);
  const series = state.series.get(name) ?? new Series();
  state.series.set(name, series);
  series.push(median);
  const high = state.window.quantile(name, 0.95);
  return h(
    "article",
    { class: "tile", "data-rate": name, title: `${help}: the median and the 95th percentile of the last minute` },
    h("h3", {}, title),
    h("p", { class: "figure" }, seconds(median), Number.isNaN(high) ? null : h("small", {}, `p95 ${seconds(high)}`)),
    sparkline(series, `${title}, the last minutes`),
  );
}

/** What failed since the last look goes on top of the list. */
function note(state, since) {
  if (since === null) return;
  for (const { name, title } of FAILURES) {
    const more = since.more(name);
    if (more > 0) state.errors.unshift({ at: new Date(), title, more });
  }
  state.errors.length = Math.min(state.errors.length, MAX_ERRORS);
}

function errorList(state) {
  const requests = state.refused.map((error) => ({ at: new Date(error.at * 1000), element: refusedRequest(error) }));
  const counted = state.errors.map(({ at, title, more }) => ({
    at,
    element: [h("span", {}, title), h("b", {}, `+${count(more)}`)],
  }));
  const all = [...requests, ...counted].sort((a, b) => b.at - a.at).slice(0, MAX_ERRORS);
  if (!all.length) return notice("Nothing failed", "Requests that fail appear here, and what else goes wrong while this page is open.");
  return h("ol", { class: "errors" }, all.map(({ at, element }) =>
    h("li", {}, h("time", { datetime: at.toISOString() }, at.toLocaleTimeString()), element)));
}

/** Which request it was, and which error. */
function refusedRequest(error) {
  const reason = error.reason ?? (error.param ? `param ${error.param}` : "");
  return [
    h("span", { class: "what", title: error.cause ?? reason },
      h("span", { class: "mono" }, `${error.method} ${error.path}`), ` ${error.error} `,
      h("span", { class: "dim" }, `${reason} · ${error.request ?? ""}`)),
    h("b", {}, error.status),
  ];
}

function promptTable(figures) {
  const rows = [
    ["extended", "begins with all held tokens of a turn"],
    ["branched", "departs from a known conversation"],
    ["fresh", "continues nothing that is known"],
  ].map(([status, help]) => {
    const of = (door) => figures[door]?.[status] ?? 0;
    return { status, help, value: of("chat_completion") + of("generate") };
  });
  const total = rows.reduce((sum, row) => sum + row.value, 0);
  return h(
    "table",
    {},
    h("tbody", {}, rows.map((row) =>
      h("tr", {}, h("th", { scope: "row", title: row.help }, row.status), h("td", { class: "num" }, count(row.value)),
        h("td", {}, meter(total ? row.value / total : 0, `${row.status} prompts`)),
        h("td", { class: "num dim" }, total ? percent(row.value / total) : "–")),
    )),
  );
}

function gauges(figures) {
  const { cache, trajectories, journal } = figures;
  const rows = [
    ["Tree", cache.cur_cache_size, cache.max_cache_size],
    ["Turns", trajectories.tokens, trajectories.max_tokens],
    ["Pinned", trajectories.pinned_tokens, trajectories.max_tokens],
  ];
  return [
    h("table", {}, h("tbody", {}, rows.map(([name, value, most]) =>
      h("tr", {}, h("th", { scope: "row" }, name), h("td", { class: "num" }, `${count(value)} tokens`),
        h("td", {}, meter(most ? value / most : 0, `${name} of what it may hold`)),
        h("td", { class: "num dim" }, `of ${count(most)}`)),
    ))),
    h("p", { class: "dim" },
      `${many(trajectories.turns, "turn")} in ${many(trajectories.sessions, "session")}`,
      trajectories.dropped_turns ? `, ${count(trajectories.dropped_turns)} dropped` : "",
      journal?.degraded ? " · the journal cannot be written" : "",
      figures.weights?.current ? ` · weights ${figures.weights.current}` : "",
    ),
  ];
}

function meter(ratio, label) {
  const bar = h("svg:svg", { class: "meter", viewBox: "0 0 100 6", preserveAspectRatio: "none", role: "img",
    "aria-label": `${label}: ${percent(ratio)}` });
  bar.append(h("svg:rect", { class: "track", width: 100, height: 6 }));
  bar.append(h("svg:rect", { class: "bar", width: (100 * Math.min(ratio, 1)).toFixed(1), height: 6 }));
  return bar;
}
