// The panel of a model: its kind by what the gateway takes for it, its element made from the kind's template.

import { element } from "../dom.js";
import { startBoard } from "./board.js";
import { startDrawing } from "./drawing.js";
import { startLabel } from "./label.js";
import { startLine } from "./line.js";
import { startMolecules } from "./molecules.js";
import { startNumbers } from "./numbers.js";
import { startPicture } from "./picture.js";
import { startPlane } from "./plane.js";
import { startTensors } from "./tensors.js";
import { startWords } from "./words.js";

const PLACE = "NAME"; // what a template has for the model's name
const STARTS = {
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

// Puts the panel of a model into `place` and starts it with an input, null for its own first one. Returns the panel and
// how it takes another input.
export function startPanel(model, place, input) {
  const kind = kindOf(model);
  const { name } = model;
  const made = element(`${kind}-panel`).content.cloneNode(true);
  for (const part of made.querySelectorAll("*")) {
    for (const attribute of part.attributes) {
      if (attribute.value === PLACE || attribute.value.startsWith(`${PLACE}-`)) {
        attribute.value = name + attribute.value.slice(PLACE.length);
      }
    }
  }
  place.replaceChildren(made);
  return STARTS[kind](model, input);
}
