// Numbers as loadgen/report/format.py writes them: a table in tests/browser compares the two.

const UNKNOWN = "-";

/** Write `value` with `decimals` decimals and a comma at thousands. A tie goes to the even digit, as in Python. */
function fixed(value, decimals) {
  const tie = Number.isInteger(value * 2 ** (decimals + 1)) && Math.abs((value * 10 ** decimals) % 1) === 0.5;
  const rounded = tie ? (2 * Math.round((value * 10 ** decimals) / 2)) / 10 ** decimals : value;
  const [whole, part] = Math.abs(rounded).toFixed(decimals).split(".");
  return (value < 0 ? "-" : "") + whole.replace(/\B(?=(\d{3})+$)/g, ",") + (part ? `.${part}` : "");
}

/** The power of ten of the first digit of `value`, which is not 0. */
const exponent = (value) => Number(value.toExponential().split("e")[1]);

/** Three significant digits, but never less than the whole part: 0.0123, 12.3, 12,345. */
export function number(value) {
  if (value === null || !Number.isFinite(value)) return UNKNOWN;
  if (value === 0) return "0";
  if (Math.abs(value) >= 1000) return fixed(value, 0);
  const decimals = 2 - exponent(value);
  const rounded = Number(fixed(value, decimals).replaceAll(",", ""));
  return fixed(rounded, Math.max(0, rounded === 0 ? decimals : 2 - exponent(rounded)));
}

/** Write with the first [from, factor, prefix], largest first, whose `from` the rounded value reaches. */
function prefixed(value, unit, prefixes) {
  if (value === 0) return `0 ${unit}`;
  const rounded = Math.abs(Number(value.toExponential(2)));
  const [, factor, prefix] = prefixes.find(([from]) => rounded >= from) ?? prefixes.at(-1);
  return `${number(value / factor)} ${prefix}${unit}`;
}

const SECONDS = [[1, 1, ""], [1e-3, 1e-3, "m"], [1e-6, 1e-6, "µ"]];
const JOULES = [[1e6, 1e6, "M"], [1e4, 1e3, "k"], [0.01, 1, ""], [1e-5, 1e-3, "m"], [1e-8, 1e-6, "µ"], [0, 1e-9, "n"]];

function percent(ratio) {
  if (ratio > 0 && ratio < 0.0005) return "<0.1 %";
  if (ratio >= 0.9995 && ratio < 1) return ">99.9 %";
  return `${fixed(100 * ratio, 1)} %`;
}

/** Write a value with its unit, as tooltips and tables show it; "-" where it is unknown. */
export function valueText(value, unit) {
  if (value === null || !Number.isFinite(value)) return UNKNOWN;
  if (unit === "s") return prefixed(value, unit, SECONDS);
  if (unit === "J") return prefixed(value, unit, JOULES);
  if (unit === "share") return percent(value);
  if (unit === "1/s") return `${number(value)} /s`;
  return unit ? `${number(value)} ${unit}` : number(value);
}

/** Up to `digits` significant digits, without trailing zeros, with a comma at thousands. */
export const general = (value, digits) => value.toLocaleString("en-US", { maximumSignificantDigits: digits });

function tickSeconds(value) {
  const [factor, unit] = [[1, "s"], [1e-3, "ms"], [1e-6, "µs"]].find(([f]) => Math.abs(value) >= f * 0.999) ?? [1e-9, "ns"];
  return `${general(value / factor, 10)} ${unit}`;
}

function tickJoules(value) {
  if (Math.abs(value) >= 9999) return `${general(value / 1e3, 10)} kJ`;
  return Math.abs(value) >= 0.0099 ? `${general(value, 6)} J` : `${general(value * 1e3, 6)} mJ`;
}

function tickCount(value) {
  if (Math.abs(value) >= 999999) return `${general(value / 1e6, 10)}M`;
  return Math.abs(value) >= 9999 ? `${general(value / 1e3, 10)}k` : general(value, 10);
}

/** Write a round value as an axis shows it: times, energies and shares with their unit, the others without. */
export function tickText(value, unit) {
  if (value === 0) return unit === "s" || unit === "J" ? `0 ${unit}` : unit === "share" ? "0 %" : "0";
  if (unit === "s") return tickSeconds(value);
  if (unit === "J") return tickJoules(value);
  if (unit === "tokens") return tickCount(value);
  return unit === "share" ? `${general(100 * value, 6)} %` : general(value, 6);
}
