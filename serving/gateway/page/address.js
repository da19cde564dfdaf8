// The address that reproduces an input: "#try=" and the input as JSON. Back and forward go through the inputs.
//
// What is behind "#" stays in the browser. An input without a short form, such as a photograph, is not kept.

const MARK = "#try=";
export const LONGEST = 8_000; // characters
export const SETTLED = 1_000; // milliseconds; inputs that follow each other faster are one entry of the history

const ACTS = ["input", "change", "pointerdown", "keydown", "paste", "drop"]; // of a person

let last = -Infinity; // when the newest entry was made
// Whether the next input is not a person's: it is the page's first, or comes from the address.
let restored = true;
for (const act of ACTS) document.addEventListener(act, () => (restored = false), true);

// The input in the address, or null.
export function recall() {
  if (!location.hash.startsWith(MARK)) return null;
  try {
    return JSON.parse(decodeURIComponent(location.hash.slice(MARK.length)));
  } catch {
    return null;
  }
}

// The page asks with this input now, which leaves the address as it is where the page asks by itself. null stands for an
// input that has no address, false for one that is not to be kept. Returns what is behind the address's "#" where a
// person asked, else "".
export function remember(input) {
  if (input === false) return "";
  const text = input === null ? "" : `${MARK}${encodeURIComponent(JSON.stringify(input))}`;
  const hash = text.length > LONGEST ? "" : text;
  const own = restored;
  restored = false;
  if (own) return "";
  if (hash === location.hash) return hash;
  const address = location.pathname + location.search + hash;
  const now = performance.now();
  if (now - last < SETTLED) history.replaceState(null, "", address);
  else history.pushState(null, "", address);
  last = now;
  return hash;
}

// Calls `restore` with the input of the address, null for none, when the person goes back or forward.
export function followAddress(restore) {
  addEventListener("popstate", () => {
    if (location.hash && !location.hash.startsWith(MARK)) return; // a place on the page
    restored = true; // also of a question that has to wait for the one before it
    last = -Infinity;
    restore(recall());
  });
}
