// The panel of Tox21: type or pick a molecule, see it drawn, with the probability of each of twelve assays.

import { Bars, Panel, element } from "./shared.js";

const ASSAYS = [
  "NR-AR", "NR-AR-LBD", "NR-AhR", "NR-Aromatase", "NR-ER", "NR-ER-LBD",
  "NR-PPAR-gamma", "SR-ARE", "SR-ATAD5", "SR-HSE", "SR-MMP", "SR-p53",
];
const PAUSE = 300; // milliseconds without a key before a molecule is asked for

export function startTox21() {
  const panel = new Panel("tox21");
  const bars = new Bars(element("tox21-bars"), ASSAYS);
  const field = element("tox21-smiles");
  const drawing = element("tox21-drawing");
  let timer = 0;

  const show = (predictions) => {
    const probabilities = predictions?.[0].probabilities;
    bars.show(probabilities, ...ASSAYS.filter((assay) => probabilities?.[assay] >= 0.5));
  };

  const draw = (smiles) => {
    drawing.alt = `Structure of ${smiles}`;
    drawing.src = `/api/v1/tox21/drawing?smiles=${encodeURIComponent(smiles)}`;
  };

  const predict = () => {
    clearTimeout(timer);
    const smiles = field.value.trim();
    drawing.hidden = true;
    drawing.removeAttribute("src");
    if (smiles) {
      panel.ask({ smiles }, (predictions) => {
        show(predictions);
        draw(smiles);
      });
    } else {
      panel.cancel();
      show(null);
    }
  };

  drawing.addEventListener("load", () => (drawing.hidden = false));
  field.addEventListener("input", () => {
    clearTimeout(timer);
    panel.cancel();
    timer = setTimeout(predict, PAUSE);
  });
  for (const button of document.querySelectorAll("#tox21 [data-smiles]")) {
    button.addEventListener("click", () => {
      field.value = button.dataset.smiles;
      predict();
    });
  }
  predict();
}
