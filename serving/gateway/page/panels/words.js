// The panel of the language model: type the beginning of a sentence, take one of the next words, or let it go on.

import { element, percent } from "../dom.js";
import { Panel } from "../panel.js";

const PAUSE = 250; // milliseconds without a key before the next words are asked for
const SUGGESTIONS = 8;

export function startWords({ name }, initial) {
  const text = element(`${name}-text`);
  const panel = new Panel(name, text);
  const warmth = element(`${name}-temperature`);
  let timer = 0;

  const noteUnknown = (unknown) => {
    const names = [...new Set(unknown)].map((word) => `“${word}”`).join(", ");
    element(`${name}-unknown`).textContent = unknown.length ? `The model does not know ${names}.` : "";
  };

  const append = (words) => {
    const gap = /\s$/.test(text.value) || !text.value ? "" : " ";
    text.value += gap + words.join(" ");
    text.scrollTop = text.scrollHeight;
    suggest();
  };

  const button = ({ word, probability }) => {
    const choice = document.createElement("button");
    choice.type = "button";
    const share = document.createElement("small");
    share.textContent = percent(probability);
    choice.append(word === "<eos>" ? "end of sentence" : word, " ", share);
    choice.addEventListener("click", () => append([word]));
    return choice;
  };

  const show = (predictions) => {
    element(`${name}-next`).replaceChildren(...(predictions?.[0].words ?? []).map(button));
    noteUnknown(predictions?.[0].unknown ?? []);
  };

  const suggest = () => {
    clearTimeout(timer);
    if (text.value.trim()) {
      panel.ask({ text: text.value, top_k: SUGGESTIONS }, show);
    } else {
      panel.cancel();
      show(null);
    }
  };

  const generate = () => {
    clearTimeout(timer);
    const count = element(`${name}-words`);
    if (!count.checkValidity() || !Number.isInteger(count.valueAsNumber)) {
      panel.refuse(`Please give a whole number of words from ${count.min} to ${count.max}.`, count);
      return;
    }
    const body = { text: text.value, words: count.valueAsNumber, temperature: warmth.valueAsNumber };
    panel.ask(body, (predictions) => predictions && append(predictions[0].words), { method: "generate", input: { text: text.value } });
  };

  text.addEventListener("input", () => {
    clearTimeout(timer);
    panel.cancel(true);
    timer = setTimeout(suggest, PAUSE);
  });
  warmth.addEventListener("input", () => (element(`${name}-warmth`).textContent = warmth.valueAsNumber.toFixed(1)));
  element(`${name}-generate`).addEventListener("click", generate);
  element(`${name}-clear`).addEventListener("click", () => {
    text.value = "";
    suggest();
    text.focus();
  });

  const first = text.value;
  const restore = (input) => {
    text.value = typeof input?.text === "string" ? input.text : first;
    suggest();
  };
  restore(initial);
  return { panel, restore };
}
