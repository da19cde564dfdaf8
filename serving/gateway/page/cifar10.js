// The panel of CIFAR-10: drop, choose or pick a picture, see which of ten things it shows.

import { SCENES } from "./scenes.js";
import { Panel, element, pngOf, showClass, takeFiles } from "./shared.js";

const CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];
const SIDE = 32; // pixels of the model's pictures

export function startCifar10() {
  const panel = new Panel("cifar10");
  const show = showClass("cifar10", CLASSES);
  const canvas = element("cifar10-canvas");
  const small = element("cifar10-small");

  // The central square, as the gateway cuts it.
  const draw = (picture) => {
    const side = Math.min(picture.width, picture.height);
    const cut = [(picture.width - side) / 2, (picture.height - side) / 2, side, side];
    for (const target of [canvas, small]) {
      const context = target.getContext("2d");
      context.imageSmoothingQuality = "high";
      context.fillStyle = "#fff";
      context.fillRect(0, 0, target.width, target.height);
      context.drawImage(picture, ...cut, 0, 0, target.width, target.height);
    }
  };

  const take = (file) => panel.askFile(file, draw, show);

  const scene = (name) => {
    const picture = document.createElement("canvas");
    picture.width = picture.height = 8 * SIDE;
    const context = picture.getContext("2d");
    context.scale(picture.width / 100, picture.height / 100);
    SCENES[name](context);
    return picture;
  };

  for (const name of Object.keys(SCENES)) {
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-label", `A drawn ${name}`);
    const picture = scene(name);
    button.append(picture);
    button.addEventListener("click", () => take(pngOf(picture)));
    element("cifar10-scenes").append(button);
  }
  small.width = small.height = SIDE;
  take(pngOf(scene("ship")));
  takeFiles(canvas, element("cifar10-file"), take);
}
