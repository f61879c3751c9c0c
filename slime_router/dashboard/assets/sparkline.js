// A line of the last values, as SVG. Its size comes from the style sheet.

import { h } from "./dom.js";

const WIDTH = 120;
const HEIGHT = 28;

export class Series {
  constructor(limit = 90) {
    this.limit = limit;
    this.values = [];
  }

  push(value) {
    this.values.push(Number.isFinite(value) ? value : null);
    if (this.values.length > this.limit) this.values.shift();
  }
}

/** The values from left to right; a gap where one is missing. */
export function sparkline(series, label) {
  const values = series.values;
  const top = Math.max(1e-9, ...values.filter((value) => value !== null));
  const step = WIDTH / (series.limit - 1);
  const first = series.limit - values.length;
  let path = "";
  let area = "";
  let start = null;
  values.forEach((value, index) => {
    const x = ((first + index) * step).toFixed(1);
    if (value === null) {
      start = null;
      return;
    }
    const y = (HEIGHT - 2 - (value / top) * (HEIGHT - 4)).toFixed(1);
    path += `${start === null ? "M" : "L"}${x} ${y}`;
    area += start === null ? `M${x} ${HEIGHT}L${x} ${y}` : `L${x} ${y}`;
    const next = values[index + 1];
    if (next === null || next === undefined) area += `L${x} ${HEIGHT}Z`;
    start = x;
  });
  return h(
    "svg:svg",
    { class: "spark", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": label },
    h("svg:path", { class: "area", d: area }),
    h("svg:path", { class: "line", d: path }),
  );
}
