// The panel of a model that takes tensors: give them as JSON, see the outputs as JSON. Works for every model, from its
// contract alone.

import { Latest } from "../api.js";
import { element } from "../dom.js";
import { Panel } from "../panel.js";
import { Columns } from "./columns.js";

const LARGE = 4096; // values; larger inputs without an example are left to the person
const LARGEST = 1_000_000; // values that a button fills in
const SHOWN = 20_000; // characters of an answer

export function startTensors(model, initial) {
  const { name } = model;
  const body = element(`${name}-body`);
  const panel = new Panel(name, body);
  const answer = element(`${name}-answer`);

  const show = (predictions) => {
    const text = predictions ? JSON.stringify(predictions, null, 1) : "";
    answer.textContent = text.length > SHOWN ? `${text.slice(0, SHOWN)} …` : text;
  };

  const predict = () => {
    try {
      const given = JSON.parse(body.value);
      columns.fill(given?.inputs);
      panel.ask(given, show);
    } catch (error) {
      show(null);
      panel.refuse(`This is not JSON: ${error.message}`);
    }
  };

  const latest = new Latest((inputs) => panel.ask({ inputs }, show));
  const columns = new Columns(
    element(`${name}-row`),
    model,
    (inputs) => {
      body.value = pretty({ inputs });
      latest.run(inputs);
    },
    (field) => {
      show(null);
      panel.refuse(`Please give a number for ${field.parentNode.firstChild.textContent}.`, field);
    },
  );

  const fill = element(`${name}-zeros`);
  const all = model.inputs.reduce((sum, { shape }) => sum + count(shape), 0);
  fill.hidden = Boolean(example(model)) || all > LARGEST;
  fill.addEventListener("click", () => {
    body.value = JSON.stringify(zeros(model.inputs));
    columns.fill(zeros(model.inputs).inputs);
    predict();
  });

  const restore = (input) => {
    const first = example(model);
    body.value = input || first ? pretty(input ?? first) : "";
    columns.fill((input ?? first)?.inputs);
    if (body.value) predict();
    else show(null);
  };
  body.addEventListener("input", () => {
    panel.cancel();
    show(null);
  });
  element(`${name}-ask`).addEventListener("click", predict);
  restore(initial);
  return { panel, restore };
}

// The example of the contract, else zeros where the inputs are small; null where they are large.
export function example({ inputs, example: known }) {
  if (known) return { inputs: known };
  return inputs.length && inputs.every(({ shape }) => count(shape) <= LARGE) ? zeros(inputs) : null;
}

const count = (shape) => shape.reduce((all, size) => all * (size ?? 1), 1);

function zeros(inputs) {
  const sizes = inputs.map(({ shape }) => shape.map((size) => size ?? 1));
  const fill = ([size, ...others], value) => (size === undefined ? value : Array.from({ length: size }, () => fill(others, value)));
  const zero = (dtype) => (dtype === "object" ? "text" : dtype === "bool" ? false : 0);
  return { inputs: Object.fromEntries(inputs.map(({ name, dtype }, place) => [name, fill(sizes[place], zero(dtype))])) };
}

// Lists without lists in them on one line.
const pretty = (value) => JSON.stringify(value, null, 1).replace(/\[[^[\]{}]*\]/g, (list) => list.replace(/\s+/g, " "));
