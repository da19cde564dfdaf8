// Which atoms of a molecule mattered: the gateway asks the model again without the share of each, and draws them marked.

import { ask } from "./api.js";
import { scoresOf } from "./bars.js";
import { figure, make, table } from "./dom.js";

const MOST = 100; // atoms, which is the gateway's bound
const ROWS = 10; // of the table, the atoms that matter most
const LEAST = 0.0005; // a change that means something

export const cost = () => `Asks the model once more for each atom, at most ${MOST} times.`;

export async function explain({ body }, { name, outputs }, signal) {
  const { predictions, without, kept } = await ask((client) => client.explain(name, body, { signal }));
  const aside = ["atom", ...outputs.filter(({ unit }) => unit === "similarity").map((output) => output.name)];
  const numbers = (prediction) => scoresOf(prediction) ?? Object.fromEntries(Object.entries(prediction).filter(([key, value]) => !aside.includes(key) && typeof value === "number"));
  const whole = numbers(predictions[0]);
  const rows = without.map((row) => ({ atom: `${row.symbol} ${row.atom + 1}`, numbers: numbers(row) }));
  const labels = Object.keys(whole).sort((a, b) => whole[b] - whole[a]);
  const choice = make("select", { id: "why-label" }, ...labels.map((label) => make("option", {}, label)));
  const shown = make("div");
  const show = () => shown.replaceChildren(...marked(choice.value, whole, rows, { name, smiles: body.smiles }));
  choice.addEventListener("change", show);
  show();
  const still = kept.length ? [make("p", { class: "hint" }, `Left out are the fragments with the atom. What the model is told of the whole molecule (${kept.join(", ")}: weight, charges, rings …) stays the same, as a molecule without an atom is another one. What an atom adds by those is not shown here.`)] : [];
  return [make("label", { class: "field", for: "why-label" }, "What of"), choice, shown, ...still];
}

// The drawing for one label, and its table. A change is what the atom adds: the score with it less that without it.
function marked(label, whole, rows, { name, smiles }) {
  const adds = rows.map(({ numbers }) => whole[label] - numbers[label]);
  const most = Math.max(...adds.map(Math.abs));
  if (most < LEAST) return [make("p", { class: "hint" }, `No single atom matters: without any of them the score of “${label}” stays.`)];
  const weights = adds.map((value) => Math.round((100 * value) / most));
  const hint = `Orange atoms raise “${label}” (${figure(whole[label])}), blue ones lower it: the stronger the colour, the more.`;
  const source = `/api/v1/${name}/drawing?${new URLSearchParams({ smiles, weights })}`;
  const picture = make("div", { class: "picture" }, make("img", { src: source, alt: hint, width: 360, height: 260 }));
  const sorted = rows.map(({ atom }, place) => [atom, adds[place]]).sort(([, a], [, b]) => Math.abs(b) - Math.abs(a));
  const lines = sorted.slice(0, ROWS).map(([atom, value]) => [atom, `${value > 0 ? "+" : ""}${figure(value)}`]);
  const caption = "The atoms that add most, numbered as in the SMILES";
  return [picture, make("p", { class: "hint" }, hint), table(caption, ["atom", "adds"], lines)];
}
