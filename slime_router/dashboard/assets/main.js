// The frame of the page: which view is shown, the key, the theme.

import { key, setKey } from "./api.js";
import { fill, notice } from "./dom.js";
import { overview } from "./overview.js";
import { sessions } from "./sessions.js";

const VIEWS = { overview, sessions };
const THEMES = ["auto", "light", "dark"];
const THEME = "slime_router.theme";

const main = document.getElementById("main");
let shown = { name: "", stop() {} };

/** `#/sessions/ep-7/turn/t1?with=t2` in parts. */
function place() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [name, ...rest] = path.split("/").map(decodeURIComponent);
  return { name: VIEWS[name] ? name : "overview", rest, query: new URLSearchParams(query) };
}

function show() {
  const { name, rest, query } = place();
  for (const link of document.querySelectorAll("nav a")) {
    if (link.dataset.view === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (shown.name === name && shown.go) {
    shown.go(rest, query);
    return;
  }
  shown.stop();
  pulse("");
  fill(main);
  try {
    shown = { name, ...VIEWS[name](main, { pulse, askForKey, rest, query }) };
  } catch (error) {
    shown = { name: "", stop() {} };
    fill(main, notice("This view cannot be shown", String(error), { kind: "error" }));
    throw error;
  }
}

/** What the top bar says about the data: a text, and whether it is fine. */
function pulse(text, kind = "") {
  const element = document.getElementById("pulse");
  element.className = `pulse ${kind}`;
  if (element.textContent !== text) element.textContent = text;
}

function askForKey() {
  const dialog = document.getElementById("key-dialog");
  if (dialog.open) return;
  document.getElementById("key-input").value = key();
  dialog.returnValue = "";
  dialog.showModal();
}

function wireKey() {
  const dialog = document.getElementById("key-dialog");
  document.getElementById("key").addEventListener("click", askForKey);
  // Enter in the field uses the key; by itself the browser would press the first button.
  document.getElementById("key-input").addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    dialog.close("use");
  });
  dialog.addEventListener("close", () => {
    const input = document.getElementById("key-input");
    if (dialog.returnValue === "use") setKey(input.value.trim());
    if (dialog.returnValue === "forget") setKey("");
    input.value = "";
    if (dialog.returnValue) {
      shown.stop();
      shown = { name: "", stop() {} };
      show();
    }
  });
}

function wireTheme() {
  const button = document.getElementById("theme");
  const apply = (theme) => {
    document.documentElement.dataset.theme = theme;
    button.textContent = `Theme: ${theme}`;
  };
  apply(THEMES.includes(localStorage.getItem(THEME)) ? localStorage.getItem(THEME) : "auto");
  button.addEventListener("click", () => {
    const now = document.documentElement.dataset.theme;
    const next = THEMES[(THEMES.indexOf(now) + 1) % THEMES.length];
    localStorage.setItem(THEME, next);
    apply(next);
  });
}

wireTheme();
wireKey();
addEventListener("hashchange", show);
show();
