// The page of all models: a card for each, with its task, version, figure, state and picture; and a search.

import { taskText } from "./api.js";
import { element, figure, make } from "./dom.js";
import { now, poll, showHealth } from "./poll.js";
import { startSmall } from "./small_try.js";
import { sparkline } from "./sparkline.js";

const NO_STORE = "The gateway knows no model. Start it with --models-dir and the folder of a model store.";

const cards = new Map(); // name -> {card, text}
let lostAt = "";

function stateText({ ready, away, version, reason }) {
  if (ready) return `Version ${version} answers`;
  if (away) return "The model server does not answer";
  return version ? `Version ${version} does not keep its contract` : reason ? "Not served now" : "";
}

function fill(card, model) {
  const { name, task, headline, picture, history } = model;
  const link = card.querySelector("a");
  link.textContent = name;
  link.href = `/models/${encodeURIComponent(name)}`;
  card.id = `model-${name}`;
  card.className = `card ${model.ready ? "ready" : "away"}`;
  card.querySelector(".task").textContent = taskText(task);
  const split = headline?.split ? ` (${headline.split})` : "";
  card.querySelector(".figure").textContent = headline ? `${headline.name.replaceAll("_", " ")} ${figure(headline.value)}${split}` : "";
  card.querySelector(".state").textContent = stateText(model);
  const look = card.querySelector(".look");
  if (picture) {
    const src = `${picture}/small`;
    if (look.firstChild?.getAttribute?.("src") !== src) look.replaceChildren(make("img", { src, alt: "", loading: "lazy" }));
  } else {
    look.replaceChildren(...(history.length > 1 ? [sparkline(history)] : []));
  }
  look.hidden = !look.firstChild;
}

// Models that were trained here come before those that were added as files, as their manifests say.
function order(a, b) {
  const rank = ({ origin }) => (origin === "training" ? 0 : 1);
  return rank(a) - rank(b) || a.name.localeCompare(b.name);
}

function told(models) {
  document.body.classList.remove("stale");
  lostAt = "";
  const known = new Set(models.map(({ name }) => name));
  for (const [name, { card }] of cards) {
    if (known.has(name)) continue;
    card.remove();
    cards.delete(name);
  }
  models.sort(order).forEach((model, place) => {
    const text = JSON.stringify(model);
    const kept = cards.get(model.name);
    const card = kept?.card ?? element("card").content.cloneNode(true).firstElementChild;
    if (!kept) startSmall(card.querySelector(".small"), model.name);
    if (kept?.text !== text) fill(card, model);
    cards.set(model.name, { card, text });
    const list = element("models");
    if (list.children[place] !== card) list.insertBefore(card, list.children[place] ?? null);
  });
  const ready = models.filter((model) => model.ready).length;
  const away = models.some((model) => model.away);
  const text = away ? "The model server does not answer. What is shown of it is old." : `${ready} of ${models.length} models ready`;
  showHealth(ready > 0, models.length ? text : NO_STORE);
  search();
}

// Without the gateway everything here is as old as its last answer.
function lost(error) {
  lostAt ||= now();
  document.body.classList.add("stale");
  showHealth(false, `${error.message} What is shown is from before ${lostAt}.`);
}

function search() {
  const wanted = element("search").value.trim().toLowerCase();
  let shown = 0;
  for (const { card } of cards.values()) {
    const text = [...card.children].filter((part) => !part.matches(".small")).map((part) => part.textContent);
    card.hidden = !text.join(" ").toLowerCase().includes(wanted);
    shown += card.hidden ? 0 : 1;
  }
  const text = !wanted ? "" : shown ? `${shown} of ${cards.size} models` : "No model has this in its name or task.";
  if (element("found").textContent !== text) element("found").textContent = text;
}

element("search").addEventListener("input", search);
poll((client, options) => client.models(options), told, lost);
