// Axes. A logarithmic axis is drawn as a linear one of log10, so that its ends and labels can be any values.

export const place = (axis, value) => (value === null ? null : axis.log ? (value > 0 ? Math.log10(value) : null) : value);
export const valueAt = (axis, position) => (axis.log ? 10 ** position : position);

/** Values to label from `low` to `high`: the stated ones, 1-2-5 or powers of ten on a wide logarithmic axis, else steps. */
export function ticks(axis, low, high, number) {
  const within = (values) => values.filter((value) => value >= low && value <= high);
  if (axis.stated) return within(axis.ticks);
  if (axis.log && high > 4 * low) return logTicks(low, high, number, within);
  const raw = (high - low) / number;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = Math.max([1, 2, 5, 10].find((size) => size * power >= raw * 0.999) * power, axis.whole ? 1 : 0);
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.max(0, Math.floor(high / step + 1e-9) - first + 1) }, (_, k) => (first + k) * step);
}

function logTicks(low, high, number, within) {
  const [from, to] = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))];
  const powers = Array.from({ length: to - from + 1 }, (_, k) => 10 ** (from + k));
  const of = (digits) => within(powers.flatMap((power) => digits.map((digit) => Number(`${digit * power}`))));
  return [of([1, 2, 5]), of([1, 3])].find((values) => values.length <= number + 2) ?? of([1]);
}
