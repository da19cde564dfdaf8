// The panel of MNIST: draw a digit or give a picture of one, see the ten probabilities.

import { DrawingField } from "./drawing_field.js";
import { Panel, element, showClass, takeFiles } from "./shared.js";

export function startMnist() {
  const panel = new Panel("mnist");
  const show = showClass("mnist", ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]);

  // While a stroke is drawn, and after it until its own answer is there, no older answer stands beside it.
  const begun = () => {
    panel.cancel();
    show(null);
  };

  const canvas = element("mnist-canvas");
  const field = new DrawingField(canvas, { begun, changed: () => panel.askPicture(field.picture(), show) });

  element("mnist-clear").addEventListener("click", () => field.clear());
  takeFiles(canvas, element("mnist-file"), (file) => {
    begun();
    panel.askFile(file, (bitmap) => field.showPicture(bitmap), show);
  });
}
