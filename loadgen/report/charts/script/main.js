// Makes the page's charts interactive. Without it the page has the same figures as drawings, and all of its tables.

import { announce, element } from "./dom.js";
import { Group, Plot } from "./plot.js";
import { requestPanel } from "./request.js";

const members = new Map();
for (const figure of document.querySelectorAll("figure.chart")) {
  const data = JSON.parse(figure.querySelector('script[type="application/json"]').textContent);
  const name = data.group ?? `alone ${data.key}`;
  members.set(name, [...(members.get(name) ?? []), { figure, data }]);
}

const plots = new Map();
const groups = new Map();
for (const [name, figures] of members) {
  const group = new Group(figures.map(({ data }) => data));
  groups.set(name, group);
  for (const { figure, data } of figures) plots.set(figure, new Plot(figure, data, group));
}

const near = new IntersectionObserver(
  (entries) => {
    for (const { target } of entries.filter(({ isIntersecting }) => isIntersecting)) {
      near.unobserve(target);
      plots.get(target).build();
    }
  },
  { rootMargin: "600px" },
);
for (const figure of plots.keys()) near.observe(figure);

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plots.forEach((plot) => plot.draw()));

requestPanel();

/** Close long parts on a phone, whose reader would scroll past them; on paper all are open. */
const folds = document.querySelectorAll("details.fold");
if (matchMedia("(max-width: 600px)").matches) folds.forEach((fold) => (fold.open = false));
addEventListener("beforeprint", () => folds.forEach((fold) => (fold.open = true)));

/** Let rows and buttons with a span of time show it in the charts over time. */
for (const node of document.querySelectorAll("[data-from][data-to]")) {
  node.addEventListener("click", () => {
    const group = groups.get("time");
    group?.zoom(Number(node.dataset.from), Number(node.dataset.to));
    group?.plots[0].figure.scrollIntoView({ block: "nearest" });
  });
}

for (const box of document.querySelectorAll(".copy")) {
  const source = box.querySelector("code, pre") ?? box;
  const text = source.textContent;
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
      announce("Copied");
    } catch {
      getSelection().selectAllChildren(source); // the reader copies it
    }
  };
  const button = element("button", { type: "button", class: "copy-button", onclick: copy }, "Copy");
  source.after(" ", button);
}
