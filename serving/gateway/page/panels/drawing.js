// The panel of one sign on a field, such as a digit: draw it or give a picture of it, see the probability of each class.

import { DrawingField } from "./drawing_field.js";
import { showClass } from "../bars.js";
import { element } from "../dom.js";
import { takeFiles } from "../files.js";
import { Panel } from "../panel.js";

export function startDrawing(model, initial) {
  const { name } = model;
  const panel = new Panel(name);
  const show = showClass(model);

  // While a stroke is drawn, and after it until its own answer is there, no older answer stands beside it.
  const begun = () => {
    panel.cancel();
    show(null);
  };

  const canvas = element(`${name}-canvas`);
  const field = new DrawingField(canvas, { begun, changed: () => panel.askPicture(field.picture(), show, { strokes: field.strokes }) });

  element(`${name}-clear`).addEventListener("click", () => field.clear());
  takeFiles(canvas, [element(`${name}-file`), element(`${name}-camera`)], (file) => {
    begun();
    panel.askFile(file, (bitmap) => field.showPicture(bitmap), show);
  });

  const restore = (input) => {
    field.clear();
    if (Array.isArray(input?.strokes)) field.redraw(input.strokes);
  };
  if (initial) restore(initial);
  return { panel, restore };
}
