// Files that are dropped, pasted or chosen, and pictures as files.

// The formats that are taken, in words and for a file field.
export const { taken: TAKEN, accept: ACCEPT } = document.body.dataset;

// A canvas as a PNG file, at once: toBlob() waits until the browser is idle.
export function pngOf(canvas) {
  const letters = atob(canvas.toDataURL("image/png").split(",")[1]);
  return new Blob([Uint8Array.from(letters, (letter) => letter.charCodeAt(0))], { type: "image/png" });
}

// A place where files are dropped, and buttons that choose or take one. A picture may also be pasted anywhere on the page.
export function takeFiles(target, inputs, take) {
  for (const input of inputs) {
    input.addEventListener("change", () => {
      if (input.files[0]) take(input.files[0]);
      input.value = "";
    });
  }
  for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
    target.addEventListener(name, (event) => {
      event.preventDefault();
      target.classList.toggle("over", name === "dragenter" || name === "dragover");
    });
  }
  target.addEventListener("drop", (event) => {
    if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
  });
  document.addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files].find(({ type }) => type.startsWith("image/"));
    if (!file) return;
    event.preventDefault();
    take(file);
  });
}
