// The panel of molecules: type or pick one, see it drawn, with what the model says of it, such as its activity in assays.

import { ASSAYS } from "./assays.js";
import { Bars, scoresOf } from "../bars.js";
import { element, make } from "../dom.js";
import { Panel } from "../panel.js";

const PAUSE = 300; // milliseconds without a key before a molecule is asked for

// How like the molecule is to the nearest one of the training, and whether that is too little to be sure: text and doubt.
function nearness(prediction, nearest) {
  const similarity = prediction?.[nearest];
  if (typeof similarity !== "number") return [];
  const told = `Nearest training molecule: similarity ${similarity.toFixed(2)} of 1.`;
  if (!prediction.unlike_training) return [told];
  return [make("strong", {}, "Unlike the training molecules: these answers are less certain."), ` ${told}`];
}

export function startMolecules({ name, labels, outputs }, initial) {
  const nearest = outputs.find(({ unit }) => unit === "similarity")?.name;
  const bars = new Bars(element(`${name}-bars`), labels, ASSAYS);
  const field = element(`${name}-smiles`);
  const panel = new Panel(name, field);
  const drawing = element(`${name}-drawing`);
  element(`${name}-nearest`).hidden = !nearest;
  let timer = 0;

  const show = (predictions) => {
    const scores = scoresOf(predictions?.[0]);
    const found = predictions?.[0].smiles;
    element(`${name}-known`).textContent = found && found !== field.value.trim() ? `Its SMILES is ${found}` : "";
    element(`${name}-nearest`).replaceChildren(...nearness(predictions?.[0], nearest));
    bars.show(scores, ...labels.filter((label) => scores?.[label] >= 0.5));
  };

  const draw = (smiles) => {
    drawing.alt = `Structure of ${smiles}`;
    drawing.src = `/api/v1/${name}/drawing?smiles=${encodeURIComponent(smiles)}`;
  };

  const predict = () => {
    clearTimeout(timer);
    const smiles = field.value.trim();
    drawing.hidden = true;
    drawing.removeAttribute("src");
    if (smiles) {
      panel.ask({ smiles }, (predictions) => {
        show(predictions);
        if (predictions) draw(smiles);
      });
    } else {
      panel.cancel();
      show(null);
    }
  };

  drawing.addEventListener("load", () => (drawing.hidden = false));
  field.addEventListener("input", () => {
    clearTimeout(timer);
    panel.cancel(true);
    timer = setTimeout(predict, PAUSE);
  });
  for (const button of element(`${name}-try`).querySelectorAll("[data-smiles]")) {
    button.addEventListener("click", () => {
      field.value = button.dataset.smiles;
      predict();
    });
  }

  const first = field.value;
  const restore = (input) => {
    field.value = typeof input?.smiles === "string" ? input.smiles : first;
    predict();
  };
  restore(initial);
  return { panel, restore };
}
