// The panel of MNIST: draw a digit or give a picture of one, see the ten probabilities.

import { DrawingField } from "./drawing_field.js";
import { Bars, Panel, element, percent, takeFiles } from "./shared.js";

export function startMnist() {
  const panel = new Panel("mnist");
  const bars = new Bars(element("mnist-bars"), ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]);

  const show = (prediction) => {
    element("mnist-class").textContent = prediction?.class ?? "–";
    element("mnist-sure").textContent = prediction ? `${percent(prediction.probabilities[prediction.class])} sure` : "";
    bars.show(prediction?.probabilities, prediction?.class);
  };

  const predict = async (picture) => {
    const form = new FormData();
    form.append("file", picture);
    const predictions = await panel.ask(form);
    if (predictions) show(predictions[0]);
    else if (panel.message.textContent) show(null);
  };

  const cleared = () => {
    panel.cancel();
    show(null);
  };

  const canvas = element("mnist-canvas");
  const field = new DrawingField(canvas, async () => predict(await field.picture()), cleared);

  const take = async (file) => {
    try {
      await field.showPicture(file);
    } catch {
      show(null);
      panel.fail("The browser cannot read this file as a picture.");
      return;
    }
    await predict(file);
  };

  element("mnist-clear").addEventListener("click", () => field.clear());
  takeFiles(canvas, element("mnist-file"), take);
}
