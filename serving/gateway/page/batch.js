// Many inputs at once: the rows of a CSV file, the lines of a text file, or pictures, also in a ZIP archive, and the results
// as a table and CSV.
//
// They go to the gateway a few at a time, so that progress is seen and a person can stop. Where it refuses some of them
// each is asked by itself, and the refusal stands in its row.

import { Newest, ask } from "./api.js";
import { parseCsv, writeCsv } from "./csv.js";
import { element, figure, leaves, make } from "./dom.js";
import { ACCEPT, TAKEN } from "./files.js";
import { filesOf, isZip } from "./zip.js";

const [FEW, MANY] = [16, 256]; // inputs of a request: of those that cost the gateway work, and rows of numbers
const LARGEST = 20_000; // inputs of a file
const SHOWN = 200; // rows of the table
const URL_SECONDS = 60; // for a download to begin

// How a form reads a file, and what holds its inputs in a request.
const FORMS = {
  regression: { field: "x", size: MANY, read: numbersOf },
  tabular: { field: "x", size: MANY, read: numbersOf },
  text: { field: "text", size: FEW, read: linesOf },
  molecules: { field: "smiles", size: FEW, read: linesOf },
  "image-classification": { size: FEW },
};

export class Batch {
  constructor(model) {
    this.model = model;
    this.form = FORMS[model.form];
    this.newest = new Newest();
    this.rows = [];
    this.order = { column: "", down: false };
    element("batch").hidden = element("batch-link").hidden = !this.form;
    if (!this.form) return;
    const files = element("batch-files");
    const pictures = !this.form.read;
    files.accept = pictures ? `${ACCEPT},application/zip,.zip` : ".csv,.txt,text/csv,text/plain";
    files.multiple = pictures;
    element("batch-hint").textContent = hintOf(model);
    files.addEventListener("change", () => {
      this.take([...files.files]);
      files.value = "";
    });
    element("batch-cancel").addEventListener("click", () => this.stop());
    element("batch-save").addEventListener("click", () => this.save());
  }

  async take(files) {
    if (!files.length) return;
    this.rows = [];
    this.total = 0;
    this.say("");
    try {
      const inputs = this.form.read ? this.form.read(await files[0].text(), this.model) : await picturesOf(files);
      if (inputs.length > LARGEST) throw new Error(`The file has ${inputs.length} inputs; a page takes ${LARGEST}. 'bookserve predict' takes more.`);
      if (!inputs.length) throw new Error("The file holds no inputs.");
      await this.run(inputs);
    } catch (error) {
      this.say(error.message);
      this.show(0);
      element("batch-running").hidden = true;
    }
  }

  // `inputs` are [what stands in the table, value].
  async run(inputs) {
    this.total = inputs.length;
    this.show(0);
    const outcome = await this.newest.run(async (signal) => {
      for (let from = 0; from < inputs.length; from += this.form.size) {
        this.rows.push(...(await this.askSome(inputs.slice(from, from + this.form.size), signal)));
        signal.throwIfAborted();
        this.show(this.rows.length);
      }
    });
    if (!outcome) return;
    if (outcome.error) this.say(`Stopped after ${this.rows.length} of ${this.total}. ${outcome.error.message}`);
    this.done();
  }

  async askSome(inputs, signal) {
    try {
      const { version, predictions } = await this.post(inputs.map(([, value]) => value), signal);
      return inputs.map(([shown], place) => ({ input: shown, version, ...Object.fromEntries(leaves(predictions[place]).filter(([name]) => !this.isInput(name))), error: "" }));
    } catch (error) {
      if (error.status !== 400 && error.status !== 413) throw error;
      if (inputs.length === 1) return [{ input: inputs[0][0], error: error.message }];
      const rows = [];
      for (const input of inputs) rows.push(...(await this.askSome([input], signal)));
      return rows;
    }
  }

  isInput(name) {
    return name === this.form.field;
  }

  async post(values, signal) {
    const { name } = this.model;
    if (this.form.field) return ask((client) => client.predict(name, { [this.form.field]: values }, { signal }));
    const files = [];
    for (const read of values) files.push(await read());
    signal.throwIfAborted();
    return ask((client) => client.pictures(name, files, { signal }));
  }

  stop() {
    this.newest.cancel();
    this.say(`Stopped after ${this.rows.length} of ${this.total}.`);
    this.done();
  }

  say(message) {
    element("batch-message").textContent = message;
  }

  // How far it is; the button stops it.
  show(count) {
    const bar = element("batch-progress");
    bar.max = this.total || 1;
    bar.value = count;
    element("batch-count").textContent = this.total ? `${count} of ${this.total}` : "";
    element("batch-running").hidden = false;
    element("batch-cancel").hidden = false;
    element("batch-results").hidden = true;
  }

  done() {
    const failed = this.rows.filter(({ error }) => error).length;
    element("batch-count").textContent = `${this.rows.length} of ${this.total}${failed ? `, ${failed} of them refused` : ""}`;
    element("batch-cancel").hidden = true;
    element("batch-results").hidden = !this.rows.length;
    this.draw();
  }

  get columns() {
    const names = new Set(this.rows.flatMap((row) => Object.keys(row)));
    names.delete("error");
    return [...names, ...(this.rows.some(({ error }) => error) ? ["error"] : [])];
  }

  draw() {
    const { columns } = this;
    const { column, down } = this.order;
    const rows = column ? [...this.rows].sort((a, b) => compare(a[column], b[column]) * (down ? -1 : 1)) : this.rows;
    const heads = columns.map((name) => {
      const button = make("button", { type: "button", class: "sort" }, name);
      button.addEventListener("click", () => {
        this.order = { column: name, down: column === name && !down };
        this.draw();
        [...element("batch-table").querySelectorAll(".sort")][columns.indexOf(name)].focus();
      });
      const sorted = name === column ? { "aria-sort": down ? "descending" : "ascending" } : {};
      return make("th", { scope: "col", ...sorted }, button);
    });
    const cell = (value) => make("td", {}, typeof value === "number" ? figure(value) : (value ?? ""));
    const lines = rows.slice(0, SHOWN).map((row) => make("tr", {}, ...columns.map((name) => cell(row[name]))));
    element("batch-table").replaceChildren(make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...lines));
    const more = this.rows.length - SHOWN;
    element("batch-more").textContent = more > 0 ? `The file has ${more} rows more.` : "";
  }

  save() {
    const { columns } = this;
    const text = writeCsv([columns, ...this.rows.map((row) => columns.map((name) => row[name] ?? ""))]);
    const url = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
    make("a", { href: url, download: `${this.model.name}.csv` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000 * URL_SECONDS);
  }
}

// Pictures by name, each with what reads it; those of a ZIP archive one by one.
async function picturesOf(files) {
  const found = [];
  for (const file of files) {
    if (await isZip(file)) found.push(...(await filesOf(file)).map(({ name, read }) => [name, read]));
    else found.push([file.name, () => file]);
  }
  return found;
}

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a ?? "").localeCompare(String(b ?? ""), undefined, { numeric: true });
}

function hintOf({ form, columns, inputs }) {
  if (form === "image-classification") return `Choose several pictures, or a ZIP archive of up to 5,000. ${TAKEN} are taken.`;
  if (form === "text") return "Choose a text file with one text a line, or a CSV file with a column “text”.";
  if (form === "molecules") return "Choose a text file with one SMILES a line, or a CSV file with a column “smiles”.";
  const width = inputs[0].shape[1];
  return `Choose a CSV file with ${columns.length ? `the columns ${columns.join(", ")}` : `${width} numbers a line`}.`;
}

// The rows of a table of numbers. A head line chooses the contract's columns by their names.
function numbersOf(text, { columns, inputs }) {
  const [{ shape }] = inputs;
  const lines = parseCsv(text);
  const head = lines[0]?.some((cell) => !Number.isFinite(Number(cell || NaN))) ? lines.shift() : null;
  const places = head && columns.every((name) => head.includes(name)) && columns.length ? columns.map((name) => head.indexOf(name)) : null;
  return lines.map((line, number) => {
    const cells = places ? places.map((place) => line[place]) : line;
    const row = cells.map((cell) => (cell?.trim() ? Number(cell) : NaN));
    if (row.length !== shape[1] || !row.every(Number.isFinite)) {
      throw new Error(`Line ${number + (head ? 2 : 1)} is not a row of ${shape[1]} numbers: ${line.join(", ").slice(0, 80)}`);
    }
    return [row.join(", "), row.length === 1 ? row[0] : row];
  });
}

// The lines of a text, or of a CSV file the column with the form's name.
function linesOf(text, { form }) {
  const name = FORMS[form].field;
  const lines = parseCsv(text);
  const place = lines[0]?.indexOf(name) ?? -1;
  const found = place < 0 ? text.split(/\r?\n/) : lines.slice(1).map((line) => line[place] ?? "");
  return found.map((line) => line.trim()).filter(Boolean).map((line) => [line, line]);
}
