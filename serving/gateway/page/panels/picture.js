// The panel of pictures: drop, choose or pick one, see which class it is.

import { SCENES } from "./scenes.js";
import { showClass } from "../bars.js";
import { element } from "../dom.js";
import { pngOf, takeFiles } from "../files.js";
import { Panel } from "../panel.js";

const SIDE = 256; // pixels of a drawn picture
const FIRST = "ship"; // the drawn picture that is asked at once

export function startPicture(model, initial) {
  const { name, labels, preprocessing } = model;
  const panel = new Panel(name);
  const show = showClass(model);
  const [height, width] = preprocessing.size;
  const known = Object.keys(SCENES).filter((thing) => labels.includes(thing));
  const canvas = element(`${name}-canvas`);
  const small = element(`${name}-small`);

  // The part that the model is given, in the form of its input: the central part, or all of it, squeezed.
  const draw = (picture) => {
    const scale = Math.min(picture.width / width, picture.height / height);
    const size = preprocessing.resize === "crop" ? [scale * width, scale * height] : [picture.width, picture.height];
    const cut = [(picture.width - size[0]) / 2, (picture.height - size[1]) / 2, ...size];
    for (const target of [canvas, small]) {
      const context = target.getContext("2d");
      context.imageSmoothingQuality = "high";
      context.fillStyle = "#fff";
      context.fillRect(0, 0, target.width, target.height);
      context.drawImage(picture, ...cut, 0, 0, target.width, target.height);
    }
  };

  const take = (file, input) => panel.askFile(file, draw, show, input);

  const scene = (thing) => {
    const picture = document.createElement("canvas");
    picture.width = picture.height = SIDE;
    const context = picture.getContext("2d");
    context.scale(picture.width / 100, picture.height / 100);
    SCENES[thing](context);
    return picture;
  };

  for (const thing of known) {
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-label", `A drawn ${thing}`);
    const picture = scene(thing);
    button.append(picture);
    button.addEventListener("click", () => take(pngOf(picture), { scene: thing }));
    element(`${name}-scenes`).append(button);
  }
  [small.width, small.height] = [width, height];
  small.classList.toggle("grey", preprocessing.colour === "grey");
  const side = Math.max(canvas.width, canvas.height) / Math.max(width, height);
  [canvas.width, canvas.height] = [Math.round(side * width) || 1, Math.round(side * height) || 1];
  element(`${name}-drawn`).hidden = !known.length;
  takeFiles(canvas, [element(`${name}-file`), element(`${name}-camera`)], (file) => take(file, null));

  const restore = (input) => {
    const thing = known.find((one) => one === input?.scene) ?? known.find((one) => one === FIRST) ?? known[0];
    if (thing) take(pngOf(scene(thing)), { scene: thing });
  };
  restore(initial);
  return { panel, restore };
}
