// The values of a chart in words: for its tooltip, for a screen reader, and as a table.

import { element, table } from "./dom.js";
import { hasDots } from "./option.js";
import { general, valueText } from "./text.js";

const MAX_ROWS = 500;

/** Return the place of the mark of `series` that holds at `x`, or -1. A step holds until the next; a line's mark is the nearest. */
export function indexAt(series, x) {
  const above = lowerBound(series.x, x);
  if (series.kind === "steps") {
    const at = series.x[above] === x ? above : above - 1;
    return at < series.y.length ? at : series.y.length - 1;
  }
  if (above === series.x.length) return above - 1;
  return above > 0 && x - series.x[above - 1] < series.x[above] - x ? above - 1 : above;
}

function lowerBound(values, wanted) {
  let [low, high] = [0, values.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] < wanted) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** Return a value of an axis: a whole number, such as of requests, has no decimals. */
export const axisText = (value, axis) => (axis.whole && Number.isInteger(value) ? general(value, 15) : valueText(value, axis.unit));

/** Return one mark's value with its interval. */
export function markText({ y: axis }, { y, low, high }, k) {
  if (k < 0) return "-";
  const value = axisText(y[k], axis);
  const known = low && low[k] !== null && high[k] !== null;
  return known ? `${value} (${axisText(low[k], axis)} to ${axisText(high[k], axis)})` : value;
}

/** Return the text of one dot: its own, else its series' name and its two values. */
export function dotText(data, series, k) {
  return series.hints?.[k] ?? `${series.name}: ${data.x.title} ${axisText(series.x[k], data.x)}, ${data.y.title} ${markText(data, series, k)}`;
}

/** Return all shown series' values at `x`: [name, text, series]. */
export function valuesAt(data, x, hidden) {
  const shown = data.series.filter(({ name, y }) => !hidden.has(name) && y.length);
  return shown.map((series) => {
    const k = indexAt(series, x);
    return [series.name, series.hints?.[k] ?? markText(data, series, k), series];
  });
}

/** Return a closed disclosure that makes the table when it is first opened. */
export function valueTable(data) {
  const details = element("details", { class: "values" }, element("summary", {}, "Values as a table"));
  details.addEventListener("toggle", () => details.children.length > 1 || details.append(...contents(data)), { once: true });
  return details;
}

function contents(data) {
  const dots = hasDots(data);
  const rows = dots ? dotRows(data) : lineRows(data);
  const head = dots ? ["series", data.x.title, data.y.title] : [data.x.title, ...data.series.map(({ name }) => name)];
  const note = rows.length > MAX_ROWS ? [element("p", { class: "note" }, `The first ${MAX_ROWS} of ${rows.length} rows.`)] : [];
  return [table(head, rows.slice(0, MAX_ROWS), `${data.title}: values`), ...note];
}

const dotRows = (data) =>
  data.series.flatMap((series) =>
    series.y.map((_, k) => [series.name, axisText(series.x[k], data.x), markText(data, series, k)]),
  );

function lineRows(data) {
  const all = [...new Set(data.series.flatMap((series) => series.x.slice(0, series.y.length)))].sort((a, b) => a - b);
  const places = data.series.map((series) => new Map(series.x.map((x, k) => [x, k])));
  const cell = (series, s, x) => (series.kind === "steps" ? indexAt(series, x) : (places[s].get(x) ?? -1));
  return all.map((x) => [axisText(x, data.x), ...data.series.map((series, s) => markText(data, series, cell(series, s, x)))]);
}
