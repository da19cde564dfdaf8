// A model card's Markdown as elements: headings, paragraphs, lists, tables, code. Nothing in it can become markup, and
// its pictures are left out, as they stand under "Figures".

import { make, table } from "./dom.js";

const KINDS = [
  [/^```/, code],
  [/^#{1,6} /, heading],
  [/^\|/, grid],
  [/^[-*] /, list],
  [/^!\[/, (lines) => [null, lines.slice(1)]],
  [/^\s*$/, (lines) => [null, lines.slice(1)]],
];

export function render(text) {
  const made = [];
  let lines = text.split(/\r?\n/);
  let title = "";
  while (lines.length) {
    const [, take] = KINDS.find(([pattern]) => pattern.test(lines[0])) ?? [null, paragraph];
    const [element, rest] = take(lines, title);
    if (element) made.push(element);
    if (take === heading) title = element?.textContent ?? "";
    lines = rest;
  }
  return made;
}

// `code` and **strong** of a line.
function inline(text) {
  return text.split(/(`[^`]+`|\*\*[^*]+\*\*)/).map((part) => {
    if (/^`.+`$/.test(part)) return make("code", {}, part.slice(1, -1));
    return /^\*\*.+\*\*$/.test(part) ? make("strong", {}, part.slice(2, -2)) : part;
  });
}

const span = (lines, fits) => {
  const end = lines.findIndex((line) => !fits(line));
  return end < 0 ? lines.length : end;
};

function code(lines) {
  const end = 1 + span(lines.slice(1), (line) => !line.startsWith("```"));
  const text = lines.slice(1, end).join("\n");
  return [make("pre", { tabindex: "0", role: "group", "aria-label": "Code" }, text), lines.slice(end + 1)];
}

// The page has a heading of the first level, and the card one of the second.
function heading([line, ...rest]) {
  const [, signs, text] = /^(#+) (.*)$/.exec(line);
  return signs.length === 1 ? [null, rest] : [make("h3", {}, ...inline(text)), rest];
}

function grid(lines, title) {
  const end = span(lines, (line) => line.startsWith("|"));
  const cells = lines.slice(0, end).map((line) => line.replace(/^\||\|\s*$/g, "").split("|").map((cell) => cell.trim().replaceAll("`", "")));
  const [head, , ...rows] = cells;
  return [table(title || "Table", head, rows), lines.slice(end)];
}

function list(lines) {
  const end = span(lines, (line) => /^[-*] /.test(line));
  return [make("ul", {}, ...lines.slice(0, end).map((line) => make("li", {}, ...inline(line.slice(2))))), lines.slice(end)];
}

function paragraph(lines) {
  const end = Math.max(1, span(lines, (line) => line.trim() && !/^(```|#{1,6} |\||!\[)/.test(line)));
  return [make("p", {}, ...inline(lines.slice(0, end).join(" "))), lines.slice(end)];
}
