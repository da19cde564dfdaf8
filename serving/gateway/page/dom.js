// Elements of the page: finding them, making them, the colours of the scheme, and numbers for a person.

export const element = (id) => document.getElementById(id);

export const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

// An element with attributes, and children that are elements or text.
export function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// A probability. Rounding says neither that the model is certain nor that something is impossible.
export function percent(share) {
  if (share > 0.9995) return "> 99.9 %";
  if (share < 0.0005) return "< 0.1 %";
  return `${(100 * share).toFixed(1)} %`;
}

// A figure with the digits that mean something.
export const figure = (value) => (Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(4))));

// A table with a head line, in which an empty cell names nothing; the first cell of each row names it.
export function table(caption, head, rows) {
  const columns = make("tr", {}, ...head.map((text) => (text === "" ? make("td") : make("th", { scope: "col" }, text))));
  const lines = rows.map(([first, ...others]) => make("tr", {}, make("th", { scope: "row" }, first), ...others.map((cell) => make("td", {}, cell))));
  const made = make("table", { class: "grid" }, make("caption", {}, caption), make("thead", {}, columns), make("tbody", {}, ...lines));
  return make("div", { class: "scrolls", tabindex: "0", role: "group", "aria-label": caption }, made);
}

// Each value of a prediction by its place, such as "probabilities 7".
export function leaves(value, place = []) {
  if (value === null || typeof value !== "object") return [[place.join(" "), value]];
  return Object.entries(value).flatMap(([key, item]) => leaves(item, [...place, Array.isArray(value) ? Number(key) + 1 : key]));
}
