// Bars for the numbers of labels, and how the likeliest class is shown.

import { element, make, percent } from "./dom.js";

const [MANY, FEW] = [30, 10]; // of more than so many labels, so many are shown

// The outputs of a prediction that are a number for each label.
export function scoresOf(prediction) {
  return Object.values(prediction ?? {}).find((value) => value && typeof value === "object" && !Array.isArray(value));
}

export class Bars {
  // `meanings` has a few words for labels that say nothing to most people.
  constructor(table, labels, meanings = {}) {
    this.rows = new Map();
    for (const label of labels) {
      const row = table.tBodies[0].insertRow();
      const head = document.createElement("th");
      head.scope = "row";
      head.textContent = label;
      if (meanings[label]) head.append(" ", make("small", {}, meanings[label]));
      const bar = document.createElement("progress");
      bar.max = 1;
      bar.value = 0;
      bar.setAttribute("aria-label", `Probability of ${label}`);
      row.append(head);
      row.insertCell().append(bar);
      this.rows.set(label, { row, bar, text: row.insertCell() });
    }
  }

  // Without probabilities the bars are empty. `best` are the labels to set off.
  show(probabilities, ...best) {
    const order = [...this.rows.keys()].sort((a, b) => (probabilities?.[b] ?? 0) - (probabilities?.[a] ?? 0));
    const shown = this.rows.size > MANY ? order.slice(0, FEW) : order;
    for (const [label, { row, bar, text }] of this.rows) {
      const value = probabilities?.[label];
      bar.value = value ?? 0;
      text.textContent = value === undefined ? "" : value >= 0 && value <= 1 ? percent(value) : value.toPrecision(4);
      row.classList.toggle("best", best.includes(label));
      row.hidden = !shown.includes(label);
    }
  }
}

// A share as words: a class may well be wrong that is less likely than all others together, or less likely than most of
// the wrong ones among the test rows were, below `doubt`.
export function sureness(word, share, doubt = 0) {
  if (!(share >= 0 && share <= 1)) return "";
  if (word === "probability" && share < doubt) return `${word} ${percent(share)}: not sure. Below ${percent(doubt)}, half or more of the answers for the test rows were wrong.`;
  return `${word} ${percent(share)}${word === "probability" && share < 0.5 ? ": not sure" : ""}`;
}

// How a picture's likeliest class is shown: its name, its probability, and a bar a class.
export function showClass({ name, labels, outputs, evaluation }) {
  const word = outputs.some(({ unit }) => unit === "probability") ? "probability" : "score";
  const bars = new Bars(element(`${name}-bars`), labels);
  element(`${name}-sure`).classList.toggle("doubts", evaluation?.doubt > 0);
  return (predictions) => {
    const best = predictions?.[0]?.class;
    const scores = scoresOf(predictions?.[0]);
    const sure = scores?.[best];
    element(`${name}-class`).textContent = best ?? "–";
    element(`${name}-sure`).textContent = sureness(word, sure, evaluation?.doubt);
    bars.show(scores, best);
  };
}

