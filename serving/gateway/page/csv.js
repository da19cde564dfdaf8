// Comma-separated values (RFC 4180): lines of cells, which may be in quotes. Empty lines are left out. Spreadsheets write
// semicolons or tabs, too: the mark that the first line has most of stands between the cells.

const MARKS = [",", ";", "\t"];

export function parseCsv(text) {
  const head = text.split(/\r?\n|\r/, 1)[0].replace(/"(?:[^"]|"")*"/g, "");
  const count = (mark) => head.split(mark).length;
  const mark = MARKS.reduce((most, other) => (count(other) > count(most) ? other : most));
  const cell = new RegExp(`(?:"((?:[^"]|"")*)"|([^${mark}\\r\\n]*))(${mark}|\\r?\\n|\\r|$)`, "g");
  const lines = [];
  let line = [];
  for (const [, quoted, plain, end] of text.replace(/^\uFEFF/, "").matchAll(cell)) {
    line.push(quoted === undefined ? plain : quoted.replaceAll('""', '"'));
    if (end === mark) continue;
    if (line.some(Boolean)) lines.push(line);
    line = [];
  }
  return lines;
}

export function writeCsv(lines) {
  const cell = (value) => (/[",\r\n]/.test(String(value)) ? `"${String(value).replaceAll('"', '""')}"` : String(value));
  return lines.map((line) => `${line.map(cell).join(",")}\r\n`).join("");
}
