// The session explorer: the list of sessions on the left, the chosen one beside it.

import { get } from "./api.js";
import { count, fill, h, many, notice } from "./dom.js";
import { Explorer } from "./explorer.js";
import { walk } from "./tree.js";

const SHOWN = 200; // sessions in the list; a search finds the others
const TYPING_MS = 250;

export function sessions(main, { pulse, askForKey, rest, query }) {
  const search = h("input", {
    type: "search", id: "search", placeholder: "Session, turn, request …", "aria-label": "Search sessions",
    autocomplete: "off", spellcheck: "false", oninput: () => later(), onkeydown: (event) => enter(event),
  });
  const list = h("div", { class: "list" });
  const body = h("div", { class: "session" });
  fill(main, h("h1", { class: "sr" }, "Sessions"),
    h("div", { class: "sessions" }, h("aside", { class: "finder", "aria-label": "Sessions" }, search, list), body));
  const view = { chosen: null, explorer: null, timer: null, asked: new AbortController() };

  async function find() {
    view.asked.abort();
    view.asked = new AbortController();
    const { signal } = view.asked;
    const text = search.value.trim();
    try {
      const found = await lookUp(text, signal);
      fill(list, listed(found, text, view.chosen));
      pulse(many(found.total, "session"), "good");
    } catch (error) {
      if (error.name === "AbortError") return;
      pulse(error.status ? "" : error.message, error.status ? "" : "bad");
      const action = error.needsKey
        ? h("button", { type: "button", class: "primary", onclick: askForKey }, "Enter the key") : null;
      const hint = error.needsKey ? " Without the admin's key, type the name of a session and press Enter." : "";
      fill(list, notice(error.needsKey ? "Sessions are listed for the admin" : "No list", error.message + hint,
        { kind: error.needsKey ? "locked" : "error", action }));
    }
  }

  function later() {
    clearTimeout(view.timer);
    view.timer = setTimeout(find, TYPING_MS);
  }

  /** Enter opens the turn that a text leads to, or else the session of that name. */
  async function enter(event) {
    const text = search.value.trim();
    if (event.key === "ArrowDown") list.querySelector("a")?.focus();
    if (event.key !== "Enter" || !text) return;
    clearTimeout(view.timer);
    await find();
    const turn = await get(`turns/${encodeURIComponent(text)}`).catch(() => null);
    const names = [...list.querySelectorAll("a[data-session]")].map((link) => link.dataset.session);
    if (turn?.session_id) location.hash = placeOf(turn.session_id, turn.turn_id);
    else location.hash = placeOf(names.length && !names.includes(text) ? names[0] : text);
  }

  function go(parts, asked) {
    const [name, kind, id, other] = parts;
    if (name !== view.chosen) {
      view.explorer?.stop();
      view.explorer = null;
      view.chosen = name ?? null;
      for (const link of list.querySelectorAll("a[data-session]")) {
        if (link.dataset.session === name) link.setAttribute("aria-current", "true");
        else link.removeAttribute("aria-current");
      }
    }
    if (!name) {
      fill(body, notice("Choose a session", "Its turns, tokens and rows are shown here."));
      return;
    }
    if (view.explorer === null) view.explorer = new Explorer(body, name, { askForKey });
    view.explorer.show({ kind, id, other, query: asked });
  }

  find();
  go(rest, query);
  return {
    go,
    stop() {
      clearTimeout(view.timer);
      view.asked.abort();
      view.explorer?.stop();
    },
  };
}

function placeOf(session, turn) {
  const place = `#/sessions/${encodeURIComponent(session)}`;
  return turn ? `${place}/turn/${encodeURIComponent(turn)}` : place;
}

/** The newest sessions that a text leads to: by a name, or by what happened in them. */
function lookUp(text, signal) {
  const query = new URLSearchParams({ limit: SHOWN, order: "desc" });
  if (text) query.set("search", text);
  return get(`sessions?${query}`, { signal });
}

function listed(found, text, chosen) {
  if (!found.sessions.length) {
    return text
      ? notice("Nothing fits", `No session, turn, response, call or request is named ${text}. Enter opens the session of that name.`)
      : notice("No sessions yet", "A request under /sessions/NAME/v1, or with the header x-session-id, begins one.");
  }
  const list = h("ul", { class: "tree", "aria-label": "Sessions found" }, found.sessions.map((session) =>
    h("li", {}, h(
      "a",
      {
        class: "entry", href: placeOf(session.session_id), title: session.session_id,
        "data-session": session.session_id, "aria-current": session.session_id === chosen ? "true" : null,
      },
      h("span", { class: "mono name" }, session.session_id),
      h("span", { class: "dim meta" },
        h("span", { class: `state ${session.state}` }, session.state),
        ` · ${many(session.turns, "turn")} · ${count(session.sampled_tokens)} sampled`,
        session.running ? ` · ${session.running} running` : "",
        session.owner ? ` · ${session.owner}` : ""),
    ))));
  list.addEventListener("keydown", walk);
  const more = found.total - found.sessions.length;
  return [list, more > 0 ? h("p", { class: "dim sum" }, `and ${count(more)} more: type to narrow it down`) : null];
}
