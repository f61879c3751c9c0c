// Tokens in lines. Only those in view are in the document, so a hundred thousand stay smooth.

import { h } from "./dom.js";
import { classOf } from "./colours.js";
import { shown, width } from "./glyphs.js";

const LINE_HEIGHT = 22; // as in tokens.css
const SPARE_LINES = 6; // above and below what is in view
const GUTTER = 8; // columns

export class TokenView {
  /**
   * `onPoint(index)` is called for the token under the pointer or cursor, `onScroll(index)` with the
   * first token in view.
   */
  constructor(store, { mode, label, onPoint, onScroll = () => {} }) {
    Object.assign(this, { store, mode, onPoint, onScroll });
    this.lines = []; // the first token of each
    this.used = 0; // columns of the last line
    this.laidOut = 0; // tokens
    this.cursor = -1;
    this.difference = -1;
    this.columns = 80;
    this.drawn = new Map(); // the lines in the document, by number
    this.window = h("div", { class: "window" });
    this.canvas = h("div", { class: "canvas" }, this.window);
    this.element = h("div", { class: "tokens", tabindex: "0", role: "region", "aria-label": label }, this.canvas);
    this.element.addEventListener("scroll", () => this.schedule(true), { passive: true });
    this.element.addEventListener("pointerover", (event) => this.point(event));
    this.element.addEventListener("pointerleave", () => this.onPoint(this.cursor));
    this.element.addEventListener("click", (event) => {
      const index = indexOf(event);
      if (index >= 0) this.select(index);
    });
    this.element.addEventListener("keydown", (event) => this.key(event));
    this.sizes = new ResizeObserver(() => this.resized());
    this.sizes.observe(this.element);
    store.onChange(() => this.grow());
    this.grow();
  }

  stop() {
    this.sizes.disconnect();
  }

  setMode(mode) {
    this.mode = mode;
    this.schedule();
  }

  setDifference(index) {
    this.difference = index;
    this.schedule();
  }

  resized() {
    const probe = h("span", { class: "probe" }, "x".repeat(100));
    this.window.append(probe);
    const advance = probe.getBoundingClientRect().width / 100;
    probe.remove();
    if (!advance) return;
    const columns = Math.max(20, Math.floor((this.element.clientWidth - 16) / advance) - GUTTER);
    if (columns !== this.columns) {
      const top = this.firstInView();
      this.columns = columns;
      Object.assign(this, { lines: [], used: 0, laidOut: 0 });
      this.grow();
      this.scrollTo(top, "start");
    }
    this.schedule();
  }

  /** Lays out what has come in since the last time. */
  grow() {
    const { store } = this;
    for (let index = this.laidOut; index < store.length; index += 1) {
      const size = width(shown(store.pieces[index], store.bytes.get(index)));
      const broke = index > 0 && store.pieces[index - 1].includes("\n");
      const hangs = /^\n+$/.test(store.pieces[index]); // a line end fits in any line
      if (!this.lines.length || broke || (this.used + size > this.columns && !hangs)) {
        this.lines.push(index);
        this.used = 0;
      }
      this.used += size;
    }
    this.laidOut = store.length;
    this.canvas.style.height = `${Math.max(1, this.lines.length) * LINE_HEIGHT}px`;
    this.schedule();
  }

  schedule(scrolled = false) {
    this.scrolled ||= scrolled;
    if (this.pending) return;
    this.pending = requestAnimationFrame(() => {
      this.pending = 0;
      this.draw();
      if (this.scrolled) this.onScroll(this.firstInView());
      this.scrolled = false;
    });
  }

  draw() {
    const { scrollTop, clientHeight } = this.element;
    const first = Math.max(0, Math.floor(scrollTop / LINE_HEIGHT) - SPARE_LINES);
    const last = Math.min(this.lines.length, Math.ceil((scrollTop + clientHeight) / LINE_HEIGHT) + SPARE_LINES);
    const drawn = new Map();
    for (let line = first; line < last; line += 1) {
      const state = this.stateOf(line);
      const known = this.drawn.get(line);
      drawn.set(line, known?.state === state ? known : { state, element: this.line(line) });
    }
    this.drawn = drawn;
    this.window.style.transform = `translateY(${first * LINE_HEIGHT}px)`;
    // What stays in view is not touched: most of a step of the wheel.
    const wanted = new Set([...drawn.values()].map((each) => each.element));
    for (const child of [...this.window.children]) if (!wanted.has(child)) child.remove();
    let before = this.window.firstElementChild;
    for (const { element } of drawn.values()) {
      if (element === before) before = before.nextElementSibling;
      else this.window.insertBefore(element, before);
    }
  }

  /** What a line looks like depends on this, and on nothing else. */
  stateOf(line) {
    const [start, end] = this.span(line);
    const within = (index) => (index >= start && index < end ? index : -1);
    return `${start} ${end} ${this.mode} ${within(this.cursor)} ${within(this.difference)}`;
  }

  span(line) {
    return [this.lines[line], this.lines[line + 1] ?? this.laidOut];
  }

  line(number) {
    const [start, end] = this.span(number);
    const line = document.createElement("div");
    line.className = "line";
    const gutter = document.createElement("span");
    gutter.className = "gutter";
    gutter.ariaHidden = "true";
    gutter.textContent = start;
    line.append(gutter);
    for (let index = start; index < end; index += 1) line.append(this.token(index));
    return line;
  }

  token(index) {
    const { store } = this;
    const element = document.createElement("span");
    element.className = `t ${classOf(this.mode, store, index)}`;
    if (index === this.cursor) element.classList.add("cursor");
    if (index === this.difference) element.classList.add("difference");
    element.dataset.i = index;
    element.textContent = shown(store.pieces[index], store.bytes.get(index));
    return element;
  }

  firstInView() {
    return this.lines[Math.min(this.lines.length - 1, Math.round(this.element.scrollTop / LINE_HEIGHT))] ?? 0;
  }

  lineOf(index) {
    let low = 0;
    let high = this.lines.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.lines[middle] <= index) low = middle;
      else high = middle - 1;
    }
    return Math.max(low, 0);
  }

  /** Brings a token into view: at the top ("start"), in the middle ("center"), or just so ("nearest"). */
  scrollTo(index, where = "nearest") {
    const top = this.lineOf(index) * LINE_HEIGHT;
    const { scrollTop, clientHeight } = this.element;
    if (where === "start") this.element.scrollTop = top;
    else if (where === "center") this.element.scrollTop = top - clientHeight / 2;
    else if (top < scrollTop) this.element.scrollTop = top;
    else if (top + LINE_HEIGHT > scrollTop + clientHeight) this.element.scrollTop = top + LINE_HEIGHT - clientHeight;
  }

  select(index, where = "nearest") {
    if (!this.store.length) return;
    this.cursor = Math.max(0, Math.min(index, this.store.length - 1));
    this.scrollTo(this.cursor, where);
    this.onPoint(this.cursor);
    this.schedule();
  }

  point(event) {
    const index = indexOf(event);
    if (index >= 0) this.onPoint(index);
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const page = Math.max(1, Math.floor(this.element.clientHeight / LINE_HEIGHT) - 1);
    const moves = {
      ArrowRight: () => this.cursor + 1,
      ArrowLeft: () => this.cursor - 1,
      ArrowDown: () => this.below(1),
      ArrowUp: () => this.below(-1),
      PageDown: () => this.below(page),
      PageUp: () => this.below(-page),
      Home: () => 0,
      End: () => this.store.length - 1,
      n: () => this.nextSampled(1),
      p: () => this.nextSampled(-1),
      d: () => (this.difference >= 0 ? this.difference : this.cursor),
    };
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    this.select(this.cursor < 0 && event.key.startsWith("Arrow") ? this.firstInView() : move());
  }

  below(lines) {
    const line = this.lineOf(Math.max(this.cursor, 0));
    const offset = Math.max(this.cursor, 0) - this.lines[line];
    const next = Math.max(0, Math.min(this.lines.length - 1, line + lines));
    const end = (this.lines[next + 1] ?? this.laidOut) - 1;
    return Math.min(this.lines[next] + offset, end);
  }

  /** Where the next run of sampled tokens begins, or the one before. */
  nextSampled(step) {
    const { sources } = this.store;
    const begins = (index) => sources[index] === 2 && sources[index - 1] !== 2;
    for (let index = this.cursor + step; index >= 0 && index < sources.length; index += step) {
      if (begins(index)) return index;
    }
    return this.cursor;
  }
}

function indexOf(event) {
  const token = event.target.closest?.("[data-i]");
  return token ? Number(token.dataset.i) : -1;
}
