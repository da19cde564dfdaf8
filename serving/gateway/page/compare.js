// Two versions on the same input: what another version says of what was asked last, beside the answer.

import { Newest } from "./api.js";
import { element, figure, leaves, make, table } from "./dom.js";
import { ASKED, UNANSWERED } from "./panel.js";

const ROWS = 40; // of the table

export class Comparison {
  constructor() {
    this.newest = new Newest();
    this.asked = null;
    this.choice = element("compare-version");
    this.choice.addEventListener("change", () => this.ask());
    document.addEventListener(ASKED, ({ detail }) => {
      this.asked = detail;
      this.ask();
    });
    document.addEventListener(UNANSWERED, () => {
      this.asked = null;
      this.ask();
    });
  }

  // The versions that can be asked beside the one that answers: the others that the model server has loaded.
  offer({ version: answers, versions }) {
    const others = versions.filter(({ version, state }) => state === "AVAILABLE" && version !== answers);
    const chosen = this.choice.value;
    const option = ({ version, labels }) => make("option", { value: version }, `version ${version}${labels?.length ? ` (${labels.join(", ")})` : ""}`);
    this.choice.replaceChildren(make("option", { value: "" }, "no other version"), ...others.map(option));
    this.choice.value = others.some(({ version }) => String(version) === chosen) ? chosen : "";
    element("compare").hidden = !others.length;
    if (this.choice.value !== chosen) this.ask();
  }

  async ask() {
    this.newest.cancel();
    this.show([], "");
    const other = this.choice.value;
    if (!other || !this.asked) return;
    const { repeat, version, predictions } = this.asked;
    const outcome = await this.newest.run((signal) => repeat(other, signal));
    if (!outcome) return;
    if (outcome.error) this.show([], outcome.error.message);
    else this.show([beside(version, predictions[0], outcome.value.version, outcome.value.predictions[0])], "");
  }

  show(content, message) {
    element("compare-content").replaceChildren(...content);
    element("compare-message").textContent = message;
  }
}

function beside(first, one, second, other) {
  const [left, right] = [new Map(leaves(one)), new Map(leaves(other))];
  const text = (value) => (value === undefined ? "" : typeof value === "number" ? figure(value) : String(value));
  const rows = [...new Set([...left.keys(), ...right.keys()])].slice(0, ROWS).map((place) => {
    const [a, b] = [left.get(place), right.get(place)];
    const difference = typeof a === "number" && typeof b === "number" ? figure(b - a) : a === b ? "" : "differs";
    return [place, text(a), text(b), difference];
  });
  return table("The same input, two versions", ["value", `version ${first}`, `version ${second}`, "difference"], rows);
}
