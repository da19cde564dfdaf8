// The panel of a model that takes tensors: give them as JSON, see the outputs as JSON.

import { Panel, element } from "./shared.js";

const LARGE = 64; // numbers; inputs of more have no example

export function startTensors({ name, inputs }) {
  const panel = new Panel(name);
  const body = element(`${name}-body`);
  const answer = element(`${name}-answer`);
  body.value = example(inputs);
  element(`${name}-ask`).addEventListener("click", () => {
    let content;
    try {
      content = JSON.parse(body.value);
    } catch (error) {
      panel.cancel();
      panel.say(`This is no JSON: ${error.message}`, "");
      return;
    }
    panel.ask(content, (predictions) => {
      answer.textContent = predictions ? JSON.stringify(predictions, null, 1) : "";
    });
  });
}

// A body with zeros, where the inputs are small.
function example(inputs) {
  const sizes = inputs.map(({ shape }) => shape.map((size) => size ?? 1));
  if (!inputs.length || sizes.flatMap((size) => [size.reduce((all, one) => all * one, 1)]).some((all) => all > LARGE)) return "";
  const zeros = ([size, ...others], value) => (size === undefined ? value : Array.from({ length: size }, () => zeros(others, value)));
  const named = inputs.map(({ name, dtype }, place) => [name, zeros(sizes[place], dtype === "object" ? "" : 0)]);
  return JSON.stringify({ inputs: Object.fromEntries(named) });
}
