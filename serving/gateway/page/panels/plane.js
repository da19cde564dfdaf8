// The panel of two numbers in and two classes: drag a point in the plane, see how probable the second class is there.

import { Plot } from "./plot.js";
import { Latest, ask } from "../api.js";
import { Bars } from "../bars.js";
import { element } from "../dom.js";
import { Panel } from "../panel.js";

const ACROSS = [-2.8, 2.8];
const UP = [-2.1, 2.1];
const START = [1, 0.5];
const [COLUMNS, ROWS] = [48, 36]; // of the shading

export function startPlane({ name, labels }, initial) {
  const panel = new Panel(name);
  const bars = new Bars(element(`${name}-bars`), labels);
  const field = document.createElement("canvas");
  field.width = COLUMNS;
  field.height = ROWS;
  let known = 0; // the version whose answers are the shading

  const paint = (plot) => {
    if (known) plot.context.drawImage(field, 0, 0, plot.canvas.width, plot.canvas.height);
    plot.grid([-2, -1, 0, 1, 2], [-1, 0, 1]);
    plot.dot(plot.point);
  };

  const latest = new Latest(async (point) => {
    if (!known) await shade().catch(() => {}); // the question below says what is wrong
    await panel.ask({ x: [point] }, (predictions, version) => {
      if (!predictions) known = 0; // it is as old as the answer was
      else if (version !== known) shade().then(() => plot.draw()).catch(() => {});
      const prediction = predictions?.[0];
      element(`${name}-class`).textContent = prediction?.class ?? "–";
      const shares = prediction && [1 - prediction.probability, prediction.probability];
      bars.show(shares && { [labels[0]]: shares[0], [labels[1]]: shares[1] }, prediction?.class);
      plot.draw();
    });
  });

  const moved = (point) => {
    const text = point.map((value) => value.toFixed(2)).join(", ");
    element(`${name}-point`).textContent = text;
    plot.canvas.setAttribute("aria-label", `A plane with a point at ${text}`);
    latest.run(point);
  };

  const plot = new Plot(element(`${name}-canvas`), { x: ACROSS, y: UP, point: START, step: 0.2, moved, paint });

  const shade = async () => {
    const centre = ([low, high], cell, cells) => low + ((high - low) * (cell + 0.5)) / cells;
    const x = [];
    for (let row = ROWS - 1; row >= 0; row--) {
      for (let column = 0; column < COLUMNS; column++) x.push([centre(ACROSS, column, COLUMNS), centre(UP, row, ROWS)]);
    }
    const { version, predictions } = await ask((client) => client.predict(name, { x }));
    const context = field.getContext("2d");
    const pixels = context.createImageData(COLUMNS, ROWS);
    predictions.forEach(({ probability }, cell) => {
      // Orange for the first class, blue for the second, clear where neither is likelier.
      const lean = 2 * probability - 1;
      pixels.data.set([...(lean < 0 ? [224, 133, 38] : [54, 111, 224]), 170 * Math.abs(lean)], 4 * cell);
    });
    context.putImageData(pixels, 0, 0);
    known = version;
  };

  const restore = (input) => {
    const row = input?.x?.[0];
    plot.put(...(Array.isArray(row) && row.length === 2 && row.every(Number.isFinite) ? row : START));
  };
  restore(initial);
  return { panel, restore };
}
