// The values of a chart in words: for its tooltip, for a screen reader, and as a table.

import { element, table } from "./dom.js";
import { hasOnlyDots, names } from "./option.js";
import { place } from "./scale.js";
import { general, valueText } from "./text.js";

const MAX_ROWS = 500;

/** Return the place of the mark of `series` that holds at `x`, or -1. A step holds until the next; else it is the nearest. */
export function indexAt(series, x) {
  if (series.kind === "steps") return Math.min(lastUpTo(series.x, x), series.y.length - 1);
  let nearest = -1;
  series.x.forEach((value, k) => {
    if (nearest < 0 || Math.abs(value - x) < Math.abs(series.x[nearest] - x)) nearest = k;
  });
  return nearest;
}

/** Return the place of the last of the ascending `values` that is at most `x`, or -1. */
function lastUpTo(values, x) {
  let [low, high] = [0, values.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] <= x) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

/** Return a value with its unit. A whole number of tokens or requests has no decimals. */
export function axisText(value, { unit, whole }) {
  if (!(whole || unit === "tokens") || !Number.isInteger(value)) return valueText(value, unit);
  return unit ? `${general(value, 15)} ${unit}` : general(value, 15);
}

/** Return one mark's value with its interval. */
export function markText({ y: axis }, { y, low, high }, k) {
  if (k < 0) return "-";
  const value = axisText(y[k], axis);
  const known = Number.isFinite(low?.[k]) && Number.isFinite(high?.[k]);
  return known ? `${value} (${axisText(low[k], axis)} to ${axisText(high[k], axis)})` : value;
}

/** Return the text of one dot: its own, else its series' name and its two values. */
export function dotText(data, series, k) {
  return series.hints?.[k] ?? `${series.name}: ${data.x.title} ${axisText(series.x[k], data.x)}, ${data.y.title} ${markText(data, series, k)}`;
}

/**
 * Return what the shown series have at `x`: [name, text, series]. A dot counts within a hundredth of what `view` shows,
 * and then stands for the curve of its name.
 */
export function valuesAt(data, x, hidden, view) {
  const reach = (place(data.x, view.high) - place(data.x, view.low)) / 100;
  const isFar = (series, k) => series.kind === "dots" && Math.abs(place(data.x, series.x[k]) - place(data.x, x)) > reach;
  const shown = data.series.filter(({ name, y }) => !hidden.has(name) && y.length);
  const found = shown.map((series) => ({ series, k: indexAt(series, x) })).filter(({ series, k }) => !isFar(series, k));
  const dotted = new Set(found.filter(({ series }) => series.kind === "dots").map(({ series }) => series.name));
  return found
    .filter(({ series }) => series.kind === "dots" || !dotted.has(series.name))
    .map(({ series, k }) => (series.hints ? ["", series.hints[k], series] : [series.name, markText(data, series, k), series]));
}

/** Return a closed disclosure that makes the table when it is first opened. */
export function valueTable(data) {
  const details = element("details", { class: "values" }, element("summary", {}, "Values as a table"));
  details.addEventListener("toggle", () => details.append(...contents(data)), { once: true });
  return details;
}

function contents(data) {
  const [head, rows] = hasOnlyDots(data) ? dotRows(data) : lineRows(data);
  const note = rows.length > MAX_ROWS ? [element("p", { class: "note" }, `The first ${MAX_ROWS} of ${rows.length} rows.`)] : [];
  return [table(head, rows.slice(0, MAX_ROWS), `${data.title}: values`), ...note];
}

function dotRows(data) {
  const row = (series, k) => [series.name, axisText(series.x[k], data.x), markText(data, series, k)];
  return [["series", data.x.title, data.y.title], data.series.flatMap((series) => series.y.map((_, k) => row(series, k)))];
}

/** A row for each x, a column for each name: of its series that one with intervals, if any. */
function lineRows(data) {
  const columns = names(data).map((name) => {
    const series = data.series.filter((candidate) => candidate.name === name);
    return series.find(({ low, high }) => low || high) ?? series[0];
  });
  const all = [...new Set(columns.flatMap(({ x, y }) => x.slice(0, y.length)))].sort((a, b) => a - b);
  const places = columns.map(({ x }) => new Map(x.map((value, k) => [value, k])));
  const index = (series, s, x) => (series.kind === "steps" ? indexAt(series, x) : (places[s].get(x) ?? -1));
  const rows = all.map((x) => [axisText(x, data.x), ...columns.map((series, s) => markText(data, series, index(series, s, x)))]);
  return [[data.x.title, ...columns.map(({ name }) => name)], rows];
}
