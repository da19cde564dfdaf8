// The panel of one sign on a field, such as a digit: draw it or give a picture of it, see the probability of each class.

import { DrawingField } from "./drawing_field.js";
import { Panel, element, showClass, takeFiles } from "./shared.js";

export function startDrawing({ name, labels }) {
  const panel = new Panel(name);
  const show = showClass(name, labels);

  // While a stroke is drawn, and after it until its own answer is there, no older answer stands beside it.
  const begun = () => {
    panel.cancel();
    show(null);
  };

  const canvas = element(`${name}-canvas`);
  const field = new DrawingField(canvas, { begun, changed: () => panel.askPicture(field.picture(), show) });

  element(`${name}-clear`).addEventListener("click", () => field.clear());
  takeFiles(canvas, element(`${name}-file`), (file) => {
    begun();
    panel.askFile(file, (bitmap) => field.showPicture(bitmap), show);
  });
}
