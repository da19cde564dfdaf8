// This browser's last questions to a model, each with a link that asks it again. They stay in the browser.

import { LONGEST, SETTLED } from "./address.js";
import { scoresOf } from "./bars.js";
import { element, figure, make, percent } from "./dom.js";
import { ASKED } from "./panel.js";

const KEPT = 20; // questions of a model
const SHOWN = 80; // characters of one
const WORDS = 3; // of the next ones

export class Questions {
  constructor({ name }) {
    this.name = name;
    this.key = `bookserve-questions-${name}`;
    this.last = -Infinity;
    this.kept = this.read();
    document.addEventListener(ASKED, ({ detail }) => this.add(detail));
    addEventListener("storage", ({ key }) => {
      if (key !== this.key && key !== null) return;
      this.kept = this.read();
      this.show();
    });
    element("questions-clear").addEventListener("click", () => {
      this.keep([]);
      element("questions-title").focus();
    });
    element("questions").hidden = false;
    this.show();
  }

  // What was kept; what another program wrote there is left out.
  read() {
    try {
      const kept = JSON.parse(localStorage.getItem(this.key) ?? "[]");
      const whole = ({ hash, shown, answer }) => [hash, shown, answer].every((text) => typeof text === "string") && hash.startsWith("#try=");
      return kept.filter((one) => one && whole(one) && one.hash.length <= LONGEST && Number.isFinite(one.at)).slice(0, KEPT);
    } catch {
      return [];
    }
  }

  keep(kept) {
    this.kept = kept;
    try {
      if (kept.length) localStorage.setItem(this.key, JSON.stringify(kept));
      else localStorage.removeItem(this.key);
    } catch {
      // the browser keeps nothing, or no more: the list is that of this page
    }
    this.show();
  }

  // Of questions that follow each other as fast as a hand moves only the last one is kept.
  add({ hash, input, predictions, version }) {
    if (!hash) return;
    const now = performance.now();
    const others = (now - this.last < SETTLED ? this.kept.slice(1) : this.kept).filter((one) => one.hash !== hash);
    this.last = now;
    this.keep([{ hash, shown: shownOf(input), answer: answerOf(predictions[0]), version, at: Date.now() }, ...others].slice(0, KEPT));
  }

  show() {
    const count = this.kept.length;
    element("questions-title").textContent = count ? `Your last questions (${count})` : "Your last questions";
    element("questions-hint").textContent = count
      ? `The newest ${KEPT}, kept in this browser alone. A link asks again.`
      : "What you ask is listed here, in this browser alone. Photographs are not kept.";
    element("questions-clear").hidden = !count;
    const items = this.kept.map(({ hash, shown, answer, version, at }) =>
      make("li", {}, make("a", { href: hash }, shown), make("span", { class: "hint" }, ` ${answer && `${answer}, `}version ${version}, ${new Date(at).toLocaleString()}`)),
    );
    element("questions-list").replaceChildren(...items);
  }
}

function shownOf(input) {
  const { text, smiles, x, scene, strokes, board, human } = input;
  const marks = (row) => row.map((mark) => mark || "–").join("");
  const said =
    text ?? smiles ?? (scene && `A drawn ${scene}`) ?? (strokes && `A drawing of ${strokes.length} ${strokes.length === 1 ? "stroke" : "strokes"}`) ??
    (board && `${[0, 3, 6].map((from) => marks(board.slice(from, from + 3))).join(" ")}, you as ${human}`) ??
    (x === undefined ? JSON.stringify(input) : [x].flat(2).join(", "));
  return said.length > SHOWN ? `${said.slice(0, SHOWN)}…` : said;
}

// The likeliest class, the next words, or the first number of the answer.
export function answerOf(prediction) {
  if (Array.isArray(prediction.words)) return prediction.words.slice(0, WORDS).map(({ word }) => `“${word}”`).join(", ");
  const scores = scoresOf(prediction);
  if (scores) {
    const best = prediction.class ?? Object.keys(scores).reduce((one, label) => (scores[label] > scores[one] ? label : one));
    return Number.isFinite(scores[best]) && scores[best] >= 0 && scores[best] <= 1 ? `${best} ${percent(scores[best])}` : String(best);
  }
  if (prediction.class !== undefined) return String(prediction.class);
  const [name, value] = Object.entries(prediction).find(([, item]) => typeof item === "number") ?? [];
  return name === undefined ? "" : `${name} ${figure(value)}`;
}
