// One model's panel: its newest question, what it was answered, and what went wrong.
//
// A question has three outcomes. Answered: `show` gets the predictions. Failed: the message says why, the field is
// marked, and `show` gets null. Overtaken by a newer question or by cancel(): `show` is not called.

import { remember } from "./address.js";
import { Fault, Newest, ask } from "./api.js";
import { element, make } from "./dom.js";

// What other parts of the page listen for, on `document`: a question with its input and its answer; that what is there now has
// no answer, with the question where one was asked; and that a server may be away.
export const ASKED = "bookserve-asked";
export const UNANSWERED = "bookserve-unanswered";
export const DOUBT = "bookserve-doubt";

const SLOW = 300; // milliseconds until a question is said to be under way, and the old answer looks old
const AROUND = 20; // characters that are shown before and behind a fault

export class Panel {
  // `field` is where a person writes; it is marked when what is written there is refused.
  constructor(name, field = null) {
    this.name = name;
    this.field = field;
    this.newest = new Newest();
    this.message = element(`${name}-message`);
    this.version = element(`${name}-version`);
    this.failed = false;
    this.again = () => {};
    field?.setAttribute("aria-describedby", [field.getAttribute("aria-describedby"), this.message.id].filter(Boolean).join(" "));
  }

  // Nothing is asked any more: the field is empty, or a person writes and will ask (`soon`), until which the old answer looks old.
  cancel(soon = false) {
    this.newest.cancel();
    this.say("", "");
    this.busy(soon);
    this.unanswered();
  }

  unanswered(asked = null) {
    document.dispatchEvent(new CustomEvent(UNANSWERED, { detail: asked }));
  }

  // Whether an answer is waited for.
  busy(on) {
    clearTimeout(this.slow);
    if (on) this.slow = setTimeout(() => this.wait(), SLOW);
    else element(`${this.name}-try`).removeAttribute("aria-busy");
  }

  wait() {
    element(`${this.name}-try`).setAttribute("aria-busy", "true");
    this.version.textContent = "Asking …";
  }

  say(message, version) {
    this.message.textContent = message;
    this.version.textContent = version;
    this.mark(false);
  }

  // What was written cannot be asked: `message` says why.
  refuse(message, field = this.field) {
    this.cancel();
    this.say(message, "");
    this.mark(true, field);
  }

  mark(wrong, field = this.field) {
    for (const marked of element(`${this.name}-try`).querySelectorAll("[aria-invalid]")) marked.removeAttribute("aria-invalid");
    if (wrong) field?.setAttribute("aria-invalid", "true");
  }

  // The text that was asked, with the character marked at which the fault is, and some around it.
  showPlace(text, position) {
    if (typeof text !== "string" || !(position < text.length)) return;
    const start = Math.max(0, position - AROUND);
    const [before, at, after] = [text.slice(start, position), text[position], text.slice(position + 1, position + 1 + AROUND)];
    const end = position + 1 + AROUND < text.length ? "…" : "";
    this.message.append(make("code", { class: "place" }, `${start ? "…" : ""}${before}`, make("mark", {}, at), `${after}${end}`));
  }

  // `body` becomes JSON. `input` is what the address keeps, from which the panel can ask the same again.
  ask(body, show, { method = "predict", input = body } = {}) {
    const path = `/api/v1/${this.name}${method === "predict" ? "" : `/${method}`}`;
    const send = (client, options) => client[method](this.name, body, options);
    const asked = { path, body, send, hash: remember(input), input };
    return this.question((signal) => this.post(asked, { signal }), show, asked);
  }

  askPicture(picture, show, input = null) {
    const asked = this.upload(picture, input);
    return this.question((signal) => this.post(asked, { signal }), show, asked);
  }

  // A file that the browser shows as well: `draw` gets its pixels before it is sent.
  askFile(file, draw, show, input = null) {
    const asked = this.upload(file, input);
    const job = async (signal) => {
      const turned = (await file.slice(8, 12).text()) !== "WEBP"; // of which Chromium does not obey the orientation
      const own = turned ? await createImageBitmap(file, { imageOrientation: "from-image" }).catch(() => null) : null;
      if (!own) asked.shown = await ask((client) => client.preview(this.name, file, { signal })).catch((error) => {
        if (!signal.aborted) draw(document.createElement("canvas")); // an empty one: nothing old stays beside an error
        throw error;
      });
      const bitmap = own ?? (await createImageBitmap(asked.shown));
      signal.throwIfAborted();
      draw(bitmap);
      bitmap.close();
      return this.post(asked, { signal });
    };
    return this.question(job, show, asked);
  }

  upload(file, input) {
    const send = (client, options) => client.pictures(this.name, [file], options);
    return { path: `/api/v1/${this.name}`, file: file.name || "picture.png", shown: file, send, hash: remember(input), input };
  }

  async question(job, show, asked) {
    this.again = () => this.question(job, show, asked);
    this.busy(true);
    const outcome = await this.newest.run(job);
    if (!outcome) return;
    this.busy(false);
    const { value, error } = outcome;
    this.failed = Boolean(error);
    if (error) {
      this.say(error.message, "");
      this.showPlace(asked.body?.[error.field], error.position);
      this.mark(error.status === 400 || error.status === 413);
      if (error.lost) document.dispatchEvent(new Event(DOUBT));
      show(null);
      this.unanswered(asked);
    } else {
      this.say("", `Answered by ${this.name} version ${value.version} in ${value.milliseconds} ms`);
      show(value.predictions, value.version);
      // The same question to another version, for a comparison.
      const repeat = (version, signal) => this.post(asked, { version, signal });
      document.dispatchEvent(new CustomEvent(ASKED, { detail: { ...asked, ...value, repeat } }));
    }
  }

  async post({ send }, options) {
    const started = performance.now();
    const { version, predictions } = await ask((client) => send(client, options));
    if (!predictions?.length) throw new Fault("The gateway's answer holds no prediction.", { status: 502 });
    return { version, predictions, milliseconds: Math.round(performance.now() - started) };
  }
}
