// The panel of MNIST: draw a digit or give a picture of one, see the ten probabilities.

import { DrawingField } from "./drawing_field.js";
import { Bars, ask, element, showHealth } from "./shared.js";

export function startMnist() {
  const digits = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];
  const bars = new Bars(element("mnist-bars"), digits);
  let running = null;

  const show = (verdict, sure, probabilities, message, version) => {
    element("mnist-class").textContent = verdict ?? "–";
    element("mnist-sure").textContent = sure;
    bars.show(probabilities, verdict);
    element("mnist-message").textContent = message;
    element("mnist-version").textContent = version;
  };

  const cleared = () => {
    running?.abort();
    show(null, "", {}, "", "");
  };

  const predict = async (picture) => {
    running?.abort();
    const mine = (running = new AbortController());
    const started = performance.now();
    try {
      const form = new FormData();
      form.append("file", picture);
      const answer = await ask("/api/v1/mnist", { method: "POST", body: form, signal: mine.signal });
      const [{ class: digit, probabilities }] = answer.predictions;
      const milliseconds = Math.round(performance.now() - started);
      const sure = `${(100 * probabilities[digit]).toFixed(1)} % sure`;
      show(digit, sure, probabilities, "", `Answered by mnist version ${answer.version} in ${milliseconds} ms`);
    } catch (error) {
      if (error.name !== "AbortError") {
        show(null, "", {}, error.message, "");
        showHealth();
      }
    }
  };

  const canvas = element("mnist-canvas");
  const field = new DrawingField(canvas, async () => predict(await field.picture()), cleared);

  const take = async (file) => {
    if (!file) return;
    try {
      await field.showPicture(file);
    } catch {
      show(null, "", {}, "The browser cannot read this file as a picture.", "");
      return;
    }
    await predict(file);
  };

  element("mnist-clear").addEventListener("click", () => field.clear());
  element("mnist-file").addEventListener("change", (event) => {
    take(event.target.files[0]);
    event.target.value = "";
  });
  for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
    canvas.addEventListener(name, (event) => {
      event.preventDefault();
      canvas.classList.toggle("over", name === "dragenter" || name === "dragover");
    });
  }
  canvas.addEventListener("drop", (event) => take(event.dataTransfer.files[0]));
}
