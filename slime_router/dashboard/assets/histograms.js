// Latencies: quantiles of the last minute, from the histograms of /metrics/prometheus.

const PREFIX = "slime_router_";
const WINDOW = 30; // looks

export const LATENCIES = [
  { name: "first_token_seconds", title: "First token", help: "from the request to the first token" },
  { name: "generation_seconds", title: "Generation", help: "from the request to the last token" },
  { name: "token_gap_seconds", title: "Between tokens", help: "from one token to the next" },
];

/** The buckets of each latency: how many took at most so many seconds, over all labels. */
export function readHistograms(text) {
  const found = new Map(LATENCIES.map(({ name }) => [name, new Map()]));
  for (const line of text.split("\n")) {
    const parts = /^(\w+)_bucket\{(.*)\} (\S+)/.exec(line);
    const buckets = parts && parts[1].startsWith(PREFIX) && found.get(parts[1].slice(PREFIX.length));
    const bound = buckets && /(?:^|,)le="([^"]*)"/.exec(parts[2])?.[1];
    if (!bound) continue;
    const seconds = bound === "+Inf" ? Infinity : Number(bound);
    buckets.set(seconds, (buckets.get(seconds) ?? 0) + Number(parts[3]));
  }
  return found;
}

/** The last looks, and what happened between the oldest of them and the newest. */
export class Window {
  constructor() {
    this.looks = [];
  }

  push(histograms) {
    this.looks.push(histograms);
    if (this.looks.length > WINDOW) this.looks.shift();
  }

  /** The value that a part `q` of what happened did not exceed; NaN where nothing happened. */
  quantile(name, q) {
    const now = this.looks.at(-1)?.get(name);
    const then = this.looks[0]?.get(name);
    if (!now?.size) return NaN;
    const bounds = [...now.keys()].sort((a, b) => a - b);
    const more = bounds.map((bound) => Math.max(now.get(bound) - (then.get(bound) ?? 0), 0));
    const total = more.at(-1);
    if (!total) return NaN;
    const rank = q * total;
    const index = more.findIndex((each) => each >= rank);
    const low = index ? bounds[index - 1] : 0;
    if (bounds[index] === Infinity) return low; // longer than the last bound: nobody knows how long
    const before = index ? more[index - 1] : 0;
    return low + ((bounds[index] - low) * (rank - before)) / Math.max(more[index] - before, 1);
  }
}
