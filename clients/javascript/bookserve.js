// Asks the gateway for predictions, from Node 20 and from a page. Without dependencies; its types are in bookserve.d.ts.

const LINES = "application/x-ndjson";
const MOST_LINES = 256; // of a request; what is sent fits into buffers, so that nobody waits for the other to read
const MOST_BYTES = 128 * 1024;
const SAFE = new Set([429, 503]); // a prediction changes nothing, so it may be asked again
const FIRST_WAIT = 100; // milliseconds before the first retry, doubled each time
const LONGEST_WAIT = 2000;

// What the gateway refused, or why it could not be asked. `type` tells problems apart (RFC 9457): it ends in a word
// such as "bad-value", and is "" where nobody answered.
export class BookserveError extends Error {
  constructor(message, { status = 0, problem = {}, cause } = {}) {
    super(message, { cause });
    this.name = "BookserveError";
    this.status = status;
    this.type = problem.type ?? "";
    this.problem = problem;
  }
}

export class Client {
  #url;
  #headers;
  #timeout;
  #retries;
  #fetch;

  // `timeout` is in milliseconds, for a call with all its retries.
  constructor(url = "http://127.0.0.1:8080", { key = "", timeout = 15_000, retries = 2, fetch = globalThis.fetch } = {}) {
    this.#url = url.replace(/\/+$/, "");
    this.#headers = key ? { authorization: `Bearer ${key}` } : {};
    this.#timeout = timeout;
    this.#retries = retries;
    this.#fetch = (...request) => fetch(...request);
  }

  // Every model that the gateway knows, with its version and whether it can answer.
  async models(options) {
    return (await this.#json("GET", "/api/v1/models", undefined, options)).models;
  }

  // One model: its contract, its versions and their figures.
  async model(name, options) {
    return this.#json("GET", `/api/v1/models/${encodeURIComponent(name)}`, undefined, options);
  }

  // The predictions of a body as the model's task has it, such as {x: [1.5]}, {smiles: ["CCO"]} or {inputs: [[1, 2]]}.
  async predict(name, body, options) {
    return this.#json("POST", predictPath(name, options), { body: JSON.stringify(body), type: "application/json" }, options);
  }

  // The predictions of pictures: files as Blob, ArrayBuffer or Uint8Array.
  async pictures(name, files, options) {
    return this.#json("POST", predictPath(name, options), { body: formOf(files) }, options);
  }

  // Whether a model answers, with its versions, labels and last minutes; it costs the gateway little.
  async state(name, options) {
    return this.#json("GET", `/api/v1/models/${encodeURIComponent(name)}/state`, undefined, options);
  }

  // The prediction of one molecule or board, and in `without` the same without each atom or mark.
  async explain(name, body, options) {
    const path = `/api/v1/${encodeURIComponent(name)}/explain${query(options)}`;
    return this.#json("POST", path, { body: JSON.stringify(body), type: "application/json" }, options);
  }

  // A picture in a format that a browser may not show, such as HEIC, as a small PNG: a Blob. `given`: as the model is given it.
  async preview(name, file, { given = false, ...options } = {}) {
    const path = `/api/v1/${encodeURIComponent(name)}/preview${given ? "?given=true" : ""}`;
    const response = await this.#response("POST", path, { body: formOf([file]) }, options);
    return response.blob();
  }

  // How texts may go on, by a model that knows the next word.
  async generate(name, body, options) {
    const path = `/api/v1/${encodeURIComponent(name)}/generate${query(options)}`;
    return this.#json("POST", path, { body: JSON.stringify(body), type: "application/json" }, options);
  }

  // The answers to many bodies, one by one, in their order: {line, version, predictions} or {line, problem}. `bodies` is
  // any iterable, also an asynchronous one, of any length; a part of it is in memory at a time.
  async *lines(name, bodies, options) {
    let sent = 0;
    for await (const lines of parts(bodies)) {
      const content = { body: lines.join(""), type: LINES };
      const response = await this.#response("POST", predictPath(name, options), content, options);
      for await (const line of linesOf(response)) {
        const answer = JSON.parse(line);
        yield { ...answer, line: sent + answer.line };
      }
      sent += lines.length;
    }
  }

  async #json(method, path, content, options) {
    const response = await this.#response(method, path, content, options);
    try {
      return await response.json();
    } catch (cause) {
      throw new BookserveError(`${this.#url} answered something other than JSON: is this the gateway?`, { cause });
    }
  }

  // A good answer; what it is safe to ask again is asked again, until the timeout.
  async #response(method, path, content, { signal, timeout = this.#timeout } = {}) {
    const deadline = Date.now() + timeout;
    const limit = AbortSignal.timeout(timeout);
    const stop = signal ? AbortSignal.any([signal, limit]) : limit;
    for (let tried = 0; ; tried += 1) {
      let response, failure;
      try {
        const headers = { accept: `application/json, ${LINES}`, ...this.#headers };
        if (content?.type) headers["content-type"] = content.type;
        response = await this.#fetch(this.#url + path, { method, headers, body: content?.body, signal: stop });
        if (response.ok) return response;
        failure = await refusal(response);
      } catch (cause) {
        if (signal?.aborted) throw cause;
        const late = limit.aborted;
        const text = late ? `${this.#url} gave no answer within ${timeout} ms` : `nothing answers at ${this.#url}`;
        failure = new BookserveError(text, { cause });
        if (late) throw failure;
      }
      const wait = pause(tried, response);
      const again = (!response || SAFE.has(response.status)) && tried < this.#retries && Date.now() + wait < deadline;
      if (!again) throw failure;
      await new Promise((resume) => setTimeout(resume, wait));
    }
  }
}

function formOf(files) {
  const form = new FormData();
  for (const file of files) form.append("file", file instanceof Blob ? file : new Blob([file]), "picture");
  return form;
}

async function refusal(response) {
  const problem = await response.json().catch(() => ({}));
  return new BookserveError(problem.detail ?? `the gateway answered ${response.status}`, { status: response.status, problem });
}

// Milliseconds before the next try: what the gateway asks for, or a random part of a time that doubles.
function pause(tried, response) {
  const asked = Number(response?.headers.get("retry-after"));
  if (asked > 0) return 1000 * asked;
  return Math.random() * Math.min(LONGEST_WAIT, FIRST_WAIT * 2 ** tried);
}

function query({ version, label } = {}) {
  if (version !== undefined && label !== undefined) throw new TypeError("give a version or a label, not both");
  const choice = Object.entries({ version, label }).filter(([, value]) => value !== undefined);
  return choice.length ? `?${new URLSearchParams(choice)}` : "";
}

function predictPath(name, options) {
  return `/api/v1/models/${encodeURIComponent(name)}:predict${query(options)}`;
}

// The bodies as lines, as many as go into a request.
async function* parts(bodies) {
  let lines = [];
  let size = 0;
  for await (const body of bodies) {
    const line = `${JSON.stringify(body)}\n`;
    if (lines.length && (lines.length >= MOST_LINES || size + line.length > MOST_BYTES)) {
      yield lines;
      [lines, size] = [[], 0];
    }
    lines.push(line);
    size += line.length;
  }
  if (lines.length) yield lines;
}

async function* linesOf(response) {
  const decoder = new TextDecoder();
  let kept = "";
  for await (const piece of piecesOf(response.body)) {
    const lines = (kept + decoder.decode(piece, { stream: true })).split("\n");
    kept = lines.pop();
    yield* lines;
  }
  if (kept) throw new BookserveError("the gateway broke its answer off");
}

// Not all browsers can iterate a stream.
async function* piecesOf(stream) {
  const reader = stream.getReader();
  try {
    for (let { done, value } = await reader.read(); !done; { done, value } = await reader.read()) yield value;
  } finally {
    reader.cancel().catch(() => {});
  }
}
