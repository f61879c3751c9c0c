// Which counters of /metrics the overview shows, and how two looks at them become rates.

const DOORS = ["chat_completion", "generate"];

/** The number at `group.key`; of generations, that of both doors together. */
function read(figures, name) {
  const [group, key] = name.split(".");
  if (group === "doors") return DOORS.reduce((sum, door) => sum + (figures[door]?.[key] ?? 0), 0);
  return figures[group]?.[key] ?? 0;
}

/** What happened between two looks; a counter that fell was of a router that started again. */
export function rates(before, after) {
  const passed = Math.max(after.at - before.at, 1e-3);
  const more = (name) => Math.max(read(after.figures, name) - read(before.figures, name), 0);
  return { more, perSecond: (name) => more(name) / passed };
}

function perSecond(...names) {
  return (since) => (since === null ? NaN : names.reduce((sum, name) => sum + since.perSecond(name), 0));
}

/** A part of a whole: since the last look if there was anything, else since the start. */
function share(part, ...whole) {
  return (since, figures) => {
    const ratio = (of) => of(part) / whole.reduce((sum, name) => sum + of(name), 0);
    const lately = since === null ? NaN : ratio(since.more);
    return Number.isNaN(lately) ? ratio((name) => read(figures, name)) : lately;
  };
}

function level(name) {
  return (_, figures) => read(figures, name);
}

export const RATES = [
  { name: "requests", title: "Requests", unit: "per second", help: "generations begun",
    read: perSecond("doors.started") },
  { name: "output", title: "Sampled tokens", unit: "per second", help: "tokens of replies",
    read: perSecond("doors.output_tokens") },
  { name: "prompt", title: "Prompt tokens", unit: "per second", help: "reused and encoded",
    read: perSecond("doors.reused_tokens", "doors.encoded_tokens") },
  { name: "running", title: "Under way", help: "requests at workers", isLevel: true,
    read: level("router.total_in_flight") },
  { name: "waiting", title: "Waiting", help: "generations that wait for a slot", isLevel: true,
    read: level("admission.waiting") },
  { name: "reused", title: "Prompt reused", unit: "percent",
    help: "prompt tokens that were held, not encoded",
    read: share("doors.reused_tokens", "doors.reused_tokens", "doors.encoded_tokens") },
  { name: "hits", title: "Tree hit rate", unit: "percent", help: "look-ups that found something",
    read: share("cache.cache_hits", "cache.cache_hits", "cache.cache_misses") },
];

/** Counters whose growth is an error to show. */
export const FAILURES = [
  { name: "fleet.deaths", title: "workers lost" },
  { name: "fleet.retried", title: "tries after a worker failed" },
  { name: "fleet.moved", title: "generations moved to another worker" },
  { name: "admission.refused", title: "generations turned away" },
  { name: "admission.cut_clients", title: "clients that were too slow" },
  { name: "trajectories.recorded_failed", title: "turns that could not be recorded" },
  { name: "trajectories.recorded_undelivered", title: "replies that no client read to the end" },
  { name: "trajectories.recorded_missing_logprobs", title: "tokens without a log-probability" },
  { name: "journal.failures", title: "journal transactions failed" },
  { name: "background.failures", title: "background tasks failed" },
  { name: "router.plugin_failures", title: "requests that a plug-in broke" },
  { name: "encoder.differed", title: "requests on which the fast encoder differed" },
];
