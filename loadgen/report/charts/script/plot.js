// One interactive chart in the place of a figure's static drawing.

import { CustomChart, LineChart, ScatterChart } from "echarts/charts";
import { DataZoomInsideComponent, GridComponent, MarkLineComponent, TooltipComponent } from "echarts/components";
import { connect, init, use } from "echarts/core";
import { LabelLayout } from "echarts/features";
import { CanvasRenderer } from "echarts/renderers";

import { announce, element } from "./dom.js";
import { GRID, hasOnlyDots, names, option, xAxis } from "./option.js";
import { place, valueAt } from "./scale.js";
import { axisText, dotText, valueTable, valuesAt } from "./values.js";

use([LineChart, ScatterChart, CustomChart, GridComponent, TooltipComponent, MarkLineComponent]);
use([DataZoomInsideComponent, LabelLayout, CanvasRenderer]);

const HELP = "Arrow keys read the values; plus and minus zoom; Escape shows all.";

/** Charts that share their x axis, and the part of it that they show. */
export class Group {
  constructor(datas) {
    this.low = Math.min(...datas.map(({ x }) => x.low));
    this.high = Math.max(...datas.map(({ x }) => x.high));
    this.view = { low: this.low, high: this.high };
    this.plots = [];
    this.leader = null; // the chart that the pointer or the keyboard is in
    for (const { x } of datas) [x.low, x.high] = [this.low, this.high];
  }

  get isZoomed() {
    return this.view.low > this.low || this.view.high < this.high;
  }

  /** Show x from `low` to `high` in all charts of the group. */
  zoom(low, high) {
    if (low >= this.high || high <= this.low) return;
    this.view = { low: Math.max(low, this.low), high: Math.min(high, this.high) };
    for (const plot of this.plots) plot.showView();
  }

  reset() {
    this.zoom(this.low, this.high);
  }

  /** Show what one chart has been zoomed to in the others. */
  follow(leader, view) {
    this.view = view;
    for (const plot of this.plots) if (plot !== leader) plot.showView();
  }
}

export class Plot {
  constructor(figure, data, group) {
    Object.assign(this, { figure, data, group, hidden: new Set(), chart: null, stop: null });
    this.label = `${data.title}. ${data.text}`;
    this.canvas = element("div", { class: "canvas", tabindex: "0", role: "application", "aria-label": `${this.label} ${HELP}` });
    this.canvas.setAttribute("aria-roledescription", "interactive chart");
    this.reset = element("button", { class: "reset", type: "button", onclick: () => this.group.reset() }, "Reset zoom");
    this.reset.hidden = true;
    const static_ = figure.querySelector(".static");
    static_.before(this.reset);
    static_.after(this.canvas);
    figure.append(valueTable(data));
    figure.querySelectorAll(".legend li").forEach((item, index) => this.toggle(item, names(data)[index]));
    group.plots.push(this);
  }

  /** Make a legend's item a button that hides and shows the series of its name. */
  toggle(item, name) {
    const press = () => {
      const hide = !this.hidden.has(name);
      if (hide) this.hidden.add(name);
      else this.hidden.delete(name);
      button.setAttribute("aria-pressed", `${!hide}`);
      this.draw();
    };
    const button = element("button", { type: "button", "aria-pressed": "true", onclick: press }, ...item.childNodes);
    item.append(button);
  }

  /** Replace the static drawing: done once the figure comes near the window. */
  build() {
    this.figure.classList.add("live");
    this.canvas.style.height = `${this.data.height + GRID.top + GRID.bottom}px`;
    this.chart = init(this.canvas, null, { renderer: "canvas" });
    this.draw();
    this.chart.on("click", ({ seriesId, dataIndex }) => this.choose(Number(seriesId), dataIndex));
    this.chart.on("datazoom", () => this.noteZoom());
    if (this.data.group) {
      this.chart.group = this.data.group;
      connect(this.data.group);
    }
    new ResizeObserver(() => this.resize()).observe(this.canvas);
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    this.canvas.addEventListener("dblclick", () => this.group.reset());
    this.canvas.addEventListener("pointerdown", (event) => this.drag(event));
    this.canvas.addEventListener("blur", () => this.chart.dispatchAction({ type: "hideTip" }));
    for (const kind of ["pointerdown", "pointermove", "focus"]) {
      this.canvas.addEventListener(kind, () => (this.group.leader = this), { capture: true });
    }
  }

  draw() {
    if (!this.chart) return;
    const tooltip = { confine: true, formatter: (marks) => this.tooltip(marks), enterable: false, transitionDuration: 0, className: "tip" };
    this.chart.setOption(option(this.data, this.group.view, this.hidden, this.colours(), this.canvas.clientWidth, tooltip), true);
  }

  resize() {
    if (!this.canvas.clientWidth) return; // not shown, such as on paper
    this.chart.resize();
    this.labelX();
  }

  /** The page's colours now: they change with the reader's colour scheme. */
  colours() {
    const style = getComputedStyle(this.figure);
    const of = (colour) => style.getPropertyValue(typeof colour === "number" ? `--s${colour % 6}` : `--${colour}`).trim();
    return { of, ink: of("ink"), soft: of("soft"), rule: of("rule"), paper: of("paper"), font: style.fontFamily };
  }

  labelX() {
    this.chart.setOption({ xAxis: xAxis(this.data, this.group.view, this.colours(), this.canvas.clientWidth) });
  }

  showView() {
    this.reset.hidden = !this.group.isZoomed;
    if (!this.chart) return;
    const [low, high] = [this.group.view.low, this.group.view.high].map((x) => place(this.data.x, x));
    this.chart.dispatchAction({ type: "dataZoom", startValue: low, endValue: high, escapeConnect: true });
    this.labelX();
  }

  /** Note what the wheel or two fingers have zoomed to. */
  noteZoom() {
    const [low, high] = [GRID.left, this.canvas.clientWidth - GRID.right].map((pixel) => this.toX(pixel));
    const view = { low: Math.max(this.group.low, low), high: Math.min(this.group.high, high) };
    const same = Math.abs(view.low - this.group.view.low) + Math.abs(view.high - this.group.view.high) < (view.high - view.low) / 1e3;
    if (!same) requestAnimationFrame(() => { this.group.follow(this, view); this.showView(); });
  }

  toX(pixel) {
    return valueAt(this.data.x, this.chart.convertFromPixel({ xAxisIndex: 0 }, pixel));
  }

  tooltip(marks) {
    if (!Array.isArray(marks)) {
      const series = this.data.series[Number(marks.seriesId)];
      return series ? element("p", {}, dotText(this.data, series, marks.dataIndex)) : "";
    }
    if (this.group.leader !== this) return ""; // the pointer is over another chart of the group: the line alone
    const x = valueAt(this.data.x, marks[0].axisValue);
    const rows = valuesAt(this.data, x, this.hidden, this.group.view).map(([name, text, { colour }]) => {
      const key = element("i", { class: "key", style: `background:${this.colours().of(colour)}` });
      return element("tr", {}, element("th", {}, key, name), element("td", {}, text));
    });
    return element("table", {}, element("caption", {}, axisText(x, this.data.x)), ...rows);
  }

  choose(series, k) {
    const request = this.data.series[series]?.requests?.[k];
    if (request !== undefined) document.dispatchEvent(new CustomEvent("loadgen:request", { detail: request }));
  }

  /** Zoom to what the pointer is drawn across. A finger scrolls the page instead. */
  drag(down) {
    if (down.button !== 0 || down.pointerType === "touch") return;
    const edge = this.canvas.getBoundingClientRect().left;
    const clamp = (event) => Math.min(Math.max(event.clientX - edge, GRID.left), this.canvas.clientWidth - GRID.right);
    const start = clamp(down);
    const box = this.canvas.appendChild(element("div", { class: "brush" }));
    const ends = (event) => [start, clamp(event)].sort((a, b) => a - b);
    const move = (event) => {
      const [left, right] = ends(event);
      Object.assign(box.style, { left: `${left}px`, width: `${right - left}px`, top: `${GRID.top}px`, bottom: `${GRID.bottom}px` });
    };
    const up = (event) => {
      window.removeEventListener("pointermove", move);
      box.remove();
      const [left, right] = ends(event);
      if (right - left > 5) this.group.zoom(this.toX(left), this.toX(right));
    };
    window.addEventListener("pointermove", move);
    window.addEventListener("pointerup", up, { once: true });
  }

  /** The places a key can go to, in order of x: the dots, or without any each x at which a shown series has a value. */
  stops() {
    const { low, high } = this.group.view;
    const shown = this.data.series.map((series, index) => ({ series, index })).filter(({ series }) => !this.hidden.has(series.name));
    const dots = shown.filter(({ series }) => series.kind === "dots");
    const marks = (dots.length ? dots : shown).flatMap(({ series, index }) =>
      series.y.map((y, k) => ({ x: series.x[k], y, index, k })).filter(({ x, y }) => x >= low && x <= high && y !== null),
    );
    marks.sort((a, b) => a.x - b.x);
    return dots.length ? marks : marks.filter(({ x }, k) => k === 0 || x !== marks[k - 1].x);
  }

  key(event) {
    const moves = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity };
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key in moves) this.moveBy(moves[event.key]);
    else if (event.key === "+" || event.key === "=") this.zoomBy(0.5);
    else if (event.key === "-") this.zoomBy(2);
    else if (event.key === "Escape") this.group.reset();
    else if (event.key === "Enter" && this.stop) this.choose(this.stop.index, this.stop.k);
    else return;
    event.preventDefault();
  }

  moveBy(steps) {
    const stops = this.stops();
    if (!stops.length) return;
    const from = this.stop ? stops.findIndex(({ index, k }) => index === this.stop.index && k === this.stop.k) : -1;
    this.stop = stops[Math.min(Math.max(from + steps, 0), stops.length - 1)];
    this.group.leader = this;
    const series = this.data.series[this.stop.index];
    if (hasOnlyDots(this.data)) {
      this.chart.dispatchAction({ type: "showTip", ...this.at(this.stop), position: "top" });
      return announce(dotText(this.data, series, this.stop.k));
    }
    const x = this.chart.convertToPixel({ xAxisIndex: 0 }, place(this.data.x, this.stop.x));
    this.chart.dispatchAction({ type: "showTip", x, y: GRID.top + this.data.height / 2 });
    const values = valuesAt(this.data, this.stop.x, this.hidden, this.group.view).map(([name, text]) => `${name} ${text}`.trim());
    return announce(`${axisText(this.stop.x, this.data.x)}: ${values.join(", ")}`);
  }

  /** The mark as ECharts counts it: among the series that are drawn. */
  at({ index, k }) {
    const order = this.chart.getOption().series.findIndex(({ id }) => id === `${index}`);
    return { seriesIndex: order, dataIndex: k };
  }

  zoomBy(factor) {
    const { low, high } = this.group.view;
    const middle = this.stop ? Math.min(Math.max(this.stop.x, low), high) : (low + high) / 2;
    const [from, centre, to] = [low, middle, high].map((x) => place(this.data.x, x));
    this.group.zoom(valueAt(this.data.x, centre - (centre - from) * factor), valueAt(this.data.x, centre + (to - centre) * factor));
  }
}
