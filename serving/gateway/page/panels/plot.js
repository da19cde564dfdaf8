// A plane with axes on a canvas, and a point in it that mouse, touch, pen and arrow keys move. Calls `moved` with it.

import { colour } from "../dom.js";

export class Plot {
  constructor(canvas, { x, y, point, step, moved, paint }) {
    Object.assign(this, { canvas, x, y, point, step, moved, paint });
    this.context = canvas.getContext("2d");
    this.pointer = null;
    canvas.addEventListener("pointerdown", (event) => this.press(event));
    canvas.addEventListener("pointermove", (event) => this.drag(event));
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => (this.pointer = null));
    canvas.addEventListener("keydown", (event) => this.key(event));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    this.draw();
  }

  // From the plane to the canvas.
  at([x, y]) {
    const { width, height } = this.canvas;
    const [left, right] = this.x;
    const [low, high] = this.y;
    return [((x - left) / (right - left)) * width, height - ((y - low) / (high - low)) * height];
  }

  move(x, y) {
    const within = (value, [low, high]) => Math.min(Math.max(value, low), high);
    this.put(within(x, this.x), within(y, this.y));
  }

  // Anywhere, also outside of what is shown.
  put(x, y) {
    this.point = [x, y];
    this.draw();
    this.moved(this.point);
  }

  press(event) {
    if (this.pointer !== null || event.button !== 0) return;
    event.preventDefault();
    this.canvas.focus({ preventScroll: true });
    this.pointer = event.pointerId;
    this.canvas.setPointerCapture(event.pointerId);
    this.drag(event);
  }

  drag(event) {
    if (event.pointerId !== this.pointer) return;
    const box = this.canvas.getBoundingClientRect();
    const [left, right] = this.x;
    const [low, high] = this.y;
    const across = (event.clientX - box.left) / box.width;
    const down = (event.clientY - box.top) / box.height;
    this.move(left + across * (right - left), high - down * (high - low));
  }

  key(event) {
    const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
    if (!(event.key in ways)) return;
    event.preventDefault();
    const [right, up] = ways[event.key];
    this.move(this.point[0] + right * this.step, this.point[1] + up * this.step);
  }

  draw() {
    const { context, canvas } = this;
    context.fillStyle = colour("field");
    context.fillRect(0, 0, canvas.width, canvas.height);
    this.paint(this);
  }

  grid(xs, ys) {
    const { context, canvas } = this;
    context.font = "17px system-ui, sans-serif";
    context.lineWidth = 1;
    for (const x of xs) {
      const [at] = this.at([x, 0]);
      context.strokeStyle = colour(x === 0 ? "quiet" : "line");
      this.path([[at, 0], [at, canvas.height]], 1);
      context.fillStyle = colour("quiet");
      context.fillText(x, at + 4, canvas.height - 6);
    }
    for (const y of ys) {
      const [, at] = this.at([0, y]);
      context.strokeStyle = colour(y === 0 ? "quiet" : "line");
      this.path([[0, at], [canvas.width, at]], 1);
      context.fillStyle = colour("quiet");
      context.fillText(y, 5, at - 5);
    }
  }

  path(places, width) {
    this.context.lineWidth = width;
    this.context.beginPath();
    for (const [x, y] of places) this.context.lineTo(x, y);
    this.context.stroke();
  }

  dot(place) {
    const { context } = this;
    context.beginPath();
    context.arc(...this.at(place), 9, 0, 2 * Math.PI);
    context.fillStyle = colour("accent");
    context.fill();
    context.lineWidth = 3;
    context.strokeStyle = colour("panel");
    context.stroke();
  }
}
