// One panel a model: its kind by what the gateway takes for it, its element made from the kind's template.

import { startBoard } from "./board.js";
import { startDrawing } from "./drawing.js";
import { startLabel } from "./label.js";
import { startLine } from "./line.js";
import { startMolecules } from "./molecules.js";
import { startNumbers } from "./numbers.js";
import { startPicture } from "./picture.js";
import { startPlane } from "./plane.js";
import { ask, element } from "./shared.js";
import { startTensors } from "./tensors.js";
import { startWords } from "./words.js";

const PLACE = "NAME"; // what a template has for the model's name
const STARTS = {
  // in the order of the page
  line: startLine,
  plane: startPlane,
  numbers: startNumbers,
  molecules: startMolecules,
  drawing: startDrawing,
  words: startWords,
  label: startLabel,
  picture: startPicture,
  board: startBoard,
  tensors: startTensors,
};

function kindOf({ form, inputs, outputs, labels, preprocessing }) {
  const single = (name) => outputs.some((output) => output.shape.length === 1 && (!name || output.name === name));
  switch (form) {
    case "image-classification":
      return preprocessing.resize === "centred" ? "drawing" : "picture";
    case "text":
      return labels.length ? "label" : "words";
    case "molecules":
    case "board":
      return form;
    case "regression":
    case "tabular":
      if (inputs[0].shape[1] === 1 && outputs.length === 1 && !labels.length) return "line";
      return inputs[0].shape[1] === 2 && labels.length === 2 && single("probability") ? "plane" : "numbers";
    default:
      return "tensors";
  }
}

// Adds the panels of models, and the links to them. A model that the gateway does not describe now is left out.
export async function addPanels(names) {
  const models = await Promise.all(names.map((name) => ask(`/api/v1/models/${encodeURIComponent(name)}`).catch(() => null)));
  const known = models.filter(Boolean).map((model) => ({ model, kind: kindOf(model) }));
  const order = Object.keys(STARTS);
  known.sort((a, b) => order.indexOf(a.kind) - order.indexOf(b.kind));
  for (const { model, kind } of known) addPanel(model, kind);
}

function addPanel(model, kind) {
  const { name } = model;
  const made = element(`${kind}-panel`).content.cloneNode(true);
  for (const part of made.querySelectorAll("*")) {
    for (const attribute of part.attributes) {
      if (attribute.value === PLACE || attribute.value.startsWith(`${PLACE}-`)) {
        attribute.value = name + attribute.value.slice(PLACE.length);
      }
    }
  }
  made.querySelector("h2").textContent = name;
  const link = document.createElement("a");
  Object.assign(link, { href: `#${encodeURIComponent(name)}`, id: `${name}-link`, textContent: name });
  element("links").append(link);
  element("panels").append(made);
  STARTS[kind](model);
}
