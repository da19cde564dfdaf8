// Programs that ask what was asked last, each true for this host: for the shell, Python, JavaScript, and the clients of
// TensorFlow Serving and Triton.

import { keyed } from "./api.js";
import { element, make } from "./dom.js";
import { ACCEPT } from "./files.js";
import { ASKED, UNANSWERED } from "./panel.js";
import { example } from "./panels/tensors.js";

const LONG = 100_000; // characters of a program's input; a longer one is read from a file
const FILE = "body.json";
const COPIED = 1_500; // milliseconds

export class Programs {
  constructor(model) {
    this.model = model;
    this.tabs = [];
    const question = model.form === "image-classification" ? { file: "picture.png" } : { body: firstBody(model) };
    for (const [id, title] of Object.entries(TITLES)) {
      if (id === "rest" && !model.addresses.rest) continue;
      this.add(id, title);
    }
    this.show({ path: `/api/v1/${model.name}`, ...question });
    this.select(this.tabs[0]);
    document.addEventListener(ASKED, ({ detail }) => this.show(detail));
    document.addEventListener(UNANSWERED, ({ detail }) => detail && this.show(detail)); // without an answer
  }

  add(id, title) {
    const tab = make("button", { type: "button", role: "tab", id: `code-tab-${id}`, "aria-controls": `code-panel-${id}` }, title);
    const text = make("pre", { id: `code-${id}`, tabindex: "0", role: "group", "aria-label": title });
    const copy = make("button", { type: "button", class: "copy" }, "Copy");
    const hint = make("p", { class: "hint" }, [HINTS[id], hintOf(this.model, id)].filter(Boolean).join(" "));
    const panel = make("div", { role: "tabpanel", id: `code-panel-${id}`, "aria-labelledby": tab.id }, hint, text, copy);
    const entry = { id, tab, panel, text };
    tab.addEventListener("click", () => this.select(entry));
    tab.addEventListener("keydown", (event) => this.step(event, entry));
    copy.addEventListener("click", () => copyText(text, copy));
    element("code-tabs").append(tab);
    element("code-panels").append(panel);
    this.tabs.push(entry);
  }

  select(entry) {
    for (const { tab, panel } of this.tabs) {
      const on = tab === entry.tab;
      tab.setAttribute("aria-selected", String(on));
      tab.tabIndex = on ? 0 : -1;
      panel.hidden = !on;
    }
  }

  step(event, entry) {
    const place = this.tabs.indexOf(entry);
    const to = { ArrowRight: place + 1, ArrowLeft: place - 1, Home: 0, End: -1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    const next = this.tabs.at(to % this.tabs.length);
    this.select(next);
    next.tab.focus();
  }

  show(asked) {
    const programs = programsOf(this.model, asked);
    for (const { id, text } of this.tabs) text.textContent = programs[id];
  }
}

// What can be asked before anything was.
export function firstBody(model) {
  const known = example(model)?.inputs ?? {};
  const row = Object.values(known)[0]?.[0] ?? 0;
  switch (model.form) {
    case "regression":
    case "tabular":
      return { x: row.length === 1 ? row[0] : row };
    case "molecules":
      return { smiles: "CCO" };
    case "text":
      return { text: "the" };
    case "board":
      return { board: Array(9).fill(""), player: "X" };
    default:
      return { inputs: known };
  }
}

async function copyText(text, button) {
  try {
    await navigator.clipboard.writeText(text.textContent);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(text);
    button.textContent = "Selected: press Ctrl+C";
  }
  setTimeout(() => (button.textContent = "Copy"), COPIED);
}

const TITLES = {
  curl: "curl",
  python: "Python",
  javascript: "JavaScript",
  grpc: "Python, gRPC",
  rest: "curl, model server",
  tfserving: "TensorFlow Serving",
  triton: "Triton",
  json: "JSON",
};
const SERVER = "The model server's address is the one that the gateway uses.";
const HINTS = {
  python: "Needs nothing but Python.",
  javascript: "For Node 18 and newer; in a browser, on a page of this host.",
  grpc: `Needs pip install '.[clients]' in a clone of bookserve. ${SERVER}`,
  rest: `TensorFlow Serving's REST. ${SERVER}`,
  tfserving: `Needs pip install tensorflow-serving-api. ${SERVER}`,
  triton: `Needs pip install 'tritonclient[grpc]'. ${SERVER}`,
};

// Where a program asks something else than the form above.
function hintOf(model, id) {
  if (id === "json") return "";
  if (id in OF_KEY && keyed()) return "BOOKSERVE_API_KEY in the environment is your API key.";
  const arrays = ["grpc", "tfserving", "triton"].includes(id);
  if (model.form === "tensors" && !example(model)) {
    return arrays ? "The inputs are large, so these are zeros." : `${FILE} is yours, such as assets.extra/example.json in the version's folder.`;
  }
  if (!arrays && id !== "rest") return "";
  if (model.form === "image-classification") return "The picture goes as a file, as bookserve's model server takes it; TensorFlow Serving takes pixels.";
  return ["tensors", "regression", "tabular"].includes(model.form) ? "" : "The model server takes tensors, which are those of the contract's example here.";
}

// The header with the API key as each language writes it, for a gateway that wants one.
const OF_KEY = {
  curl: `-H "Authorization: Bearer $BOOKSERVE_API_KEY" `,
  python: `, "Authorization": "Bearer " + os.environ["BOOKSERVE_API_KEY"]`,
  javascript: ", Authorization: `Bearer ${process.env.BOOKSERVE_API_KEY}`",
};
const keyOf = (id) => (keyed() ? OF_KEY[id] : "");
const withOs = (program) => (keyed() ? program.replace("import json\n", "import json\nimport os\n") : program);

// Of an input that is too large for an example.
const isEmpty = (inputs) => Boolean(inputs) && typeof inputs === "object" && !Object.keys(inputs).length;

const shell = (text) => `'${text.replaceAll("'", `'\\''`)}'`;
const text = (value) => JSON.stringify(value);

// A value of JSON as Python writes it.
function python(value) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
  if (typeof value === "object") return `{${Object.entries(value).map(([key, item]) => `${text(key)}: ${python(item)}`).join(", ")}}`;
  return text(value);
}

// As `python`, for an array: {"b64": …} of the REST form is bytes.
function pythonArray(value) {
  if (Array.isArray(value)) return `[${value.map(pythonArray).join(", ")}]`;
  return typeof value?.b64 === "string" ? `base64.b64decode(${text(value.b64)})` : python(value);
}

function programsOf(model, { path, body, file, version, predictions }) {
  const url = location.origin + path.split("/").map(encodeURIComponent).join("/");
  const arrays = Object.entries(tensorsOf(model, body, file));
  const answer = predictions ? `\n\n${JSON.stringify({ model: model.name, version, predictions }, null, 1)}` : "";
  return {
    ...(file ? ofPicture(url, file) : ofJson(url, body)),
    ...ofServer(model, arrays, file),
    json: file ? `${file} as the body, or as "file" of a form${answer}` : `${JSON.stringify(body, null, 1)}${answer}`,
  };
}

function ofJson(url, body) {
  const whole = text(body);
  const kept = isEmpty(body.inputs) || whole.length > LONG; // in a file, as it is large
  return {
    curl: `curl ${keyOf("curl")}-H 'Content-Type: application/json' -d ${kept ? `@${FILE}` : shell(whole)} ${shell(url)}`,
    python: withOs(`import json
import urllib.request${kept ? "\nfrom pathlib import Path" : ""}

body = ${kept ? `json.loads(Path("${FILE}").read_bytes())` : python(body)}
headers = {"Content-Type": "application/json"${keyOf("python")}}
request = urllib.request.Request(${text(url)}, json.dumps(body).encode(), headers)
with urllib.request.urlopen(request, timeout=30) as response:
    print(json.load(response))`),
    javascript: `${kept ? 'import { readFile } from "node:fs/promises";\n\n' : ""}const response = await fetch(${text(url)}, {
  method: "POST",
  headers: { "Content-Type": "application/json"${keyOf("javascript")} },
  body: ${kept ? `await readFile("${FILE}")` : `JSON.stringify(${whole})`},
});
console.log(JSON.stringify(await response.json()));`,
  };
}

function ofPicture(url, file) {
  const ending = file.split(".").at(-1).toLowerCase();
  const kind = { jpg: "jpeg", tif: "tiff" }[ending] ?? ending;
  const type = ACCEPT.split(",").find((taken) => taken === `image/${kind}`) ?? "image/png";
  return {
    curl: `curl ${keyOf("curl")}-F ${shell(`file=@${file}`)} ${shell(url)}`,
    python: withOs(`import json
import urllib.request
from pathlib import Path

picture = Path(${text(file)}).read_bytes()
request = urllib.request.Request(${text(url)}, picture, {"Content-Type": "${type}"${keyOf("python")}})
with urllib.request.urlopen(request, timeout=30) as response:
    print(json.load(response))`),
    javascript: `import { readFile } from "node:fs/promises";

const response = await fetch(${text(url)}, {
  method: "POST",
  headers: { "Content-Type": "${type}"${keyOf("javascript")} },
  body: await readFile(${text(file)}),
});
console.log(JSON.stringify(await response.json()));`,
  };
}

// What was asked as tensors, where it was numbers; else the contract's example, or zeros of the inputs' shapes.
function tensorsOf(model, body, file) {
  const { form, inputs } = model;
  if (file) return { [inputs[0].name]: [] };
  const known = example(model)?.inputs ?? {};
  const first = Object.fromEntries(inputs.map(({ name, shape }) => [name, shape[0] === null && Array.isArray(known[name]) ? known[name].slice(0, 1) : known[name]]));
  const [single] = inputs;
  if (["regression", "tabular"].includes(form) && body?.x !== undefined) {
    const rows = single.shape[1] === 1 ? [body.x].flat().map((x) => [x]) : Array.isArray(body.x[0]) ? body.x : [body.x];
    return { [single.name]: rows };
  }
  if (form !== "tensors" || body?.inputs === undefined || isEmpty(body.inputs)) return first;
  const given = body.inputs;
  const named = given && typeof given === "object" && !Array.isArray(given) && inputs.every(({ name }) => name in given);
  return named ? given : inputs.length === 1 ? { [single.name]: given } : first;
}

function arrayOf(model, [name, value], file) {
  if (file) return `np.array([Path(${text(file)}).read_bytes()], dtype=object)`;
  const { dtype, shape } = model.inputs.find((input) => input.name === name);
  const written = value === undefined ? "" : pythonArray(value);
  if (written && written.length <= LONG) return `np.array(${written}, dtype="${dtype}")`;
  const sizes = shape.map((size) => size ?? 1);
  return `np.zeros((${sizes.join(", ")}${sizes.length === 1 ? "," : ""}), dtype="${dtype}")`;
}

// A picture is too long for an argument of a command, but not for the shell itself.
function restOf(url, body, file) {
  const whole = text(body);
  const large = isEmpty(body.inputs) || whole.length > LONG;
  if (!file) return `curl -d ${large ? `@${FILE}` : shell(whole)} ${shell(url)}`;
  const [name] = Object.keys(body.inputs);
  const head = text({ ...body, inputs: { [name]: [{ b64: "" }] } }).replaceAll("%", "%%").replace('"b64":""', '"b64":"%s"');
  return `printf ${shell(head)} "$(base64 < ${shell(file)} | tr -d '\\n')" | curl -d @- ${shell(url)}`;
}

function ofServer(model, arrays, file) {
  const { name, signature, addresses } = model;
  const values = arrays.map((entry) => `    ${text(entry[0])}: ${arrayOf(model, entry, file)},`).join("\n");
  const inputs = `inputs = {\n${values}\n}`;
  const bytes = file ? "from pathlib import Path\n\n" : values.includes("base64.") ? "import base64\n\n" : "";
  const other = signature === "serving_default" ? "" : signature;
  const body = { ...(other && { signature_name: other }), inputs: Object.fromEntries(arrays.filter(([, value]) => value !== undefined)) };
  return {
    grpc: `${bytes}import numpy as np

from bookserve.clients.grpc_client import GrpcClient

${inputs}
with GrpcClient(${text(addresses.grpc)}) as client:
    answer = client.predict(${text(name)}, inputs${other && `, signature=${text(other)}`})
    print(answer.version, answer.outputs)`,
    rest: addresses.rest && restOf(`${addresses.rest}/v1/models/${encodeURIComponent(name)}:predict`, body, file),
    tfserving: `${bytes}import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

${inputs}
request = predict_pb2.PredictRequest()
request.model_spec.name = ${text(name)}
request.model_spec.signature_name = ${text(signature)}
for key, value in inputs.items():
    request.inputs[key].CopyFrom(tf.make_tensor_proto(value))
with grpc.insecure_channel(${text(addresses.grpc)}) as channel:
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    print(stub.Predict(request, timeout=30))`,
    triton: `${bytes}import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import np_to_triton_dtype

${inputs}
tensors = []
for key, value in inputs.items():
    tensor = triton.InferInput(key, value.shape, np_to_triton_dtype(value.dtype))
    tensor.set_data_from_numpy(value)
    tensors.append(tensor)
client = triton.InferenceServerClient(${text(addresses.grpc)})
answer = client.infer(${text(name)}, tensors)
for output in answer.get_response().outputs:
    print(output.name, answer.as_numpy(output.name))`,
  };
}
