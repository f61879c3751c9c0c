// The tokens of one turn or row, fetched part by part: the first part is small, so that it shows at once.

import { get } from "./api.js";

const FIRST = 2000;
const PART = 20000;
export const SOURCES = ["template", "message", "sampled"];
export const MAX_TOKENS = 2_000_000; // of one view; a browser's memory is not the router's

export class TokenStore {
  /** `kind` is "turn" or "row". */
  constructor(session, kind, id) {
    Object.assign(this, { session, kind, id, total: null, error: null });
    this.ids = [];
    this.pieces = [];
    this.bytes = new Map(); // by index, in hex: what is not UTF-8 by itself
    this.sources = [];
    this.mask = [];
    this.logprobs = [];
    this.turnOf = [];
    this.versionOf = [];
    this.turns = [];
    this.versions = [];
    this.listeners = new Set();
    this.stopper = new AbortController();
  }

  get length() {
    return this.ids.length;
  }

  get isWhole() {
    return this.total !== null && this.length >= Math.min(this.total, MAX_TOKENS);
  }

  onChange(listener) {
    this.listeners.add(listener);
  }

  stop() {
    this.stopper.abort();
    this.listeners.clear();
  }

  async load() {
    const path = `sessions/${encodeURIComponent(this.session)}/tokens?${this.kind}=${encodeURIComponent(this.id)}`;
    try {
      while (!this.isWhole) {
        const limit = this.length ? PART : FIRST;
        const part = await get(`${path}&offset=${this.length}&limit=${limit}`, { signal: this.stopper.signal });
        this.add(part);
        if (!part.ids.length) break;
      }
    } catch (error) {
      if (error.name === "AbortError") return;
      this.error = error;
      this.tell();
    }
  }

  add(part) {
    const start = this.length;
    this.total = part.total;
    const turns = part.turns.map((turn) => place(this.turns, turn));
    const versions = part.versions.map((version) => place(this.versions, version));
    for (let index = 0; index < part.ids.length; index += 1) {
      this.ids.push(part.ids[index]);
      this.pieces.push(part.pieces[index]);
      this.sources.push(part.sources[index]);
      this.mask.push(part.loss_mask[index]);
      this.logprobs.push(part.logprobs[index]);
      this.turnOf.push(turns[part.turn_of[index]]);
      this.versionOf.push(part.version_of[index] < 0 ? -1 : versions[part.version_of[index]]);
    }
    for (const [index, hex] of Object.entries(part.bytes)) this.bytes.set(start + Number(index), hex);
    this.tell();
  }

  tell() {
    for (const listener of this.listeners) listener();
  }

  /** The text of the whole, its bytes put together first. */
  text() {
    if (!this.bytes.size) return this.pieces.join("");
    const encoder = new TextEncoder();
    const parts = this.pieces.map((piece, index) =>
      this.bytes.has(index) ? fromHex(this.bytes.get(index)) : encoder.encode(piece));
    const all = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
    let at = 0;
    for (const part of parts) {
      all.set(part, at);
      at += part.length;
    }
    return new TextDecoder().decode(all);
  }

  hexOf(index) {
    const raw = this.bytes.has(index) ? fromHex(this.bytes.get(index)) : new TextEncoder().encode(this.pieces[index]);
    return [...raw].map((byte) => byte.toString(16).padStart(2, "0")).join(" ");
  }
}

function place(list, value) {
  const index = list.indexOf(value);
  return index >= 0 ? index : list.push(value) - 1;
}

function fromHex(text) {
  return Uint8Array.from(text.match(/../g) ?? [], (pair) => Number.parseInt(pair, 16));
}
