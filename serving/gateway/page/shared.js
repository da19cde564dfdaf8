// What every panel shares: asking the gateway, showing bars, and what went wrong.

export const element = (id) => document.getElementById(id);

export async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The gateway does not answer: start it with 'make serve'.");
  }
  const document_ = await response.json().catch(() => null);
  if (!response.ok) throw new Error(document_?.detail ?? `The gateway answered ${response.status}.`);
  return document_;
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

  show(probabilities, best) {
    for (const [label, { row, bar, text }] of this.rows) {
      const value = probabilities[label] ?? 0;
      bar.value = value;
      text.textContent = best === null ? "" : `${(100 * value).toFixed(1)} %`;
      row.classList.toggle("best", label === best);
    }
  }
}

export async function showHealth() {
  const health = element("health");
  try {
    const ready = await ask("/readyz");
    const versions = Object.entries(ready.models).map(([name, version]) => `${name} version ${version}`);
    health.className = "ready";
    health.textContent = `Ready: ${versions.join(", ")}`;
  } catch (error) {
    health.className = "away";
    health.textContent = error.message;
  }
}
