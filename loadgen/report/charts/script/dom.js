/** Return an element with its attributes and children. Text is always a text node: nothing is parsed as markup. */
export function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

/** Tell a screen reader `text`, and nobody else. */
export function announce(text) {
  const live = document.querySelector(".spoken") ?? document.body.appendChild(element("div", { class: "spoken", "aria-live": "polite" }));
  live.textContent = text;
}

/** Return a table that scrolls by itself. Rows begin with a header. */
export function table(head, rows, label) {
  const line = (cells, first, rest) => element("tr", {}, ...cells.map((cell, k) => element(k ? rest : first, {}, cell)));
  const body = element("tbody", {}, ...rows.map((cells) => line(cells, "th", "td")));
  const inner = element("table", {}, element("thead", {}, line(head, "th", "th")), body);
  return element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, inner);
}
