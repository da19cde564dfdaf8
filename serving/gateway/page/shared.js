// What every panel shares: asking the gateway, showing bars, which model is there, and what went wrong.

export const element = (id) => document.getElementById(id);

export const percent = (share) => `${(100 * share).toFixed(1)} %`;

export const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

export async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The gateway does not answer: start it with 'make serve'.");
  }
  const document_ = await response.json().catch((error) => {
    if (error.name === "AbortError") throw error;
    return null;
  });
  if (!response.ok || !document_) throw new Error(document_?.detail ?? `The gateway answered ${response.status}.`);
  return document_;
}

// One model's panel: its questions, of which a newer one overtakes the older, and its two lines of small print.
export class Panel {
  constructor(name) {
    this.name = name;
    this.running = null;
    this.message = element(`${name}-message`);
    this.version = element(`${name}-version`);
  }

  cancel() {
    this.running?.abort();
    this.running = null;
    this.say("", "");
  }

  say(message, version) {
    this.message.textContent = message;
    this.version.textContent = version;
  }

  fail(message) {
    this.cancel();
    this.say(message, "");
  }

  // The predictions, or null when the question failed or was overtaken. `body` is a form, or becomes JSON.
  async ask(body, path = `/api/v1/${this.name}`) {
    this.running?.abort();
    const mine = (this.running = new AbortController());
    const started = performance.now();
    const form = body instanceof FormData;
    try {
      const answer = await ask(path, {
        method: "POST",
        body: form ? body : JSON.stringify(body),
        headers: form ? {} : { "Content-Type": "application/json" },
        signal: mine.signal,
      });
      const milliseconds = Math.round(performance.now() - started);
      this.say("", `Answered by ${this.name} version ${answer.version} in ${milliseconds} ms`);
      return answer.predictions;
    } catch (error) {
      if (error.name !== "AbortError") {
        this.say(error.message, "");
        showHealth();
      }
      return null;
    }
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

export class Bars {
  constructor(table, labels) {
    this.rows = new Map();
    for (const label of labels) {
      const row = table.tBodies[0].insertRow();
      const head = document.createElement("th");
      head.scope = "row";
      head.textContent = label;
      const bar = document.createElement("progress");
      bar.max = 1;
      bar.value = 0;
      bar.setAttribute("aria-label", `Probability of ${label}`);
      row.append(head);
      row.insertCell().append(bar);
      this.rows.set(label, { row, bar, text: row.insertCell() });
    }
  }

  // Without probabilities the bars are empty. `best` are the labels to set off.
  show(probabilities, ...best) {
    for (const [label, { row, bar, text }] of this.rows) {
      const value = probabilities?.[label];
      bar.value = value ?? 0;
      text.textContent = value === undefined ? "" : percent(value);
      row.classList.toggle("best", best.includes(label));
    }
  }
}

// A place where files are dropped, and a button that chooses one.
export function takeFiles(target, input, take) {
  input.addEventListener("change", () => {
    if (input.files[0]) take(input.files[0]);
    input.value = "";
  });
  for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
    target.addEventListener(name, (event) => {
      event.preventDefault();
      target.classList.toggle("over", name === "dragenter" || name === "dragover");
    });
  }
  target.addEventListener("drop", (event) => {
    if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
  });
}

export async function showHealth() {
  const health = element("health");
  let models = [];
  try {
    models = (await ask("/api/v1/models")).models;
  } catch (error) {
    health.className = "away";
    health.textContent = error.message;
    return;
  }
  for (const model of models) {
    const notice = element(`${model.name}-away`);
    notice.hidden = model.ready;
    notice.textContent = model.ready ? "" : `Not served now: ${model.reason}.`;
    element(`${model.name}-link`).className = model.ready ? "ready" : "away";
  }
  const ready = models.filter((model) => model.ready).length;
  health.className = ready ? "ready" : "away";
  health.textContent = ready ? `${ready} of ${models.length} models ready` : models[0].reason;
}
