// The small try-out of a model on the page of all models: one field, one answer. It asks for the contract when it is opened.

import { Newest, ask } from "./api.js";
import { firstBody } from "./code.js";
import { make } from "./dom.js";
import { ACCEPT } from "./files.js";
import { answerOf } from "./questions.js";

const FIELDS = { text: ["text", "Text"], molecules: ["smiles", "SMILES"], regression: ["x"], tabular: ["x"] };

export function startSmall(details, name) {
  const newest = new Newest();
  details.addEventListener("toggle", async () => {
    if (!details.open || details.querySelector(".message")) return;
    const message = make("p", { class: "message", role: "alert" });
    details.append(message);
    try {
      const model = await ask((client) => client.model(name));
      message.before(...partsOf(model, message, newest));
    } catch (error) {
      details.open = false;
      message.remove();
      details.querySelector("summary").title = error.message;
    }
  });
}

function partsOf(model, message, newest) {
  const output = make("output", { "aria-live": "polite" });
  const send = async (field, call) => {
    output.textContent = message.textContent = "";
    field?.removeAttribute("aria-invalid");
    const outcome = await newest.run(async (signal) => (await ask((client) => call(client, { signal }))).predictions[0]);
    if (!outcome) return;
    if (outcome.error) field?.setAttribute("aria-invalid", String([400, 413].includes(outcome.error.status)));
    message.textContent = outcome.error?.message ?? "";
    output.textContent = outcome.error ? "" : answerOf(outcome.value) || "Answered: see its page.";
  };
  const post = (body) => (client, options) => client.predict(model.name, body, options);
  const id = `try-${model.name}`;
  message.id = `${id}-message`;

  if (model.form === "image-classification") {
    const files = make("input", { type: "file", id, accept: ACCEPT });
    files.addEventListener("change", () => {
      const [file] = files.files;
      if (file) send(null, (client, options) => client.pictures(model.name, [file], options));
      files.value = "";
    });
    return [make("label", { class: "button", for: id }, "Choose a picture"), files, output];
  }
  const button = make("button", {}, "Ask");
  const [key, title] = FIELDS[model.form] ?? [];
  const first = firstBody(model);
  if (!key) {
    button.type = "button";
    button.textContent = model.form === "board" ? "Ask for the first move" : "Ask with its example";
    button.addEventListener("click", () => send(null, post(first)));
    return [button, output];
  }
  const numbers = key === "x";
  const names = model.columns.length ? model.columns.join(", ") : [first.x].flat().length === 1 ? "x" : "Numbers";
  const field = make("input", { type: "text", id, value: [first[key]].flat(2).join(", "), autocomplete: "off", autocapitalize: "off", spellcheck: "false", "aria-describedby": message.id });
  const valueOf = () => {
    if (!numbers) return field.value.trim();
    const row = field.value.split(",").map((cell) => (cell.trim() ? Number(cell) : NaN));
    if (!row.every(Number.isFinite)) throw new Error("Please give numbers with commas between them.");
    return row.length === 1 ? row[0] : [row];
  };
  const form = make("form", {}, make("label", { class: "field", for: id }, numbers ? names : title), field, button);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send(field, (...call) => {
      try {
        return post({ [key]: valueOf() })(...call);
      } catch (error) {
        error.status = 400;
        throw error;
      }
    });
  });
  return [form, output];
}
