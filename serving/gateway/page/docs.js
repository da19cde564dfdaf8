// The page /docs: every operation of /openapi.json with its parameters, a body that works, a curl line, and a try.

import { Newest, ask } from "./api.js";
import { element, make } from "./dom.js";

const JSON_TYPE = "application/json";
const FORM_TYPE = "multipart/form-data";
const SHOWN = 20_000; // characters of an answer

// JSON as a person would write it: lists that hold no lists on one line.
function pretty(value) {
  return JSON.stringify(value, null, 2).replace(/\[[^[\]{}]*\]/g, (list) => list.replace(/\s+/g, " "));
}

const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

// One operation: the form that asks it, and how what is in the form reads as a curl command.
class Operation {
  constructor(path, method, description) {
    this.path = path;
    this.method = method.toUpperCase();
    this.parameters = new Map();
    this.newest = new Newest();
    const content = description.requestBody?.content ?? {};
    this.takesFiles = FORM_TYPE in content;
    this.schema = content[JSON_TYPE]?.schema;
    this.example = content[JSON_TYPE]?.example;
    this.panel = make("section", { class: "panel operation", id: description.operationId });
    const title = make("h2", {}, make("code", {}, `${this.method} ${path}`));
    this.panel.append(make("header", {}, title, make("p", {}, description.summary)));
    if (description.description) this.panel.append(make("p", {}, description.description));
    this.form = make("form");
    this.panel.append(this.form);
    for (const parameter of description.parameters ?? []) this.addParameter(parameter);
    if (this.takesFiles) this.addFiles();
    if (this.schema) this.addBody();
    this.addTry();
    this.addAnswers(description.responses);
    this.form.addEventListener("input", () => this.showCurl());
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    this.showCurl();
  }

  addParameter({ name, in: place, description, required }) {
    const field = make("input", { type: "text", name, autocomplete: "off", spellcheck: "false" });
    field.required = Boolean(required);
    this.parameters.set(name, { field, place });
    this.form.append(make("label", { class: "field" }, `${name} (${place}) ${description ?? ""}`, field));
  }

  addFiles() {
    this.files = make("input", { type: "file", id: `${this.panel.id}-files`, multiple: "" });
    const label = make("label", { class: "button", for: this.files.id }, "Send files instead");
    this.form.append(make("div", { class: "buttons" }, label, this.files));
  }

  addBody() {
    this.body = make("textarea", { rows: "4", spellcheck: "false", "aria-label": "JSON body" });
    this.body.value = JSON.stringify(this.example);
    const schema = make("details", {}, make("summary", {}, "Schema of the body"), make("pre", { tabindex: "0", role: "group", "aria-label": "Schema" }, pretty(this.schema)));
    this.form.append(make("label", { class: "field" }, "JSON body", this.body), schema);
  }

  addTry() {
    this.curl = make("pre", { class: "curl", tabindex: "0", role: "group", "aria-label": "As a command" });
    this.answer = make("pre", { class: "answer", "aria-live": "polite", tabindex: "0", role: "group", "aria-label": "Answer" });
    this.answer.hidden = true;
    this.form.append(this.curl, make("div", { class: "buttons" }, make("button", { type: "submit" }, "Try it")));
    this.panel.append(this.answer);
  }

  addAnswers(responses) {
    const list = make("dl");
    for (const [status, { description }] of Object.entries(responses)) {
      list.append(make("dt", {}, status), make("dd", {}, description));
    }
    this.panel.append(make("details", {}, make("summary", {}, "Answers"), list));
  }

  get url() {
    let path = this.path;
    const query = new URLSearchParams();
    for (const [name, { field, place }] of this.parameters) {
      if (place === "path") path = path.replace(`{${name}}`, encodeURIComponent(field.value) || `{${name}}`);
      else if (field.value) query.set(name, field.value);
    }
    return path + (query.size ? `?${query}` : "");
  }

  get sendsFiles() {
    return Boolean(this.files?.files.length);
  }

  showCurl() {
    const words = ["curl"];
    if (this.sendsFiles) for (const file of this.files.files) words.push("-F", quoted(`file=@${file.name}`));
    else if (this.body) words.push("--json", quoted(this.body.value));
    words.push(quoted(location.origin + this.url));
    this.curl.textContent = words.join(" ");
  }

  async send() {
    const options = { method: this.method };
    if (this.sendsFiles) {
      options.body = new FormData();
      for (const file of this.files.files) options.body.append("file", file);
    } else if (this.body) {
      options.body = this.body.value;
      options.headers = { "Content-Type": JSON_TYPE };
    }
    this.answer.hidden = false;
    this.answer.textContent = "…";
    const outcome = await this.newest.run(async (signal) => {
      const response = await fetch(this.url, { ...options, signal });
      return { response, text: await response.text() };
    });
    if (!outcome) return;
    const away = "The gateway does not answer: start it with 'make serve'.";
    this.answer.textContent = outcome.error ? away : this.answerText(outcome.value);
  }

  answerText({ response, text }) {
    const json = /json/.test(response.headers.get("Content-Type") ?? "");
    const shown = json ? pretty(JSON.parse(text)) : text;
    const cut = shown.length > SHOWN ? `${shown.slice(0, SHOWN)} …` : shown;
    return `${response.status} ${response.statusText}\n${cut}`;
  }
}

try {
  const { info, paths } = await ask("/openapi.json");
  element("about").textContent = `${info.description} Version ${info.version}.`;
  for (const [path, methods] of Object.entries(paths)) {
    for (const [method, description] of Object.entries(methods)) {
      const operation = new Operation(path, method, description);
      element("operations").append(operation.panel);
      element("paths").append(make("a", { href: `#${operation.panel.id}` }, path.replace("/api/v1", "") || "/"));
    }
  }
} catch (error) {
  element("docs-message").textContent = error.message;
}
