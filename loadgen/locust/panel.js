// Under locust's own charts and under the two tabs: what an LLM's users and its power meter see, from ./loadgen/panel.
"use strict";
(() => {
  const PERIOD_MS = 2000, WIDTH = 560, HEIGHT = 150, LEFT = 52, TOP = 12, BOTTOM = 24;
  const SERIES = [
    {key: "ttft_ms", title: "Time to first token, mean of 10 s, ms"},
    {key: "tokens_per_s", title: "Output tokens/s, mean of 10 s"},
    {key: "watts", title: "Power, W"},
    {key: "joules_per_token", title: "Energy per output token since the test began, J"},
  ];
  const box = document.createElement("section");
  box.id = "loadgen-panel";
  box.style.cssText = "display:none;flex-wrap:wrap;gap:24px;margin:24px 0;font:14px/1.4 Roboto,Helvetica,Arial,sans-serif";

  // Last in the column that locust draws its tabs in. Locust draws it anew now and then: so this is done again.
  const place = () => {
    const tabs = document.querySelector("#root [role=tablist]");
    const column = tabs && tabs.closest("[class*=MuiContainer-root]");
    if (column && column.lastElementChild !== box) column.append(box);
  };

  const shown = () => ["charts", "tokens", "energy"].includes(new URLSearchParams(location.search).get("tab"));

  // The page's own background says whether it is dark.
  const ink = () => {
    const [r, g, b] = (getComputedStyle(document.body).backgroundColor.match(/[\d.]+/g) || [255, 255, 255]).map(Number);
    return 0.3 * r + 0.6 * g + 0.1 * b < 128 ?
      {text: "#e8e8e8", rule: "#555", line: "#6fcf97"} : {text: "#222", rule: "#ccc", line: "#15803d"};
  };

  const text = (tag, words) => Object.assign(document.createElement(tag), {textContent: words});

  const short = (value) => value === 0 ? "0" : Number(value.toPrecision(3)).toString();

  const path = (points, x, y, key) => {
    let pen = "M";  // an unknown value lifts the pen: it is a gap, not a zero
    return points.map((p) => {
      if (p[key] === null) { pen = "M"; return ""; }
      const step = `${pen}${x(p.t_s).toFixed(1)},${y(p[key]).toFixed(1)}`;
      pen = "L";
      return step;
    }).join("");
  };

  const chart = (points, {key, title}, color) => {
    const known = points.filter((p) => p[key] !== null);
    const figure = document.createElement("figure");
    figure.style.cssText = `margin:0;color:${color.text}`;
    figure.append(text("figcaption", known.length ? `${title}: ${short(known.at(-1)[key])}` : `${title}: unknown`));
    if (known.length < 2) return figure;
    const end = Math.max(...points.map((p) => p.t_s)), start = points[0].t_s;
    const top = 1.1 * Math.max(...known.map((p) => p[key])) || 1;
    const x = (t) => LEFT + (WIDTH - LEFT - 8) * (t - start) / Math.max(end - start, 1e-9);
    const y = (v) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - v / top);
    const label = (px, py, anchor, words) =>
      `<text x="${px}" y="${py}" text-anchor="${anchor}" font-size="12" fill="${color.text}">${words}</text>`;
    const rule = (v) => `<line x1="${LEFT}" x2="${WIDTH - 8}" y1="${y(v)}" y2="${y(v)}" stroke="${color.rule}"/>` +
      label(LEFT - 6, y(v) + 4, "end", short(v));
    figure.insertAdjacentHTML("beforeend",
      `<svg viewBox="0 0 ${WIDTH} ${HEIGHT}" width="${WIDTH}" style="max-width:100%" role="img" aria-label="${title}">` +
      rule(0) + rule(top / 2) + rule(top) +
      label(LEFT, HEIGHT - 4, "start", `${Math.round(start)} s`) + label(WIDTH - 8, HEIGHT - 4, "end", `${Math.round(end)} s`) +
      `<path d="${path(points, x, y, key)}" fill="none" stroke="${color.line}" stroke-width="2"/></svg>`);
    return figure;
  };

  const draw = async () => {
    box.style.display = shown() ? "flex" : "none";
    if (!shown()) return;
    place();
    const answer = await fetch("./loadgen/panel");
    if (!answer.ok) return;
    const {problem, simulated, history} = await answer.json();
    const color = ink(), parts = [];
    if (simulated) parts.push(text("p", "Simulated: a model's joules, not a machine's."));
    if (problem) parts.push(text("p", problem[0].toUpperCase() + problem.slice(1) + "."));
    parts.forEach((p) => { p.style.cssText = `flex-basis:100%;margin:0;color:${color.text}`; });
    if (history.length) parts.push(...SERIES.map((series) => chart(history, series, color)));
    box.replaceChildren(...parts);
  };
  const again = () => { draw().catch(() => {}); };
  setInterval(again, PERIOD_MS);
  setInterval(() => { if ((box.style.display === "flex") !== shown()) again(); else if (shown()) place(); }, 200);
  again();
})();
