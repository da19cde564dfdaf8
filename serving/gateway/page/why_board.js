// Which marks on a board mattered: the gateway asks the model again without each, for the same side to move.

import { ask } from "./api.js";
import { figure, make, table } from "./dom.js";

const LEAST = 0.0005; // a change that means something

const marksOf = (board) => board.filter(Boolean).length;
const placeOf = (square) => `row ${1 + Math.floor(square / 3)}, column ${1 + (square % 3)}`;

export function cost({ body }) {
  const marks = marksOf(body.board);
  return marks ? `Asks the model ${marks} times more.` : "";
}

export async function explain({ body }, { name }, signal) {
  const { predictions, without } = await ask((client) => client.explain(name, body, { signal }));
  const [{ player, move, probabilities, value }] = predictions;
  const rows = without.map((row) => ({ ...row, adds: probabilities[move] - row.probabilities[move], worth: value - row.value }));
  const most = Math.max(...rows.map(({ adds }) => Math.abs(adds)));
  const what = `${player}’s move to ${placeOf(move)}`;
  const squares = body.board.map((mark, square) => {
    const adds = rows.find((row) => row.square === square)?.adds ?? 0;
    const cell = make("td", {}, square === move ? `(${player})` : mark);
    if (most >= LEAST && adds) {
      cell.style.setProperty("--share", Math.abs(adds) / most);
      cell.className = adds > 0 ? "raises" : "lowers";
    }
    return cell;
  });
  const hint = most < LEAST
    ? `No single mark matters: without any of them the probability of ${what} stays.`
    : `Orange marks raise the probability of ${what} (${figure(probabilities[move])}), blue ones lower it: the stronger the colour, the more.`;
  const picture = make("table", { class: "marks", "aria-label": hint }, make("tbody", {}, ...[0, 3, 6].map((row) => make("tr", {}, ...squares.slice(row, row + 3)))));
  const signed = (change) => `${change > 0 ? "+" : ""}${figure(change)}`;
  const sorted = rows.sort((a, b) => Math.abs(b.adds) - Math.abs(a.adds));
  const lines = sorted.map(({ square, mark, adds, worth }) => [`${mark} at ${placeOf(square)}`, signed(adds), signed(worth)]);
  return [picture, make("p", { class: "hint" }, hint), table(`What each mark adds to ${what}`, ["mark", "probability", `expected for ${player}`], lines)];
}
