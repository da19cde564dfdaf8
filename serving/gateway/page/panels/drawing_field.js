// A field to draw on with mouse, touch, pen or keyboard. Calls `begun` when a stroke begins or the field is emptied, and
// `changed` after each stroke.

import { pngOf } from "../files.js";

export class DrawingField {
  static PEN = 20; // pixels of the canvas, about two of a field of 28
  static STEP = 8;

  constructor(canvas, { begun, changed }) {
    this.canvas = canvas;
    this.begun = begun;
    this.changed = changed;
    this.context = canvas.getContext("2d", { willReadFrequently: true });
    this.pointer = null;
    this.cursor = { x: canvas.width / 2, y: canvas.height / 2 };
    this.keys = false;
    this.drawing = false;
    this.saved = null;
    this.strokes = []; // of each stroke its places, [x, y, x, y, …] in whole pixels
    this.wipe();
    canvas.addEventListener("pointerdown", (event) => this.press(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => this.lift(event));
    canvas.addEventListener("keydown", (event) => this.keyDown(event));
    canvas.addEventListener("keyup", (event) => this.keyUp(event));
    canvas.addEventListener("blur", () => this.leave());
  }

  clear() {
    this.wipe();
    if (this.keys) this.showCursor();
    this.begun();
  }

  wipe() {
    this.strokes = [];
    this.saved = this.last = this.pointer = null;
    this.drawing = false;
    this.context.fillStyle = "#fff";
    this.context.fillRect(0, 0, this.canvas.width, this.canvas.height);
  }

  picture() {
    this.hideCursor();
    const picture = pngOf(this.canvas);
    if (this.keys) this.showCursor();
    return picture;
  }

  // Draws strokes that were kept, and is changed by them.
  redraw(strokes) {
    for (const stroke of strokes) {
      const places = stroke.map(Number);
      this.begin({ x: places[0], y: places[1] });
      for (let place = 0; place + 1 < places.length; place += 2) this.line({ x: places[place], y: places[place + 1] });
    }
    if (this.strokes.length) this.changed();
  }

  showPicture(bitmap) {
    this.wipe();
    const scale = Math.min(this.canvas.width / bitmap.width, this.canvas.height / bitmap.height);
    const [width, height] = [bitmap.width * scale, bitmap.height * scale];
    this.context.drawImage(bitmap, (this.canvas.width - width) / 2, (this.canvas.height - height) / 2, width, height);
  }

  position(event) {
    const box = this.canvas.getBoundingClientRect();
    return {
      x: ((event.clientX - box.left) * this.canvas.width) / box.width,
      y: ((event.clientY - box.top) * this.canvas.height) / box.height,
    };
  }

  press(event) {
    if (this.pointer !== null || event.button !== 0) return;
    event.preventDefault();
    this.leave();
    this.begun();
    this.pointer = event.pointerId;
    this.canvas.setPointerCapture(event.pointerId);
    this.begin(this.position(event));
    this.line(this.last);
  }

  move(event) {
    if (event.pointerId !== this.pointer) return;
    for (const point of event.getCoalescedEvents?.() ?? [event]) this.line(this.position(point));
  }

  lift(event) {
    if (event.pointerId !== this.pointer) return;
    this.line(this.position(event));
    this.pointer = null;
    this.changed();
  }

  begin(place) {
    this.strokes.push([]);
    this.last = place;
  }

  line(to) {
    const context = this.context;
    context.strokeStyle = "#111";
    context.lineWidth = DrawingField.PEN;
    context.lineCap = context.lineJoin = "round";
    context.beginPath();
    context.moveTo(this.last.x, this.last.y);
    context.lineTo(to.x, to.y);
    context.stroke();
    this.strokes.at(-1).push(Math.round(to.x), Math.round(to.y));
    this.last = to;
  }

  keyDown(event) {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.key === "Delete" || event.key === "Backspace") {
      this.clear();
    } else if (event.key === " ") {
      if (!this.drawing) {
        this.begun();
        this.begin({ ...this.cursor });
      }
      this.drawing = true;
      this.step([0, 0]);
    } else if (event.key in moves) {
      this.step(moves[event.key]);
    } else {
      return;
    }
    event.preventDefault();
  }

  keyUp(event) {
    if (event.key !== " " || !this.drawing) return;
    this.drawing = false;
    this.changed();
  }

  step([right, down]) {
    this.hideCursor();
    this.keys = true;
    const from = { ...this.cursor };
    this.cursor.x = Math.min(Math.max(from.x + right * DrawingField.STEP, 0), this.canvas.width);
    this.cursor.y = Math.min(Math.max(from.y + down * DrawingField.STEP, 0), this.canvas.height);
    if (this.drawing) {
      this.last = from;
      this.line(this.cursor);
    }
    this.showCursor();
  }

  leave() {
    this.hideCursor();
    this.keys = this.drawing = false;
  }

  // The keyboard's pen is drawn over the picture, which is kept aside meanwhile.
  showCursor() {
    this.saved = this.context.getImageData(0, 0, this.canvas.width, this.canvas.height);
    this.context.strokeStyle = "#2459c4";
    this.context.lineWidth = 2;
    this.context.beginPath();
    this.context.arc(this.cursor.x, this.cursor.y, DrawingField.PEN / 2, 0, 2 * Math.PI);
    this.context.stroke();
  }

  hideCursor() {
    if (this.saved) this.context.putImageData(this.saved, 0, 0);
    this.saved = null;
  }
}
