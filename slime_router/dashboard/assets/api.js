// The router's own routes. The key lies in this tab's session storage, and nowhere else.

const KEY = "slime_router.key";
export const BASE = new URL("..", import.meta.url);

/** A reply that is not what was asked for; `status` is 0 where nobody answered. */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }

  get needsKey() {
    return this.status === 401;
  }
}

export function key() {
  return sessionStorage.getItem(KEY) ?? "";
}

export function setKey(text) {
  if (text) sessionStorage.setItem(KEY, text);
  else sessionStorage.removeItem(KEY);
}

/** The text of a route; throws Refused. */
export async function getText(path, { signal } = {}) {
  const { response, text } = await exchange(path, { signal, headers: { Accept: "*/*" } });
  if (!response.ok) throw new Refused(response.status, `HTTP ${response.status}`);
  return text;
}

/** The JSON of a route; throws Refused. */
export function get(path, { signal } = {}) {
  return ask(path, { signal });
}

export function post(path, body, { signal } = {}) {
  return ask(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
}

async function ask(path, options) {
  const { response, text } = await exchange(path, options);
  let body = null;
  try {
    body = JSON.parse(text);
  } catch {
    // an error of something between here and the router
  }
  if (!response.ok || body === null) {
    throw new Refused(response.status, body?.error?.message ?? `HTTP ${response.status}`);
  }
  return body;
}

async function exchange(path, { headers = {}, ...options }) {
  const sent = { Accept: "application/json", ...headers };
  if (key()) sent.Authorization = `Bearer ${key()}`;
  try {
    const address = new URL(path, BASE);
    const response = await fetch(address, { ...options, headers: sent, cache: "no-store" });
    return { response, text: await response.text() };
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "The router does not answer.");
  }
}
