// Asking the gateway, and what went wrong in words for a person.

import { BookserveError, Client } from "./bookserve.js";

// The page asks again by itself, and says at once what went wrong.
const client = new Client("", { retries: 0, timeout: 120_000 });
const AWAY = "The gateway does not answer. Start it with 'make serve', then this page goes on by itself.";
const TASKS = {
  "image-classification": "Names what a picture shows",
  text: "Works on text",
  tabular: "Classifies a row of numbers",
  molecules: "Predicts properties of a molecule",
  board: "Plays on a board",
  regression: "Estimates a number",
  tensors: "Takes tensors",
};
const WORDS = {
  401: "This gateway needs an API key. Load the page again to give one.",
  404: "This model or version is not served now.",
  408: "Sending took too long. Try again, or send less.",
  415: "This kind of file is not taken.",
  502: "The model gave no usable answer. The gateway's log says why.",
  503: "The model cannot answer now.",
  504: "The model took too long. Try again.",
};

const REFUSED = /^the model server refused: (.*)$/s; // by the model, whose reason is about its own tensors

export const taskText = (task) => TASKS[task] ?? "What it is for is not known";

// An error whose message is for a person. `position` is the character of `field` at which the fault is. `lost` is whether it may come from a server that is away.
export class Fault extends Error {
  constructor(message, { status = 0, field = "", position } = {}) {
    super(message);
    this.status = status;
    this.field = field;
    this.position = position;
    this.lost = status === 0 || status >= 502 || status === 404;
  }
}

// What the gateway says was wrong, as a sentence. Its own `detail` is for programs.
function sentence({ expected, given, detail }, status) {
  const [, reason] = REFUSED.exec(detail) ?? [];
  if (status === 400 && reason) return `The model refuses this input: ${reason}.`;
  if (status === 413) return `This is too large${expected ? `: please give ${expected}` : ""}.`;
  if (status === 415) return expected ? `${WORDS[415]} Please give ${expected}.` : WORDS[415];
  if (expected && given) return `Please give ${expected}. This is ${given}.`;
  if (expected) return `Please give ${expected}.`;
  return WORDS[status] ?? "The gateway could not answer. Its log says why.";
}

let asked = false; // for an API key, which a person is asked for once

// Takes the API key of a gateway that has some. It stays in this browser until it is closed.
function askForKey() {
  if (asked) return false;
  asked = true;
  const key = window.prompt("This gateway needs an API key:")?.trim();
  if (!key) return false;
  const secure = location.protocol.startsWith("https") ? "; secure" : "";
  document.cookie = `bookserve_key=${key.replace(/[^\w.~+/=-]/g, "")}; path=/; samesite=strict${secure}`;
  return true;
}

// Whether this gateway was given an API key here.
export const keyed = () => document.cookie.split("; ").some((cookie) => cookie.startsWith("bookserve_key="));

// What a call of the client gives, such as `(client) => client.models()`. Throws Fault, and what aborted the call.
export async function ask(call) {
  try {
    return await call(client);
  } catch (error) {
    if (!(error instanceof BookserveError)) throw error;
    const { status, problem } = error;
    if (status === 401 && askForKey()) return ask(call);
    throw new Fault(status ? sentence(problem, status) : AWAY, { status, field: problem.field, position: problem.position });
  }
}

// The newest job of its kind: a newer one, or cancel(), overtakes it, and nothing that it comes to is used.
export class Newest {
  cancel() {
    this.running?.abort();
    this.running = null;
  }

  // {value} or {error} of `job`, which gets a signal that aborts it; null when it was overtaken.
  async run(job) {
    this.cancel();
    const mine = (this.running = new AbortController());
    let outcome;
    try {
      outcome = { value: await job(mine.signal) };
    } catch (error) {
      outcome = { error };
    }
    return this.running === mine ? outcome : null;
  }
}

// Runs one asynchronous job at a time; of those that come meanwhile only the newest is run afterwards.
export class Latest {
  constructor(job) {
    this.job = job;
    this.waiting = null;
    this.busy = false;
  }

  async run(...values) {
    this.waiting = values;
    if (this.busy) return;
    this.busy = true;
    while (this.waiting) {
      const next = this.waiting;
      this.waiting = null;
      await this.job(...next);
    }
    this.busy = false;
  }
}

