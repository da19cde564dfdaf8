// The panel of a row of numbers: change one, or paste a row, and see what the model says of it.

import { Latest } from "../api.js";
import { Bars, scoresOf } from "../bars.js";
import { element, figure, make } from "../dom.js";
import { Panel } from "../panel.js";

export function startNumbers(model, initial) {
  const { name, inputs, columns, labels } = model;
  const panel = new Panel(name);
  const [{ name: tensor, shape }] = inputs;
  const width = shape[1];
  const bars = labels.length ? new Bars(element(`${name}-bars`), labels) : null;
  const fields = Array.from({ length: width }, (_, place) => {
    const field = make("input", { type: "number", step: "any", "aria-describedby": `${name}-message` });
    element(`${name}-row`).append(make("label", {}, columns[place] ?? `x${place + 1}`, field));
    return field;
  });
  const first = model.example?.[tensor]?.[0];

  const show = (predictions) => {
    const { class: best, ...others } = predictions?.[0] ?? {};
    const numbers = Object.entries(others).filter(([, value]) => typeof value === "number");
    element(`${name}-class`).textContent = best ?? numbers.map(([key, value]) => `${key} ${figure(value)}`).join(", ");
    if (bars) bars.show(scoresOf(others), best);
    const rest = bars && scoresOf(others) ? {} : others;
    element(`${name}-answer`).textContent = Object.keys(rest).length ? JSON.stringify(rest, null, 1) : "";
  };

  const latest = new Latest((row) => panel.ask({ x: width === 1 ? row[0] : [row] }, show));

  const changed = () => {
    const wrong = fields.find((field) => !Number.isFinite(field.valueAsNumber));
    if (wrong) {
      show(null);
      panel.refuse(`Please give a number for ${wrong.parentNode.firstChild.textContent}.`, wrong);
    } else {
      latest.run(fields.map((field) => field.valueAsNumber));
    }
  };

  const fill = (values, from = 0) => values.forEach((value, place) => fields[from + place] && (fields[from + place].value = value));

  fields.forEach((field, place) => {
    field.addEventListener("input", changed);
    // A row of a table goes into this field and those after it.
    field.addEventListener("paste", (event) => {
      const cells = event.clipboardData.getData("text").trim().split(/\r?\n/)[0].split(/[\t;,]/);
      if (cells.length < 2) return;
      event.preventDefault();
      fill(cells.map((cell) => cell.trim()), place);
      changed();
    });
  });

  const restore = (input) => {
    const row = input ? [input.x].flat(2) : (first ?? []);
    fill(fields.map((_, place) => (Number.isFinite(row[place]) ? row[place] : 0)));
    changed();
  };
  restore(initial);
  return { panel, restore };
}
