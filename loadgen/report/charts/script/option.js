// What ECharts is to draw, from the data of one figure.

import { tickText } from "./text.js";
import { place, ticks, valueAt } from "./scale.js";

export const GRID = { left: 56, right: 24, top: 14, bottom: 28 };

/** Return the option of a chart. `view` has the ends of x in values, `hidden` the names that are switched off. */
export function option(data, view, hidden, colours, width, tooltip) {
  const shown = data.series.map((series, index) => ({ series, index })).filter(({ series }) => !hidden.has(series.name));
  return {
    animation: false,
    textStyle: { fontFamily: colours.font, fontSize: 12 },
    grid: { ...GRID, containLabel: false },
    xAxis: xAxis(data, view, colours, width),
    yAxis: axis(data.y, [data.y.low, data.y.high], data.y.ticks, colours),
    dataZoom: [dataZoom(data, view)],
    tooltip: { ...tooltip, trigger: hasOnlyDots(data) ? "item" : "axis", axisPointer: pointer(colours) },
    series: [...shown.flatMap((mark) => marks(data, mark, colours, width)), limits(data, colours)],
  };
}

export const hasOnlyDots = (data) => data.series.every(({ kind }) => kind === "dots");

export function xAxis(data, view, colours, width) {
  const zoomed = view.low > data.x.low || view.high < data.x.high;
  const labelled = zoomed ? ticks(data.x, view.low, view.high, Math.max(2, Math.floor(width / 150))) : data.x.ticks;
  return axis(data.x, [data.x.low, data.x.high], labelled, colours, 12);
}

function axis(of, ends, labelled, colours, margin = 8) {
  const values = labelled.filter((value) => !of.whole || Number.isInteger(value)).map((value) => place(of, value));
  return {
    type: "value",
    min: place(of, ends[0]),
    max: place(of, ends[1]),
    axisLine: { show: false },
    axisTick: { show: false, customValues: values },
    axisLabel: {
      customValues: values,
      formatter: (position) => tickText(valueAt(of, position), of.unit),
      color: colours.soft,
      fontSize: 12,
      margin,
      hideOverlap: true,
    },
    splitLine: { lineStyle: { color: colours.rule } },
  };
}

/** Zoom with the wheel and Ctrl, or with two fingers: the page keeps scrolling under the plain wheel and one finger. */
const dataZoom = (data, view) => ({
  type: "inside",
  filterMode: "none",
  zoomOnMouseWheel: "ctrl",
  moveOnMouseMove: false,
  moveOnMouseWheel: false,
  preventDefaultMouseMove: false,
  startValue: place(data.x, view.low),
  endValue: place(data.x, view.high),
});

const pointer = (colours) => ({ type: "line", lineStyle: { color: colours.soft, type: "solid" }, label: { show: false } });

function marks(data, { series, index }, colours, width) {
  const colour = colours.of(series.colour);
  const points = series.y.map((y, k) => [place(data.x, series.x[k]), place(data.y, y)]);
  if (series.kind === "steps" && series.y.length) points.push([place(data.x, series.x.at(-1)), place(data.y, series.y.at(-1))]);
  const drawn = {
    id: `${index}`,
    name: series.name,
    data: points,
    itemStyle: { color: colour },
    label: labels(series, colours),
    labelLayout: ({ rect, labelRect }) => {
      const fits = labelRect.x + labelRect.width < width;
      return { hideOverlap: true, dy: -8, ...(fits ? {} : { x: rect.x - 6, align: "right" }) };
    },
    emphasis: { scale: 1.5 },
    ...FORMS[series.kind](points, lineStyle(series, colour), names(data).indexOf(series.name)),
  };
  return series.low || series.high ? [drawn, whiskers(data, series, index, colour)] : [drawn];
}

/** The names of the series, once each. Series of one name belong together, such as a curve and its dots. */
export const names = (data) => [...new Set(data.series.map(({ name }) => name))];

const FORMS = {
  line: (points, lineStyle) => ({ type: "line", ...lone(points), lineStyle }),
  steps,
  dots: (points, _, place) => ({
    type: "scatter",
    symbol: place % 2 ? "rect" : "circle",
    symbolSize: points.length > 400 ? 6 : 8,
    large: points.length > 5000,
  }),
};

const lineStyle = ({ band, dash }, color) => ({ color, width: band ? 6 : 2, opacity: band ? 0.35 : 1, type: dash ?? "solid" });

/** Steps as one path. ECharts' own leave out what is shorter than 2 pixels, and so draw a small step as a slope. */
function steps(points, { color, width, opacity, type }) {
  const path = (api) => {
    const runs = [];
    points.slice(0, -1).forEach(([x, y], k) => {
      if (y === null) return;
      if (k === 0 || points[k - 1][1] === null) runs.push([]);
      runs.at(-1).push(api.coord([x, y]), api.coord([points[k + 1][0], y]));
    });
    const style = { stroke: color, lineWidth: width, opacity, fill: null, lineDash: type === "solid" ? null : type };
    return { type: "group", children: runs.map((run) => ({ type: "polyline", shape: { points: run }, style })) };
  };
  return { type: "custom", clip: true, silent: true, renderItem: ({ dataIndex }, api) => (dataIndex === 0 ? path(api) : null) };
}

/** Show a value between two gaps, of which no line tells, as a dot. */
function lone(points) {
  const known = (k) => k >= 0 && k < points.length && points[k][1] !== null;
  const alone = points.map((_, k) => known(k) && !known(k - 1) && !known(k + 1));
  return { showAllSymbol: true, symbolSize: 5, symbol: (_, { dataIndex }) => (alone[dataIndex] ? "circle" : "none") };
}

const labels = (series, colours) => ({
  show: series.labels !== null,
  formatter: ({ dataIndex }) => series.labels[dataIndex] ?? "",
  position: "right",
  color: colours.ink,
  textBorderColor: colours.paper,
  textBorderWidth: 3,
  fontSize: 12,
});

/** The intervals of y. An end outside the frame is cut there, and an arrowhead says so. */
function whiskers(data, series, index, color) {
  const style = { stroke: color, lineWidth: 1.25, fill: null };
  const [bottom, top] = [place(data.y, data.y.low), place(data.y, data.y.high)];
  const arm = (api, end, outward) => {
    const y = Math.min(Math.max(end, bottom), top);
    const [[x, from], [, to]] = [api.coord([api.value(0), api.value(1)]), api.coord([api.value(0), y])];
    const lean = y === end ? 0 : 5 * outward;
    const points = [[x, from], [x, to], [x - 5, to + lean], [x, to], [x + 5, to + lean]];
    return { type: "polyline", shape: { points }, style };
  };
  return {
    id: `${index}-interval`,
    type: "custom",
    clip: true,
    silent: true,
    data: series.x.map((x, k) => [x, series.y[k], series.low?.[k] ?? null, series.high?.[k] ?? null].map((v, of) => place(of ? data.y : data.x, v))),
    encode: { x: 0, y: [1, 2, 3] },
    renderItem: (_, api) => {
      const ends = [[api.value(2), -1], [api.value(3), 1]].filter(([end]) => Number.isFinite(end));
      return Number.isFinite(api.value(1)) ? { type: "group", children: ends.map(([end, outward]) => arm(api, end, outward)) } : null;
    },
  };
}

/** The limits as dashed lines with their names. A limit outside the frame is a name with an arrow to it. */
const limits = (data, colours) => ({
  id: "limits",
  type: "line",
  data: [],
  silent: true,
  markLine: {
    symbol: "none",
    silent: true,
    lineStyle: { type: [4, 4], color: colours.ink, width: 1.25 },
    label: { color: colours.ink, fontSize: 12, rotate: 0, textBorderColor: colours.paper, textBorderWidth: 3 },
    data: data.limits.map(({ value, name, of, left }) => {
      const { low, high } = data[of];
      const arrow = value > high ? (of === "x" ? " →" : " ↑") : value < low ? (of === "x" ? " ←" : " ↓") : "";
      return {
        [`${of}Axis`]: place(data[of], Math.min(Math.max(value, low), high)),
        lineStyle: { opacity: arrow ? 0 : 1 },
        label: { formatter: name + arrow, ...(of === "x" ? beside(data, value) : { position: left ? "insideStartTop" : "insideEndTop" }) },
      };
    }),
  },
});

/** Names stand one below another at the lower end of the frame, where no distribution is; over time, above it. */
function beside({ group, x, limits }, value) {
  if (group) return { position: "end", distance: 2 };
  const values = limits.filter(({ of }) => of === "x").map((limit) => limit.value);
  const row = values.length - 1 - values.indexOf(value);
  const [low, high, at] = [x.low, x.high, value].map((end) => place(x, end));
  const align = (at - low) / (high - low) > 0.6 ? "right" : "left";
  return { position: "start", distance: [0, -2 - 13 * row], align, verticalAlign: "bottom", padding: [0, 5] };
}
