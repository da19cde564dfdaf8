// The files of a ZIP archive (PKWARE's APPNOTE.TXT), read from the archive one at a time and unpacked by the browser.
//
// What an archive says of itself is not trusted: number, size and ratio are bounded, and what unpacks to more than is
// said is refused. Hidden files and what macOS adds are passed over, as `bookserve batch` does.

import { Fault } from "./api.js";

const [MiB, FILES, DIRECTORY] = [1 << 20, 5_000, 4 << 20]; // files of an archive, bytes of its directory
const [ONE, ALL, RATIO] = [16 * MiB, 1024 * MiB, 100]; // unpacked bytes of a file and of all; how many times its size
const [LOCAL, CENTRAL, END] = [0x04034b50, 0x02014b50, 0x06054b50];
const [END_BYTES, COMMENT, CENTRAL_BYTES, LOCAL_BYTES] = [22, 0xffff, 46, 30];
const [STORED, DEFLATED, ENCRYPTED, LARGE] = [0, 8, 1, 0xffffffff];

const viewOf = async (blob, from, to) => new DataView(await blob.slice(from, to).arrayBuffer());

export async function isZip(file) {
  if (file.size < END_BYTES) return false;
  return [LOCAL, END].includes((await viewOf(file, 0, 4)).getUint32(0, true));
}

// Each file as {name, read}, sorted by name; `read` gives a File. Throws Error where the archive cannot be read.
export async function filesOf(archive) {
  const entries = (await directoryOf(archive)).filter(({ name }) => isShown(name)).sort((a, b) => (a.name < b.name ? -1 : 1));
  if (entries.length > FILES) throw new Error(`The archive has ${entries.length} files; a page takes ${FILES}. 'bookserve batch' takes more.`);
  const bytes = entries.reduce((sum, { size }) => sum + size, 0);
  if (bytes > ALL) throw new Error(`The archive unpacks to ${Math.round(bytes / MiB)} MiB; a page takes ${ALL / MiB}. 'bookserve batch' takes more.`);
  return entries.map((entry) => ({ name: entry.name, read: () => unpack(archive, entry) }));
}

const isShown = (name) => !name.endsWith("/") && !name.startsWith("__MACOSX/") && !name.split("/").some((part) => part.startsWith("."));

async function directoryOf(archive) {
  const from = Math.max(0, archive.size - END_BYTES - COMMENT);
  const tail = await viewOf(archive, from, archive.size);
  let end = tail.byteLength - END_BYTES;
  while (end >= 0 && tail.getUint32(end, true) !== END) end -= 1;
  if (end < 0) throw new Error("This is no whole ZIP archive: it has no directory at its end.");
  const [count, size, start] = [tail.getUint16(end + 10, true), tail.getUint32(end + 12, true), tail.getUint32(end + 16, true)];
  if (start === LARGE || count === 0xffff) throw new Error("The archive is of the kind for very large ones (ZIP64), which a page does not take: 'bookserve batch' does.");
  if (size > DIRECTORY || start + size > from + end) throw new Error("The archive's directory is damaged or too long.");
  const view = await viewOf(archive, start, start + size);
  const entries = [];
  for (let at = 0; at + CENTRAL_BYTES <= size && entries.length < count; ) {
    if (view.getUint32(at, true) !== CENTRAL) throw new Error("The archive's directory is damaged.");
    const [nameSize, extra, comment] = [28, 30, 32].map((place) => view.getUint16(at + place, true));
    const name = new TextDecoder().decode(new Uint8Array(view.buffer, at + CENTRAL_BYTES, Math.min(nameSize, size - at - CENTRAL_BYTES)));
    const [packed, unpacked, place] = [20, 24, 42].map((field) => view.getUint32(at + field, true));
    entries.push({ name, flags: view.getUint16(at + 8, true), method: view.getUint16(at + 10, true), packed, size: unpacked, place });
    at += CENTRAL_BYTES + nameSize + extra + comment;
  }
  if (entries.length !== count) throw new Error("The archive's directory is damaged.");
  return entries;
}

const refused = (text) => new Fault(text, { status: 400 });

async function unpack(archive, { name, flags, method, packed, size, place }) {
  if (flags & ENCRYPTED) throw refused("This file of the archive is encrypted.");
  if (method !== STORED && method !== DEFLATED) throw refused(`This file is packed by method ${method}; stored and deflated ones are taken.`);
  if (size > ONE) throw refused(`This file unpacks to more than ${ONE / MiB} MiB.`);
  if (size > RATIO * packed) throw refused(`This file unpacks to more than ${RATIO} times its size.`);
  const head = await viewOf(archive, place, place + LOCAL_BYTES);
  if (head.byteLength < LOCAL_BYTES || head.getUint32(0, true) !== LOCAL) throw refused("This file is not where the archive says.");
  const start = place + LOCAL_BYTES + head.getUint16(26, true) + head.getUint16(28, true);
  const content = archive.slice(start, start + packed);
  if (content.size < packed) throw refused("This file is cut off.");
  const parts = method === STORED ? [content] : await inflate(content, size);
  const file = new File(parts, name.split("/").at(-1));
  if (file.size !== size) throw refused("This file is damaged: it has not the size that the archive says.");
  return file;
}

// The pieces of a deflated file; no more than `size` bytes are unpacked, but for the last piece.
async function inflate(content, size) {
  const reader = content.stream().pipeThrough(new DecompressionStream("deflate-raw")).getReader();
  const parts = [];
  let bytes = 0;
  try {
    while (bytes <= size) {
      const { done, value } = await reader.read();
      if (done) return parts;
      parts.push(value);
      bytes += value.length;
    }
  } catch {
    throw refused("This file of the archive is damaged.");
  }
  await reader.cancel();
  throw refused("This file unpacks to more than the archive says.");
}
