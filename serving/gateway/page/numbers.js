// The panel of a row of numbers: change one, see what the model says of the row.

import { Latest, Panel, element } from "./shared.js";

export function startNumbers({ name, inputs, columns }) {
  const panel = new Panel(name);
  const width = inputs[0].shape[1];
  const fields = Array.from({ length: width }, (_, place) => {
    const label = document.createElement("label");
    const field = document.createElement("input");
    Object.assign(field, { type: "number", step: "any", value: "0" });
    label.append(columns[place] ?? `x${place + 1}`, " ", field);
    element(`${name}-row`).append(label);
    return field;
  });

  const latest = new Latest(async (row) => {
    await panel.ask({ x: width === 1 ? row[0] : [row] }, (predictions) => {
      const { class: best, ...others } = predictions?.[0] ?? {};
      element(`${name}-class`).textContent = best ?? "–";
      element(`${name}-answer`).textContent = predictions ? JSON.stringify(others, null, 1) : "";
    });
  });

  const changed = () => {
    const row = fields.map((field) => field.valueAsNumber);
    if (row.every(Number.isFinite)) latest.run(row);
  };
  for (const field of fields) field.addEventListener("input", changed);
  changed();
}
