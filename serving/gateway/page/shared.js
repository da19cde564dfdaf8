// What every panel shares: asking the gateway, showing bars, which model is there, and what went wrong.

export const element = (id) => document.getElementById(id);

const [MANY, FEW] = [30, 10]; // of more than so many labels, so many are shown
const NO_STORE = "The gateway knows no model: start it with --models-dir, the folder of a model store with models.";

export const percent = (share) => `${(100 * share).toFixed(1)} %`;

export const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

export async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The gateway does not answer: start it with 'make serve'.");
  }
  const document_ = await response.json().catch(() => null);
  if (!response.ok || !document_) throw new Error(document_?.detail ?? `The gateway answered ${response.status}.`);
  return document_;
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

// The outputs of a prediction that are a number for each label.
export function scoresOf(prediction) {
  return Object.values(prediction ?? {}).find((value) => value && typeof value === "object" && !Array.isArray(value));
}

// One model's panel: its newest question, and its two lines of small print.
//
// A question has three outcomes. Answered: `show` gets the predictions. Failed: the message says why, and `show` gets
// null. Overtaken by a newer question or by cancel(): `show` is not called.
export class Panel {
  constructor(name) {
    this.name = name;
    this.newest = new Newest();
    this.message = element(`${name}-message`);
    this.version = element(`${name}-version`);
  }

  // Nothing is asked any more, for one because the field is empty.
  cancel() {
    this.newest.cancel();
    this.say("", "");
  }

  say(message, version) {
    this.message.textContent = message;
    this.version.textContent = version;
  }

  // `body` becomes JSON.
  ask(body, show, path = `/api/v1/${this.name}`) {
    const headers = { "Content-Type": "application/json" };
    return this.question((signal) => this.post(path, { body: JSON.stringify(body), headers, signal }), show);
  }

  askPicture(picture, show) {
    return this.question((signal) => this.send(picture, signal), show);
  }

  // A file that the browser shows as well: `draw` gets its pixels before it is sent.
  askFile(file, draw, show) {
    return this.question(async (signal) => {
      const bitmap = await createImageBitmap(file, { imageOrientation: "from-image" }).catch(() => {
        throw new Error("The browser cannot read this file as a picture.");
      });
      signal.throwIfAborted();
      draw(bitmap);
      bitmap.close();
      return this.send(file, signal);
    }, show);
  }

  async question(job, show) {
    const outcome = await this.newest.run(job);
    if (!outcome) return;
    const { value, error } = outcome;
    if (error) {
      this.say(error.message, "");
      showHealth();
      show(null);
    } else {
      this.say("", `Answered by ${this.name} version ${value.version} in ${value.milliseconds} ms`);
      show(value.predictions);
    }
  }

  send(picture, signal) {
    const body = new FormData();
    body.append("file", picture);
    return this.post(`/api/v1/${this.name}`, { body, signal });
  }

  async post(path, options) {
    const started = performance.now();
    const { version, predictions } = await ask(path, { method: "POST", ...options });
    if (!predictions?.length) throw new Error("The gateway's answer holds no prediction.");
    return { version, predictions, milliseconds: Math.round(performance.now() - started) };
  }
}

// A canvas as a PNG file, at once: toBlob() waits until the browser is idle.
export function pngOf(canvas) {
  const letters = atob(canvas.toDataURL("image/png").split(",")[1]);
  return new Blob([Uint8Array.from(letters, (letter) => letter.charCodeAt(0))], { type: "image/png" });
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
    const order = [...this.rows.keys()].sort((a, b) => (probabilities?.[b] ?? 0) - (probabilities?.[a] ?? 0));
    const shown = this.rows.size > MANY ? order.slice(0, FEW) : order;
    for (const [label, { row, bar, text }] of this.rows) {
      const value = probabilities?.[label];
      bar.value = value ?? 0;
      text.textContent = value === undefined ? "" : value >= 0 && value <= 1 ? percent(value) : value.toPrecision(4);
      row.classList.toggle("best", best.includes(label));
      row.hidden = !shown.includes(label);
    }
  }
}

// How a picture's likeliest class is shown: its name, how sure the model is, and a bar a class.
export function showClass(name, labels) {
  const bars = new Bars(element(`${name}-bars`), labels);
  return (predictions) => {
    const best = predictions?.[0]?.class;
    const scores = scoresOf(predictions?.[0]);
    const sure = scores?.[best];
    element(`${name}-class`).textContent = best ?? "–";
    element(`${name}-sure`).textContent = sure >= 0 && sure <= 1 ? `${percent(sure)} sure` : "";
    bars.show(scores, best);
  };
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
    if (!notice) continue;
    notice.hidden = model.ready;
    notice.textContent = model.ready ? "" : `Not served now: ${model.reason}.`;
    element(`${model.name}-link`).className = model.ready ? "ready" : "away";
  }
  const ready = models.filter((model) => model.ready).length;
  health.className = ready ? "ready" : "away";
  health.textContent = ready ? `${ready} of ${models.length} models ready` : models[0]?.reason ?? NO_STORE;
}
