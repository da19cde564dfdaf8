// Asks the gateway every few seconds, so that the page learns within five that a server went, came back, or that a
// version was published.

import { ask } from "./api.js";

const PAUSE = 2_000; // milliseconds between an answer and the next question
const PATIENCE = 4_000; // milliseconds; a gateway that takes longer counts as away

// Calls `told(answer)` or `lost(error)` after each question. Returns a function that asks at once.
export function poll(question, told, lost) {
  let timer = 0;
  let busy = false;

  const look = async () => {
    clearTimeout(timer);
    if (busy) return;
    busy = true;
    try {
      told(await ask((client) => question(client, { timeout: PATIENCE })));
    } catch (error) {
      lost(error);
    }
    busy = false;
    if (!document.hidden) timer = setTimeout(look, PAUSE);
  };

  document.addEventListener("visibilitychange", () => document.hidden || look());
  look();
  return look;
}

// The one line at the top of a page that says how things are.
export function showHealth(good, text) {
  const health = document.getElementById("health");
  health.className = good ? "ready" : "away";
  if (health.textContent !== text) health.textContent = text;
}

// The time of day, for what is no longer so.
export const now = () => new Date().toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });
