// Comma-separated values (RFC 4180): lines of cells, which may be in quotes. Empty lines are left out.

export function parseCsv(text) {
  const lines = [];
  let line = [];
  for (const [, quoted, plain, end] of text.replace(/^\uFEFF/, "").matchAll(/(?:"((?:[^"]|"")*)"|([^,\r\n]*))(,|\r?\n|\r|$)/g)) {
    line.push(quoted === undefined ? plain : quoted.replaceAll('""', '"'));
    if (end === ",") continue;
    if (line.some(Boolean)) lines.push(line);
    line = [];
  }
  return lines;
}

export function writeCsv(lines) {
  const cell = (value) => (/[",\r\n]/.test(String(value)) ? `"${String(value).replaceAll('"', '""')}"` : String(value));
  return lines.map((line) => `${line.map(cell).join(",")}\r\n`).join("");
}
