// The panel of a model that labels texts: type one, see its class.

import { showClass } from "../bars.js";
import { element } from "../dom.js";
import { Panel } from "../panel.js";

const PAUSE = 300; // milliseconds without a key before a text is asked for

export function startLabel(model, initial) {
  const { name } = model;
  const text = element(`${name}-text`);
  const panel = new Panel(name, text);
  const show = showClass(model);
  let timer = 0;

  const answered = (predictions) => {
    const unknown = [...new Set(predictions?.[0].unknown ?? [])].map((word) => `“${word}”`).join(", ");
    element(`${name}-unknown`).textContent = unknown && `The model does not know ${unknown}.`;
    show(predictions);
  };

  const predict = () => {
    clearTimeout(timer);
    if (text.value.trim()) {
      panel.ask({ text: text.value }, answered);
    } else {
      panel.cancel();
      answered(null);
    }
  };

  const restore = (input) => {
    text.value = input?.text ?? "";
    predict();
  };

  text.addEventListener("input", () => {
    clearTimeout(timer);
    panel.cancel(true);
    timer = setTimeout(predict, PAUSE);
  });
  restore(initial);
  return { panel, restore };
}
