// The panel of a model that labels texts: type one, see its class.

import { Panel, element, showClass } from "./shared.js";

const PAUSE = 300; // milliseconds without a key before a text is asked for

export function startLabel({ name, labels }) {
  const panel = new Panel(name);
  const show = showClass(name, labels);
  const text = element(`${name}-text`);
  let timer = 0;

  const answered = (predictions) => {
    const unknown = [...new Set(predictions?.[0].unknown ?? [])].map((word) => `“${word}”`).join(", ");
    element(`${name}-unknown`).textContent = unknown && `The model does not know ${unknown}.`;
    show(predictions);
  };

  text.addEventListener("input", () => {
    clearTimeout(timer);
    panel.cancel();
    if (!text.value.trim()) answered(null);
    else timer = setTimeout(() => panel.ask({ text: text.value }, answered), PAUSE);
  });
}
