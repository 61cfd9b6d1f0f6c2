// The details of one request: beside the charts, opened by its dot or its row in a table.

import { element } from "./dom.js";
import { valueText } from "./text.js";
import { axisText } from "./values.js";

const SVG = "http://www.w3.org/2000/svg";

/** Make the panel and let dots and table rows open it; nothing where the page has no requests. */
export function requestPanel() {
  const source = document.getElementById("requests");
  if (!source) return;
  const { columns, rows } = JSON.parse(source.textContent);
  const places = new Map(rows.map(([index], place) => [index, place]));
  const panel = new Panel(columns, rows);
  document.addEventListener("loadgen:request", ({ detail }) => places.has(detail) && panel.show(places.get(detail)));
  const open = (row) => document.dispatchEvent(new CustomEvent("loadgen:request", { detail: Number(row.dataset.request) }));
  for (const row of document.querySelectorAll("tr[data-request]")) {
    row.tabIndex = 0;
    row.addEventListener("click", () => open(row));
    row.addEventListener("keydown", ({ key }) => key === "Enter" && open(row));
  }
}

class Panel {
  constructor(columns, rows) {
    Object.assign(this, { columns, rows, place: 0 });
    this.title = element("h3", { id: "request-title", tabindex: "-1" });
    this.body = element("div");
    const step = (by, label) => element("button", { type: "button", onclick: () => this.show(this.place + by) }, label);
    this.previous = step(-1, "Previous");
    this.next = step(1, "Next");
    const close = element("button", { type: "button", onclick: () => this.close() }, "Close");
    const buttons = element("p", { class: "buttons" }, this.previous, this.next, close);
    this.box = document.body.appendChild(element("dialog", { class: "request", "aria-labelledby": "request-title" }, this.title, this.body, buttons));
    this.box.addEventListener("keydown", (event) => this.key(event));
  }

  key({ key }) {
    if (key === "Escape") this.close();
    if (key === "ArrowLeft") this.show(this.place - 1);
    if (key === "ArrowRight") this.show(this.place + 1);
  }

  close() {
    this.box.close();
    this.opener?.focus();
  }

  show(place) {
    if (!(place in this.rows)) return;
    this.place = place;
    const row = this.rows[place];
    this.title.textContent = `Request ${row[0]}`;
    const facts = this.columns.flatMap(({ name, unit }, k) => (k === 0 || name === "chunks" ? [] : [fact(name, row[k], unit)]));
    const chunks = row[this.columns.findIndex(({ name }) => name === "chunks")];
    this.body.replaceChildren(element("dl", { class: "facts" }, ...facts), ...(chunks?.length ? timeline(chunks) : []));
    this.previous.disabled = place === 0;
    this.next.disabled = place === this.rows.length - 1;
    if (this.box.open) return;
    this.opener = document.activeElement;
    this.box.show();
    this.title.focus();
  }
}

function fact(name, value, unit) {
  const text = typeof value === "number" || value === null ? axisText(value, { unit, whole: !unit }) : `${value}`;
  return element("div", {}, element("dt", {}, name), element("dd", {}, text));
}

/** Return when each chunk came, in milliseconds since the request was sent. */
function timeline(chunks) {
  const end = chunks.at(-1) || 1;
  const drawing = document.createElementNS(SVG, "svg");
  drawing.setAttribute("class", "chunks");
  drawing.setAttribute("role", "img");
  const range = `from ${valueText(chunks[0] / 1e3, "s")} to ${valueText(end / 1e3, "s")}`;
  drawing.setAttribute("aria-label", `${chunks.length} chunks ${range}`);
  for (const offset of chunks) {
    const mark = drawing.appendChild(document.createElementNS(SVG, "line"));
    const x = `${(100 * offset) / end}%`;
    for (const [key, value] of [["x1", x], ["x2", x], ["y1", "0"], ["y2", "100%"]]) mark.setAttribute(key, value);
  }
  return [element("p", { class: "note" }, `Chunks ${range} after it was sent`), drawing];
}
