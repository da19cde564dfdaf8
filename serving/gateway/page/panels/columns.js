// Fields for the inputs of a model of which each has one value a row, as the columns of a table have.

import { make } from "../dom.js";

const MOST = 40; // fields that a person fills in

export class Columns {
  // `changed` gets the inputs, once a field has changed and all have a value; `refused` a field without one.
  constructor(place, { inputs }, changed, refused) {
    this.inputs = inputs.length > 1 && inputs.length <= MOST && inputs.every(isColumn) ? inputs : [];
    place.hidden = !this.inputs.length;
    this.fields = this.inputs.map(({ name, dtype }) => {
      const field = make("input", dtype === "object" ? { type: "text" } : { type: "number", step: "any" });
      field.addEventListener("input", () => {
        const empty = this.fields.find((one) => one.type === "number" && !Number.isFinite(one.valueAsNumber));
        if (empty) refused(empty);
        else changed(this.values());
      });
      place.append(make("label", {}, name, field));
      return field;
    });
  }

  // As the request has them: one row.
  values() {
    const value = (field) => (field.type === "number" ? field.valueAsNumber : field.value);
    const nested = ({ shape }, of) => (shape.length === 1 ? [of] : [[of]]);
    return Object.fromEntries(this.inputs.map((input, place) => [input.name, nested(input, value(this.fields[place]))]));
  }

  // Shows the first row of a request's inputs, where it has all.
  fill(given) {
    const rows = this.inputs.map(({ name }) => [given?.[name]].flat(2)[0]);
    if (rows.some((value) => value === undefined || value === null || typeof value === "object")) return;
    rows.forEach((value, place) => {
      this.fields[place].value = value;
    });
  }
}

const isColumn = ({ shape, dtype }) =>
  (shape.length === 1 || (shape.length === 2 && shape[1] === 1)) && shape[0] === null && /^(object$|float|int|uint)/.test(dtype);
