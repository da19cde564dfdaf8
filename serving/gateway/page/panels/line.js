// The panel of one number in and one out: drag a point along x, see the y of the fitted line.

import { Plot } from "./plot.js";
import { Latest, ask } from "../api.js";
import { colour, element } from "../dom.js";
import { Panel } from "../panel.js";

const RANGE = [-1, 2];
const STEPS = 30;
const START = 0.5;

export function startLine(model, initial) {
  const { name } = model;
  const output = model.outputs[0].name;
  const number = element(`${name}-x`);
  const panel = new Panel(name, number);
  let line = []; // points, of the answer of one version
  let fitted = 0;
  let y = null;

  const paint = (plot) => {
    plot.grid([-0.5, 0, 0.5, 1, 1.5], ticks(plot.y));
    plot.context.strokeStyle = colour("accent");
    if (line.length) plot.path(line.map((place) => plot.at(place)), 3);
    if (y === null) return;
    const [across, down] = plot.at([plot.point[0], y]);
    plot.context.strokeStyle = colour("quiet");
    plot.context.setLineDash([5, 5]);
    plot.path([[across, plot.canvas.height], [across, down], [0, down]], 1.5);
    plot.context.setLineDash([]);
    plot.dot([plot.point[0], y]);
  };

  const latest = new Latest(async (x) => {
    if (!line.length) await fit().catch(() => {}); // the question below says what is wrong
    await panel.ask({ x }, show);
  });

  const show = (predictions, version) => {
    if (!predictions) line = []; // it is as old as the answer was
    else if (version !== fitted) fit().then(() => plot.draw()).catch(() => {});
    y = predictions ? predictions[0][output] : null;
    element(`${name}-y`).textContent = y === null ? "–" : y.toFixed(3);
    const text = y === null ? "no answer" : `x ${plot.point[0].toFixed(2)}, y ${y.toFixed(2)}`;
    plot.canvas.setAttribute("aria-valuetext", text);
    plot.draw();
  };

  const moved = ([x]) => {
    if (number.valueAsNumber !== x) number.value = Number(x.toFixed(2));
    plot.canvas.setAttribute("aria-valuenow", x.toFixed(2));
    latest.run(x);
  };

  const plot = new Plot(element(`${name}-canvas`), { x: RANGE, y: [-4, 14], point: [START, 0], step: 0.05, moved, paint });

  const fit = async () => {
    const x = Array.from({ length: STEPS + 1 }, (_, step) => RANGE[0] + ((RANGE[1] - RANGE[0]) * step) / STEPS);
    const { version, predictions } = await ask((client) => client.predict(name, { x }));
    fitted = version;
    line = predictions.map((prediction, index) => [x[index], prediction[output]]);
    const ys = predictions.map((prediction) => prediction[output]);
    const [low, high] = [Math.min(...ys), Math.max(...ys)];
    const margin = 0.1 * (high - low) || 1;
    plot.y = [low - margin, high + margin];
  };

  // What is typed is asked as it is, also where the picture does not reach.
  number.addEventListener("input", () => {
    if (Number.isFinite(number.valueAsNumber)) {
      plot.put(number.valueAsNumber, plot.point[1]);
    } else {
      panel.refuse("Please give a number.");
      show(null);
    }
  });

  const restore = (input) => {
    const x = Number.isFinite(input?.x) ? input.x : START;
    number.value = x;
    plot.put(x, 0);
  };
  restore(initial);
  return { panel, restore };
}

// About five round numbers within a range.
function ticks([low, high]) {
  const rough = (high - low) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const found = [];
  for (let tick = Math.ceil(low / step); tick * step < high; tick++) found.push(Number((tick * step).toPrecision(6)));
  return found;
}
