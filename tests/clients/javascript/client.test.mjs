// The JavaScript client in Node, against the real gateway at $GATEWAY; tests/clients/test_javascript.py starts it.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { after, test } from "node:test";

import { BookserveError, Client } from "../../../clients/javascript/bookserve.js";

const { GATEWAY, KEY, SEVEN } = process.env;
const client = new Client(GATEWAY, { key: KEY });

test("a prediction, a version and a model", async () => {
  const answer = await client.predict("linear", { x: [1.5, 2] });
  assert.deepEqual(answer, { model: "linear", version: 3, predictions: [{ y: 9.5 }, { y: 12 }] });
  assert.equal((await client.predict("linear", { x: 1 }, { version: 3 })).version, 3);
  assert.equal((await client.model("linear")).task, "regression");
  assert.ok((await client.models()).some(({ name, ready }) => name === "linear" && ready));
  await assert.rejects(client.predict("linear", { x: 1 }, { version: 2, label: "a" }), TypeError);
});

test("pictures go as files", async () => {
  const file = await readFile(SEVEN);
  const { predictions } = await client.pictures("mnist", [file, new Blob([file])]);
  assert.equal(predictions.length, 2);
  assert.deepEqual(predictions[0], predictions[1]);
  assert.match(predictions[0].class, /^[0-9]$/);
});

test("what mattered, whether a model answers, and a picture that is shown", async () => {
  const { predictions, without, kept } = await client.explain("tox21", { smiles: "CCO" });
  assert.equal(predictions[0].smiles, "CCO");
  assert.deepEqual(without.map(({ atom, symbol }) => `${symbol}${atom}`), ["C0", "C1", "O2"]);
  assert.deepEqual(kept, ["descriptors"]);
  const { ready, version } = await client.state("tox21");
  assert.deepEqual([ready, version], [true, 3]);
  const png = await client.preview("mnist", await readFile(SEVEN));
  assert.equal(png.type, "image/png");
  assert.deepEqual([...new Uint8Array(await png.arrayBuffer())].slice(1, 4), [...Buffer.from("PNG")]);
  const given = await client.preview("mnist", await readFile(SEVEN), { given: true });
  assert.deepEqual([...new Uint8Array(await given.arrayBuffer())].slice(16, 24), [0, 0, 0, 28, 0, 0, 0, 28]); // its size
  await assert.rejects(client.preview("mnist", new Blob(["none"])), { status: 400 });
});

test("a refusal is an error that a program can tell", async () => {
  await assert.rejects(client.predict("linear", { x: "a" }), (error) => {
    assert.ok(error instanceof BookserveError);
    assert.equal(error.status, 400);
    assert.equal(error.type, "urn:bookserve:problem:bad-value");
    assert.equal(error.problem.field, "x");
    return true;
  });
  await assert.rejects(new Client(GATEWAY).models(), { status: 401, type: "urn:bookserve:problem:unauthorized" });
});

test("many bodies are answered in order, bad ones with their problem", async () => {
  async function* bodies() {
    for (let x = 0; x < 1000; x += 1) yield x === 700 ? { x: "a" } : { x };
  }
  let line = 0;
  for await (const answer of client.lines("linear", bodies())) {
    line += 1;
    assert.equal(answer.line, line);
    if (line === 701) assert.equal(answer.problem.status, 400);
    else assert.deepEqual(answer.predictions, [{ y: 5 * (line - 1) + 2 }]);
  }
  assert.equal(line, 1000);
});

// A server that gives these answers in turn, the last one for ever.
async function canned(...answers) {
  const asked = [];
  const server = createServer((request, response) => {
    asked.push(request.url);
    const [status, body, headers = {}] = answers[Math.min(asked.length, answers.length) - 1];
    if (status) response.writeHead(status, headers).end(JSON.stringify(body));
  });
  await new Promise((ready) => server.listen(0, "127.0.0.1", ready));
  after(() => {
    server.closeAllConnections();
    server.close();
  });
  return { url: `http://127.0.0.1:${server.address().port}`, asked };
}

test("what it is safe to ask again is asked again", async () => {
  const full = [503, { detail: "full" }];
  const { url, asked } = await canned(full, full, [200, { predictions: [1] }]);
  assert.deepEqual(await new Client(url).predict("m", {}), { predictions: [1] });
  assert.equal(asked.length, 3);
  const never = await canned(full);
  await assert.rejects(new Client(never.url, { retries: 1 }).predict("m", {}), { status: 503, message: "full" });
  assert.equal(never.asked.length, 2);
});

test("a refusal is not asked again", async () => {
  const { url, asked } = await canned([400, { detail: "bad" }]);
  await assert.rejects(new Client(url).predict("m", {}), { status: 400 });
  assert.equal(asked.length, 1);
});

test("the timeout holds for all tries, and Retry-After is kept", async () => {
  const slow = await canned([0]);
  const began = Date.now();
  await assert.rejects(new Client(slow.url, { timeout: 300 }).predict("m", {}), /gave no answer within 300 ms/);
  assert.ok(Date.now() - began < 2000);
  const later = await canned([503, { detail: "later" }, { "retry-after": "1" }], [200, {}]);
  await assert.rejects(new Client(later.url, { timeout: 500 }).predict("m", {}), { status: 503 });
  assert.equal(later.asked.length, 1);
});

test("nobody there is an error without a status", async () => {
  await assert.rejects(new Client("http://127.0.0.1:1", { retries: 1 }).models(), {
    status: 0,
    message: "nothing answers at http://127.0.0.1:1",
  });
});
