// The panel of tic-tac-toe: play against the model as X or O, with what it thinks of each square.

import { element, percent } from "../dom.js";
import { Panel } from "../panel.js";

const LINES = [[0, 1, 2], [3, 4, 5], [6, 7, 8], [0, 3, 6], [1, 4, 7], [2, 5, 8], [0, 4, 8], [2, 4, 6]];
const THINKING = 450; // milliseconds, so that a move can be followed

export function startBoard({ name }, initial) {
  const panel = new Panel(name);
  const hints = element(`${name}-hints`);
  const status = element(`${name}-status`);
  const squares = [];
  let board = [];
  let human = "X";
  let game = 0; // a move that comes for an earlier game is dropped
  let thoughts = null;

  const turn = () => (board.filter(Boolean).length % 2 ? "O" : "X");
  const line = () => LINES.find(([a, b, c]) => board[a] && board[a] === board[b] && board[a] === board[c]);
  const over = () => Boolean(line()) || board.every(Boolean);

  const paint = () => {
    const winning = line() ?? [];
    squares.forEach((square, place) => {
      const share = hints.checked && !over() && !board[place] ? (thoughts?.[place] ?? null) : null;
      square.firstChild.textContent = board[place];
      square.lastChild.textContent = share === null ? "" : percent(share);
      square.style.setProperty("--share", share ?? 0);
      square.disabled = Boolean(board[place]) || over() || turn() !== human;
      square.dataset.mark = board[place];
      square.classList.toggle("winning", winning.includes(place));
      const named = `Row ${1 + Math.floor(place / 3)}, column ${1 + (place % 3)}`;
      square.setAttribute("aria-label", `${named}: ${board[place] || "free"} ${square.lastChild.textContent}`.trim());
    });
  };

  const verdict = () => {
    if (line()) return board[line()[0]] === human ? "You win." : "The model wins.";
    if (board.every(Boolean)) return "A draw.";
    return turn() === human ? `Your move: you are ${human}.` : "The model thinks …";
  };

  const next = () => {
    thoughts = null;
    status.textContent = verdict();
    element(`${name}-value`).textContent = "";
    paint();
    if (over()) {
      panel.cancel();
    } else {
      panel.ask({ board, player: turn() }, answered, { input: turn() === human && { board, human } });
    }
  };

  const answered = async (predictions) => {
    if (!predictions) {
      if (turn() !== human) status.textContent = "The model gives no answer: start a new game when it is back.";
      return;
    }
    const [{ move, probabilities, value }] = predictions;
    thoughts = probabilities;
    element(`${name}-value`).textContent = `For ${turn()} the model expects ${value >= 0 ? "+" : ""}${value.toFixed(2)}`;
    paint();
    if (turn() === human) return;
    const mine = game;
    await new Promise((resolve) => setTimeout(resolve, THINKING));
    if (mine !== game) return;
    board[move] = turn();
    next();
  };

  const side = (player) => element(`${name}-try`).querySelector(`input[type="radio"][value="${player}"]`);

  const start = (from = Array(9).fill("")) => {
    game += 1;
    panel.cancel();
    board = from;
    human = side("X").checked ? "X" : "O";
    next();
  };

  const restore = (input) => {
    const known = Array.isArray(input?.board) && input.board.length === 9 && input.board.every((mark) => ["X", "O", ""].includes(mark));
    side(input?.human === "O" ? "O" : "X").checked = true;
    start(known ? [...input.board] : undefined);
  };

  for (let place = 0; place < 9; place++) {
    const square = document.createElement("button");
    square.type = "button";
    square.append(document.createElement("span"), document.createElement("small"));
    square.addEventListener("click", () => {
      board[place] = human;
      next();
    });
    squares.push(square);
  }
  element(`${name}-board`).append(...squares);
  hints.addEventListener("change", paint);
  element(`${name}-new`).addEventListener("click", () => start());
  for (const player of ["X", "O"]) side(player).addEventListener("change", () => start());
  restore(initial);
  return { panel, restore };
}
