// One session: its tree and rows on the left, the tokens of a turn or row, or of two turns, beside them.

import { get } from "./api.js";
import { MODES, legend } from "./colours.js";
import { details } from "./details.js";
import { count, fill, h, many, notice, seconds } from "./dom.js";
import { rowList } from "./rowlist.js";
import { TokenStore } from "./tokenstore.js";
import { TokenView } from "./tokenview.js";
import { shortId, treeOf } from "./tree.js";
import { verdict } from "./verdict.js";

const MODE = "slime_router.mode";
const MAX_CHOICES = 500; // turns to compare with

export class Explorer {
  constructor(body, session, { askForKey }) {
    Object.assign(this, { body, session, askForKey, tree: null, views: [], stores: [], shown: null });
    this.mode = MODES.some(([name]) => name === sessionStorage.getItem(MODE)) ? sessionStorage.getItem(MODE) : "source";
    this.stopper = new AbortController();
    this.side = h("div", { class: "side" });
    this.viewer = h("section", { class: "viewer", "aria-label": "Tokens" });
    fill(body, notice("Loading", session));
    this.loading = this.load();
  }

  stop() {
    this.stopper.abort();
    this.close();
  }

  close() {
    this.views.forEach((view) => view.stop());
    this.stores.forEach((store) => store.stop());
    Object.assign(this, { views: [], stores: [] });
  }

  get path() {
    return `#/sessions/${encodeURIComponent(this.session)}`;
  }

  async load() {
    const path = `sessions/${encodeURIComponent(this.session)}`;
    try {
      const options = { signal: this.stopper.signal };
      [this.summary, this.tree] = await Promise.all([get(path, options), get(`${path}/tree`, options)]);
      fill(this.body, this.head(), h("div", { class: "pair" }, this.side, this.viewer));
    } catch (error) {
      if (error.name === "AbortError") return;
      const action = error.needsKey
        ? h("button", { type: "button", class: "primary", onclick: this.askForKey }, "Enter the key")
        : h("button", { type: "button", onclick: () => this.again() }, "Try again");
      const title = error.status === 404 ? `No session ${this.session}` : "The session cannot be shown";
      fill(this.body, notice(title, error.message, { kind: error.needsKey ? "locked" : "error", action }));
    }
  }

  /** Loads the session again: it may have new turns. */
  async again() {
    this.loading = this.load();
    const shown = this.shown ?? {};
    this.shown = null;
    await this.show(shown);
  }

  head() {
    const { summary, tree } = this;
    const facts = [
      summary.state,
      many(summary.turns, "turn"),
      `${count(tree.stats.sampled_tokens)} sampled`,
      `${count(tree.stats.trained_tokens)} trained`,
      summary.group_id ? `group ${summary.group_id}` : null,
      summary.reward !== null ? `reward ${JSON.stringify(summary.reward)}` : null,
      summary.dropped_turns ? `${count(summary.dropped_turns)} turns dropped` : null,
    ].filter(Boolean);
    return h("header", { class: "session-head" },
      h("h2", { class: "mono" }, this.session),
      h("span", { class: "dim" }, facts.join(" · ")),
      h("span", { class: "grow" }),
      h("button", { type: "button", class: "quiet", onclick: () => this.again() }, "Reload"));
  }

  /** `kind`: "turn", "row" or "compare"; without one, the newest turn. */
  async show({ kind, id, other }) {
    await this.loading;
    if (this.tree === null || this.stopper.signal.aborted) return;
    const last = this.tree.turns.at(-1)?.turn_id;
    const wanted = kind && id ? { kind, id, other } : { kind: "turn", id: last };
    if (this.shown && ["kind", "id", "other"].every((key) => this.shown[key] === wanted[key])) return;
    this.shown = wanted;
    this.close();
    const chosen = wanted.kind === "row" ? null : wanted.id;
    fill(this.side,
      h("section", { class: "panel" }, h("h2", {}, `Turns (${this.tree.turns.length})`),
        this.tree.turns.length ? treeOf(this.tree, this.session, chosen) : notice("No turns", "Nothing is held of this session.")),
      h("section", { class: "panel" }, rowList(this.tree, this.session, wanted.kind === "row" ? wanted.id : null)));
    this.side.querySelector("[aria-current]")?.scrollIntoView({ block: "nearest" });
    if (!wanted.id) {
      fill(this.viewer, notice("Nothing to show", "The session holds no turn."));
      return;
    }
    const isPair = wanted.kind === "compare" && wanted.other;
    const stores = isPair
      ? [new TokenStore(this.session, "turn", wanted.id), new TokenStore(this.session, "turn", wanted.other)]
      : [new TokenStore(this.session, wanted.kind === "row" ? "row" : "turn", wanted.id)];
    this.open(stores);
  }

  open(stores) {
    this.stores = stores;
    const strip = h("footer", { class: "details", "aria-live": "polite" });
    const legendPlace = h("div", {});
    const status = h("p", { class: "dim status", role: "status" });
    const judged = h("div", { class: "verdict" });
    this.views = stores.map((store) => new TokenView(store, {
      mode: this.mode,
      label: `Tokens of ${store.kind} ${store.id}`,
      onPoint: (index) => details(strip, store, index, this.tree),
      onScroll: (index) => this.follow(store, index),
    }));
    const setMode = (mode) => {
      this.mode = mode;
      sessionStorage.setItem(MODE, mode);
      this.views.forEach((view) => view.setMode(mode));
      fill(legendPlace, legend(mode, stores[0]));
    };
    fill(this.viewer, this.bar(stores, setMode), stores.length > 1 ? null : this.facts(stores[0]), legendPlace, judged,
      h("div", { class: stores.length > 1 ? "views two" : "views" }, this.views.map((view, index) =>
        h("div", { class: "view" }, stores.length > 1 ? h("h3", { class: "mono" }, shortId(stores[index].id)) : null, view.element))),
      status, strip);
    details(strip, stores[0], -1, this.tree);
    setMode(this.mode);
    const changed = () => {
      this.say(status);
      if (this.mode === "version") fill(legendPlace, legend(this.mode, stores[0]));
    };
    stores.forEach((store) => {
      store.onChange(changed);
      store.load().then(() => {
        if (stores.every((each) => each.isWhole)) verdict(judged, stores, (index) => this.jump(index), this.stopper.signal);
      });
    });
    this.say(status);
  }

  bar(stores, setMode) {
    const [store] = stores;
    const turns = this.tree.turns.filter((turn) => turn.turn_id !== store.id).slice(-MAX_CHOICES);
    const near = this.tree.turns.find((turn) => turn.turn_id === store.id)?.of;
    const beside = h("select", { "aria-label": "Compare with", onchange: (event) => {
      const other = event.target.value;
      location.hash = other
        ? `${this.path}/compare/${encodeURIComponent(store.id)}/${encodeURIComponent(other)}`
        : `${this.path}/turn/${encodeURIComponent(store.id)}`;
    } },
    h("option", { value: "" }, stores[1] ? "alone" : "compare with …"),
    turns.map((turn) => h("option", { value: turn.turn_id, selected: turn.turn_id === stores[1]?.id },
      `beside ${shortId(turn.turn_id)}${turn.turn_id === near ? " (departs from it)" : ""}`)));
    return h("div", { class: "bar" },
      h("fieldset", { class: "modes" }, h("legend", { class: "sr" }, "Colour by"),
        MODES.map(([name, title]) => h("label", {},
          h("input", { type: "radio", name: "mode", value: name, checked: name === this.mode, onchange: () => setMode(name) }),
          h("span", {}, title)))),
      store.kind === "turn" && turns.length ? beside : null);
  }

  /** When, where and how fast a turn was sampled, and how its prompt was made. */
  facts(store) {
    const turn = this.summary.turn_list.find((each) => each.turn_id === store.id);
    if (!turn) return null;
    const { receipt } = turn;
    const facts = [
      turn.started ? new Date(turn.started * 1000).toLocaleString() : null,
      turn.duration_s === null || turn.duration_s === undefined ? null : `took ${seconds(turn.duration_s)}`,
      turn.first_token_s ? `first token after ${seconds(turn.first_token_s)}` : null,
      turn.workers?.length ? turn.workers.join(", ") : null,
      receipt ? `${receipt.status}: ${count(receipt.reused)} reused, ${count(receipt.encoded)} encoded` : null,
      receipt?.reason ?? null,
      turn.is_delivered ? null : "its client left before the end",
    ].filter(Boolean);
    return h("p", { class: "dim facts" }, h("span", { class: "mono" }, turn.turn_id), ` · ${facts.join(" · ")}`);
  }

  /** What is loaded, and where two turns part. */
  say(status) {
    const [a, b] = this.stores;
    const failed = this.stores.find((store) => store.error);
    if (failed) {
      fill(status, h("span", { class: "bad", role: "alert" }, failed.error.message));
      return;
    }
    const loaded = this.stores.map((store) => (store.total === null ? "loading"
      : store.isWhole ? `${count(store.total)} tokens` : `${count(store.length)} of ${count(store.total)} tokens`));
    fill(status, loaded.join(" | "));
    if (!b) return;
    const at = parting(a, b, this.parted ?? 0);
    this.parted = at.index;
    if (!at.isKnown) return;
    const isFirst = this.views[0].difference < 0;
    this.views.forEach((view) => view.setDifference(at.index));
    status.append(at.index < 0 ? " · the same" : ` · first difference at token ${at.index} `);
    if (at.index < 0) return;
    status.append(h("button", { type: "button", class: "quiet", onclick: () => this.jump(at.index) }, "Show it"));
    if (isFirst) this.jump(at.index);
  }

  jump(index) {
    this.views.forEach((view) => view.select(index, "center"));
  }

  /** Two views scroll together, token by token. */
  follow(store, index) {
    if (this.views.length < 2 || this.leader?.store !== store && performance.now() - (this.leader?.at ?? 0) < 150) return;
    this.leader = { store, at: performance.now() };
    const other = this.views.find((view) => view.store !== store);
    if (index < other.store.length) other.scrollTo(index, "start");
  }
}

/** Where two turns part: the first index at which they differ; -1 where they are the same. */
function parting(a, b, from) {
  const length = Math.min(a.length, b.length);
  for (let index = Math.max(from, 0); index < length; index += 1) {
    if (a.ids[index] !== b.ids[index]) return { isKnown: true, index };
  }
  const isKnown = a.isWhole && b.isWhole;
  return { isKnown, index: isKnown ? (a.length === b.length ? -1 : length) : length };
}
