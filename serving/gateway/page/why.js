// Which part of the input mattered: the same question again with one part changed at a time, and how much less the
// answer's score is then. It works for every model, since only predictions are asked for.

import { Newest, ask } from "./api.js";
import { scoresOf } from "./bars.js";
import { element, figure, make, table } from "./dom.js";
import { pngOf } from "./files.js";
import { ASKED, UNANSWERED } from "./panel.js";
import * as board from "./why_board.js";
import * as molecule from "./why_molecule.js";

const [CELLS, SIDE] = [6, 192]; // of a picture: the grid across and down, pixels of what is sent
const PARTS = 36; // of a text or a row; those behind are left as they are
const FEW = 16; // inputs of a request

// What is left out of the input of each task: what that costs, and the elements that show what came of it.
const WAYS = {
  molecules: molecule,
  board,
  "image-classification": { cost: () => times(CELLS ** 2), explain: (asked, model, signal) => byParts(asked, model, signal, pictureParts, heatOf) },
  text: partsOf(textParts),
  tabular: partsOf(rowParts),
  regression: partsOf(rowParts),
};

function wayOf({ form, labels, inputs }) {
  if (form === "text" && !labels.length) return null;
  if (WAYS[form]?.parts === rowParts && inputs[0].shape[1] < 2) return null;
  return WAYS[form] ?? null;
}

const times = (count) => (count ? `Asks the model ${count} times more.` : "");

function partsOf(parts) {
  const explain = (asked, model, signal) => byParts(asked, model, signal, parts, (_, found) => [tableOf(found)]);
  return { parts, cost: (asked, model) => times(parts(asked, model).length), explain };
}

export class Explanation {
  constructor(model) {
    this.model = model;
    this.newest = new Newest();
    this.way = wayOf(model);
    element("why").hidden = !this.way;
    if (!this.way) return;
    element("why-ask").addEventListener("click", () => this.explain());
    document.addEventListener(ASKED, ({ detail }) => this.ready(detail));
    document.addEventListener(UNANSWERED, () => this.say("", "When something was answered."));
  }

  // What was asked last can be explained, and costs so many questions.
  ready(asked) {
    this.asked = asked;
    const cost = this.way.cost(asked, this.model);
    this.say(cost, "There is nothing to leave out.");
  }

  // Whether there is something to explain, and what that costs; an older explanation goes.
  say(cost, otherwise) {
    this.newest.cancel();
    this.show([], "");
    element("why-ask").disabled = !cost;
    element("why-cost").textContent = cost || otherwise;
  }

  show(content, message) {
    element("why-content").replaceChildren(...content);
    element("why-message").textContent = message;
  }

  async explain() {
    this.show([make("p", { class: "hint" }, "Asking …")], "");
    const outcome = await this.newest.run((signal) => this.way.explain(this.asked, this.model, signal));
    if (outcome) this.show(outcome.value ?? [], outcome.error?.message ?? "");
  }
}

// Asks without one part at a time, and shows how the number that is watched changes.
async function byParts(asked, model, signal, parts, show) {
  const before = measure(asked.predictions[0]);
  const made = await parts(asked, model);
  const values = [];
  for (let from = 0; from < made.length; from += FEW) values.push(...(await askSome(model.name, made.slice(from, from + FEW), before.name, signal)));
  return show(asked, { before, parts: made.map((part, place) => ({ ...part, change: values[place] === null ? null : values[place] - before.value })) });
}

// The number of each part's prediction; null for one that the gateway refuses, such as a picture without a sign.
async function askSome(model, parts, name, signal) {
  try {
    const { predictions } = await ask((client) => send(client, model, parts.map(({ input }) => input), { signal }));
    return predictions.map((prediction) => measure(prediction, name).value);
  } catch (error) {
    if (error.status !== 400) throw error;
    if (parts.length === 1) return [null];
    const values = [];
    for (const part of parts) values.push(...(await askSome(model, [part], name, signal)));
    return values;
  }
}

function send(client, name, inputs, options) {
  if (inputs[0] instanceof Blob) return client.pictures(name, inputs, options);
  const [field] = Object.keys(inputs[0]);
  return client.predict(name, { [field]: inputs.map((input) => input[field]) }, options);
}

// The number that is watched: the score of a label, the likeliest one's first, or the first number of the answer.
function measure(prediction, wanted) {
  const scores = scoresOf(prediction);
  if (scores) {
    const name = wanted ?? prediction.class ?? Object.keys(scores).reduce((best, label) => (scores[label] > scores[best] ? label : best));
    return { name, value: scores[name] };
  }
  const [name, value] = Object.entries(prediction).find(([key, item]) => typeof item === "number" && (!wanted || key === wanted)) ?? ["", NaN];
  return { name, value };
}

function textParts({ body }) {
  const words = body.text.split(/\s+/).filter(Boolean);
  if (words.length < 2) return [];
  return words.slice(0, PARTS).map((word, place) => ({ name: word, input: { text: words.filter((_, other) => other !== place).join(" ") } }));
}

// Each number of a row by the one of the contract's example, or 0.
function rowParts({ body }, { columns, example }) {
  const row = [body.x].flat(2);
  const usual = Object.values(example ?? {})[0]?.[0] ?? [];
  return row.slice(0, PARTS).map((value, place) => {
    const other = Number.isFinite(usual[place]) && usual[place] !== value ? usual[place] : 0;
    const name = `${columns[place] ?? `x${place + 1}`} ${figure(other)} instead of ${figure(value)}`;
    return { name, input: { x: row.map((number, at) => (at === place ? other : number)) } };
  });
}

async function canvasOf({ shown }) {
  const bitmap = await createImageBitmap(shown, { imageOrientation: "from-image" });
  const scale = Math.min(1, SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = make("canvas", { width: Math.round(bitmap.width * scale) || 1, height: Math.round(bitmap.height * scale) || 1 });
  canvas.getContext("2d", { willReadFrequently: true }).drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas;
}

// Where a cell of the grid lies on a canvas.
const cellOf = ({ width, height }, place) => {
  const [across, down] = [place % CELLS, Math.floor(place / CELLS)];
  const [left, top] = [Math.floor((across * width) / CELLS), Math.floor((down * height) / CELLS)];
  return [left, top, Math.floor(((across + 1) * width) / CELLS) - left, Math.floor(((down + 1) * height) / CELLS) - top];
};

// Each cell of a picture covered: by the ground of a drawn sign, which is its corner's colour, else by the mean colour.
async function pictureParts(asked, { preprocessing }) {
  const canvas = await canvasOf(asked);
  const context = canvas.getContext("2d");
  const whole = context.getImageData(0, 0, canvas.width, canvas.height);
  const pixels = preprocessing.resize === "centred" ? 1 : whole.data.length / 4;
  const sums = [0, 0, 0];
  for (let at = 0; at < 4 * pixels; at += 4) for (const colour of [0, 1, 2]) sums[colour] += whole.data[at + colour];
  return Array.from({ length: CELLS ** 2 }, (_, place) => {
    context.putImageData(whole, 0, 0);
    context.fillStyle = `rgb(${sums.map((sum) => Math.round(sum / pixels)).join(" ")})`;
    context.fillRect(...cellOf(canvas, place));
    return { name: "", input: pngOf(canvas) };
  });
}

function tableOf({ before, parts }) {
  const sorted = [...parts].sort((a, b) => Math.abs(b.change ?? 0) - Math.abs(a.change ?? 0));
  const text = (change) => (change === null ? "refused" : `${change > 0 ? "+" : ""}${figure(change)}`);
  return table(`How ${before.name} (${figure(before.value)}) changes`, ["without, or with", "change"], sorted.map(({ name, change }) => [name, text(change)]));
}

// The picture with those cells marked that it needs: the more the score falls without one, the more.
async function heatOf(asked, { before, parts }) {
  const canvas = await canvasOf(asked);
  const context = canvas.getContext("2d");
  const falls = parts.map(({ change }) => Math.max(0, -(change ?? 0)));
  const most = Math.max(...falls);
  falls.forEach((fall, place) => {
    context.fillStyle = `rgb(214 93 14 / ${most ? (0.75 * fall) / most : 0})`;
    context.fillRect(...cellOf(canvas, place));
  });
  const hint = most > 0.001
    ? `Marked is what “${before.name}” needs: without the strongest cell its score falls by ${figure(most)}.`
    : `No single cell matters: without any of them the score of “${before.name}” stays.`;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", hint);
  canvas.className = "heat";
  return [canvas, make("p", { class: "hint" }, hint)];
}
