// The panel of one sign on a field, such as a digit: draw it or give a picture of it, see the probability of each class.

import { DrawingField } from "./drawing_field.js";
import { Newest, ask } from "../api.js";
import { showClass } from "../bars.js";
import { element } from "../dom.js";
import { takeFiles } from "../files.js";
import { Panel } from "../panel.js";

export function startDrawing(model, initial) {
  const { name } = model;
  const panel = new Panel(name);
  const showAnswer = showClass(model);
  const small = element(`${name}-small`);
  const seen = new Newest();
  let file = null; // what is asked for
  [small.height, small.width] = model.preprocessing.size;

  // The sign as the gateway scales and centres it for the model; it is asked for behind the answer.
  const showSmall = async () => {
    const outcome = await seen.run(async (signal) => createImageBitmap(await ask((client) => client.preview(name, file, { given: true, signal }))));
    if (outcome?.value) small.getContext("2d").drawImage(outcome.value, 0, 0);
  };
  const show = (predictions) => {
    seen.cancel();
    small.getContext("2d").clearRect(0, 0, small.width, small.height);
    showAnswer(predictions);
    if (predictions) showSmall();
  };

  // While a stroke is drawn, and after it until its own answer is there, no older answer stands beside it.
  const begun = () => {
    panel.cancel();
    show(null);
  };

  const changed = () => {
    file = field.picture();
    panel.askPicture(file, show, { strokes: field.strokes });
  };

  const canvas = element(`${name}-canvas`);
  const field = new DrawingField(canvas, { begun, changed });

  element(`${name}-clear`).addEventListener("click", () => field.clear());
  takeFiles(canvas, [element(`${name}-file`), element(`${name}-camera`)], (given) => {
    begun();
    file = given;
    panel.askFile(file, (bitmap) => field.showPicture(bitmap), show);
  });

  const restore = (input) => {
    field.clear();
    if (Array.isArray(input?.strokes)) field.redraw(input.strokes);
  };
  if (initial) restore(initial);
  return { panel, restore };
}
