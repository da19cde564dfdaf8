// A model's own page: try it, programs that ask it, its last minutes, figures, versions, tensors and card.

import { followAddress, recall } from "./address.js";
import { ask, taskText } from "./api.js";
import { Batch } from "./batch.js";
import { Programs } from "./code.js";
import { Comparison } from "./compare.js";
import { element, figure, make } from "./dom.js";
import { showCard, showFigures, showGraph, showTensors, showVersions } from "./facts.js";
import { Questions } from "./questions.js";
import { startPanel } from "./panels/kinds.js";
import { ASKED, DOUBT } from "./panel.js";
import { now, poll, showHealth } from "./poll.js";
import { Explanation } from "./why.js";

const comparison = new Comparison();
const name = document.body.dataset.model;

let started = null; // {panel, restore} of the model's panel
let tensors = ""; // what the panel was made for
let otherForm = false; // whether the version that answers needs another panel
let seen = ""; // what the facts were made of
let answered = 0; // the version of the answer that is shown
let lostAt = "";

const away = (text) => {
  const notice = element("away");
  notice.hidden = !text;
  if (notice.textContent !== text) notice.textContent = text;
  document.body.classList.toggle("stale", Boolean(text));
};

function changed(text, button, act) {
  const notice = element("changed");
  notice.hidden = !text;
  if (!text || notice.dataset.text === text) {
    notice.dataset.text = text;
    return;
  }
  notice.dataset.text = text;
  const made = make("button", { type: "button" }, button);
  made.addEventListener("click", act);
  notice.replaceChildren(text, " ", made);
}

const shapeOf = ({ form, inputs, outputs, labels, columns, preprocessing }) =>
  JSON.stringify([form, inputs, outputs, labels, columns, preprocessing]);

// The model's facts; the panel is started when they are there for the first time.
async function describe() {
  const model = await ask((client) => client.model(name));
  element("task").textContent = taskText(model.task);
  if (!started) {
    tensors = shapeOf(model);
    new Programs(model);
    new Batch(model);
    new Explanation(model);
    new Questions(model);
    started = startPanel(model, element("panel"), recall());
    followAddress(started.restore);
  } else if (tensors !== shapeOf(model)) {
    otherForm = true;
    const text = `Version ${model.version} takes or gives something else than the form below.`;
    changed(text, "Load its form", () => location.reload());
  }
  comparison.offer(model);
  showFigures(model);
  showVersions(model);
  showTensors(model);
  await Promise.all([showCard(model), showGraph(model)]);
}

function showLive({ reason, seconds, requests, rate, errors, p50, p99 }) {
  const hint = element("live-hint");
  const facts = element("live-facts");
  facts.hidden = Boolean(reason);
  const text = reason
    ? `Not known: ${reason}.`
    : `Of all requests that the model server answered for ${name} in the last ${Math.round(seconds)} seconds.`;
  if (hint.textContent !== text) hint.textContent = text;
  if (reason) return;
  const milliseconds = (value) => (value === null ? "–" : `${figure(value)} ms`);
  const shown = {
    "Requests a second": figure(rate),
    Requests: String(requests),
    Errors: String(errors),
    "Latency, half of them below": milliseconds(p50),
    "Latency, 99 % below": milliseconds(p99),
  };
  facts.replaceChildren(...Object.entries(shown).map(([term, value]) => make("div", {}, make("dt", {}, term), make("dd", {}, value))));
}

async function told(state) {
  const { ready, version, reason, stored, loaded, labels, live, away: gone } = state;
  const back = lostAt && ready;
  if (ready) {
    lostAt = "";
    away("");
    showHealth(true, `Version ${version} answers`);
  } else {
    lostAt ||= now();
    const text = gone ? "The model server does not answer" : "No version of this model is served now";
    const cause = gone ? "It goes on by itself when the server is back." : version ? `${reason}.` : "It goes on by itself when one is.";
    away(`${text}, since ${lostAt}. ${cause}`);
    showHealth(false, gone ? "The model server does not answer" : "Not served now");
  }
  showLive(live);
  const key = JSON.stringify([ready, version, stored, loaded, labels]);
  if (key !== seen || !started) {
    await describe().finally(() => document.body.classList.add("told"));
    seen = key;
  }
  if (back && started?.panel.failed) started.panel.again();
  const newer = ready && answered && version !== answered && !otherForm;
  if (newer) changed(`Version ${version} answers now. The answer below is of version ${answered}.`, "Ask again", () => started.panel.again());
}

function lost(error) {
  document.body.classList.add("told");
  if (error.status && error.status !== 503) {
    away(error.status === 404 ? "There is no model of this name. The list of all models has those that there are." : error.message);
    showHealth(false, "Not known");
    return;
  }
  lostAt ||= now();
  const text = error.status ? "The model server does not answer" : "The gateway does not answer";
  away(`${text}, since ${lostAt}. The page goes on by itself when it is back.`);
  showHealth(false, text);
}

const look = poll((client, options) => client.state(name, options), (state) => told(state).catch(lost), lost);
document.addEventListener(DOUBT, look);
document.addEventListener(ASKED, ({ detail }) => {
  answered = detail.version;
  if (!otherForm) changed("");
});
