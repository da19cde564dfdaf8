// What is known of a model: figures and pictures of the version that answers, versions side by side, tensors, card.

import { element, figure, make, table } from "./dom.js";
import { render } from "./markdown.js";

const SIDE_BY_SIDE = 5; // versions
const RATES = ["precision", "recall", "specificity"];
const SPLITS = ["test", "valid"]; // the first that there is stands for a version

const words = (name) => name.replaceAll("_", " ");
const chosen = ({ version, versions }) => versions.find((one) => one.version === version) ?? versions.find((one) => one.manifest) ?? null;

function splitOf(manifest) {
  const metrics = manifest?.metrics ?? {};
  const name = SPLITS.find((split) => metrics[split]) ?? Object.keys(metrics)[0];
  return name ? [name, metrics[name]] : ["", {}];
}

export function showFigures(model) {
  const content = [];
  const version = chosen(model);
  const metrics = Object.entries(version?.manifest?.metrics ?? {});
  if (version?.manifest?.data?.source === "sample") {
    content.push(make("p", { class: "notice mild" }, "Trained on sample data: the figures say nothing about the real data set."));
  }
  for (const [names, splits] of alike(metrics)) {
    const rows = splits.map(([split, figures]) => [split, ...names.map((name) => figure(figures[name]))]);
    content.push(table(`Figures of version ${version.version}`, ["data", ...names.map(words)], rows));
  }
  if (model.evaluation) content.push(...judged(model.evaluation));
  const quantized = version?.manifest?.quantization;
  if (quantized) content.push(...int8(quantized));
  const pictures = (version?.report ?? []).map((path) => {
    const title = words(path.split("/").at(-1).replace(/\.png$/, ""));
    const image = make("img", { src: path, alt: `Picture of the report: ${title}`, loading: "lazy" });
    return make("figure", {}, make("a", { href: path }, image), make("figcaption", {}, title));
  });
  if (pictures.length) content.push(make("div", { class: "pictures" }, ...pictures));
  if (!content.length) content.push(make("p", { class: "hint" }, "The version has no figures."));
  element("figures-content").replaceChildren(...content);
}

// Splits that have the same figures, together: [names, [[split, figures], …]].
function alike(metrics) {
  const groups = new Map();
  for (const [split, figures] of metrics) {
    const key = Object.keys(figures).join();
    groups.set(key, [...(groups.get(key) ?? []), [split, figures]]);
  }
  return [...groups.values()].map((splits) => [Object.keys(splits[0][1]), splits]);
}

// How the served graph did on the test rows, and how far that can be trusted.
function judged({ figure: name, value, rows, interval, classes = [], calibration }) {
  const sure = interval ? ` Its 95 % interval is ${figure(interval[0])} to ${figure(interval[1])}.` : "";
  const made = [make("p", { id: "judged" }, `The served graph on ${rows} test rows: ${words(name)} ${figure(value)}.${sure}`)];
  if (calibration) {
    const text = `Calibration: the probabilities are off by ${percentOf(calibration.ece)} on average (expected calibration error); Brier score ${figure(calibration.brier)}.`;
    made.push(make("p", { class: "hint" }, text));
  }
  if (classes.length) {
    const cells = (one) => [one.name, String(one.rows), String(one.positives), ...RATES.map((rate) => percentOf(one[rate]))];
    made.push(table("Each class on the test rows", ["class", "rows", "of it", ...RATES], classes.map(cells)));
  }
  return made;
}

const percentOf = (share) => (typeof share === "number" ? `${figure(100 * share)} %` : "–");

function int8({ figure: name, float32, int8: small, difference, interval, rows, version }) {
  const sure = interval?.length === 2 ? `, 95 % interval ${figure(interval[0])} to ${figure(interval[1])}` : "";
  const text = `The int8 graph of version ${version}, on ${rows} rows: the difference is ${figure(difference)}${sure}.`;
  return [table("int8 beside float32", ["figure", "float32", "int8"], [[words(name), figure(float32), figure(small)]]), make("p", { class: "hint" }, text)];
}

export function showVersions({ version: answers, versions }) {
  const shown = versions.slice(0, SIDE_BY_SIDE);
  const states = { AVAILABLE: "ready", LOADING: "loading", UNLOADING: "unloading", START: "found", END: "unloaded" };
  const state = (one) => one.error || (one.version === answers ? "answers" : one.state ? (states[one.state] ?? one.state) : "in the store");
  const facts = {
    state,
    labels: ({ labels }) => labels?.join(", "),
    published: ({ manifest }) => manifest?.created?.slice(0, 16).replace("T", " "),
    data: ({ manifest }) => manifest?.data && `${manifest.data.name}${manifest.data.source === "sample" ? " (a sample)" : ""}`,
    "made from": ({ manifest }) => manifest?.source && `${manifest.source.name} (${manifest.source.format})`,
    training: ({ manifest }) => manifest?.profile && `${manifest.configuration ?? ""} ${manifest.profile}`.trim(),
    precision: ({ manifest }) => manifest?.precision,
  };
  const rows = Object.entries(facts)
    .map(([name, of]) => [name, ...shown.map((one) => of(one) || "")])
    .filter(([, ...cells]) => cells.some(Boolean));
  const figures = shown.map(({ manifest }) => splitOf(manifest));
  const [split] = figures.find(([name]) => name) ?? [""];
  const names = [...new Set(figures.flatMap(([, values]) => Object.keys(values)))];
  const differ = figures.filter(([name]) => name).length > 1;
  const cell = ([, values], name) => (values[name] === undefined ? "" : figure(values[name]));
  for (const name of names) rows.push([`${words(name)} (${split})`, ...figures.map((one) => cell(one, name))]);
  const head = ["fact", ...shown.map(({ version }) => `version ${version}`)];
  if (differ) {
    const [place, before] = figures.flatMap(([name], index) => (name ? [index] : []));
    head.push(`${shown[place].version} less ${shown[before].version}`);
    const numbers = new Map(names.map((name) => [`${words(name)} (${split})`, figures[place][1][name] - figures[before][1][name]]));
    for (const row of rows) {
      const difference = numbers.get(row[0]);
      row.push(Number.isFinite(difference) ? `${difference > 0 ? "+" : ""}${figure(difference)}` : "");
    }
  }
  const content = [table("Versions side by side", head, rows)];
  if (versions.length > shown.length) content.push(make("p", { class: "hint" }, `The newest ${shown.length} of ${versions.length} versions.`));
  element("versions-content").replaceChildren(...content);
}

export function showTensors({ inputs, outputs, labels, columns, preprocessing, contract, signature }) {
  const shape = (sizes) => `[${sizes.map((size, place) => size ?? (place ? "any" : "rows")).join(", ")}]`;
  const row = (way) => ({ name, dtype, shape: sizes, unit }) => [name, way, dtype === "object" ? "string" : dtype, shape(sizes), unit ?? ""];
  const rows = [...inputs.map(row("in")), ...outputs.map(row("out"))];
  const content = [table("Tensors", ["name", "way", "type", "shape", "unit"], rows)];
  const facts = { Contract: contract, Signature: signature, Labels: labels.join(", "), Columns: columns.join(", "), "Done before the graph": meansText(preprocessing) };
  const known = Object.entries(facts).filter(([, text]) => text);
  content.push(make("dl", { class: "facts" }, ...known.map(([term, text]) => make("div", {}, make("dt", {}, term), make("dd", {}, text)))));
  element("tensors-content").replaceChildren(...content);
}

function meansText(means) {
  if (!means) return "";
  if (means.size) {
    const how = { crop: "the central part is cut out and scaled", stretch: "the whole picture is scaled", centred: "the sign is scaled and centred" };
    return `A picture in ${means.colour === "grey" ? "grey" : "colour"}: ${how[means.resize] ?? "it is scaled"} to ${means.size.join(" by ")} pixels`;
  }
  if (means.vocabulary) return `A text's words are numbered by ${means.vocabulary}`;
  if (means.fingerprint) {
    const more = means.descriptors ? `, counts and ${means.descriptors.names.length} descriptors of RDKit ${means.descriptors.rdkit}` : "";
    return `A molecule's ${means.fingerprint.kind} fingerprint of ${means.fingerprint.bits} bits, radius ${means.fingerprint.radius}${more}`;
  }
  return "";
}

// What the graph of the version consists of.
export async function showGraph(model) {
  const path = chosen(model)?.graph;
  const place = element("graph-content");
  if (path && place.dataset.path === path) return;
  const response = path ? await fetch(path) : null;
  place.dataset.path = path ?? "";
  if (!response?.ok) {
    place.replaceChildren();
    return;
  }
  const { file, bytes, nodes, kinds, operations, whole, inputs, outputs } = await response.json();
  const size = (value) => (value === null ? "any" : value);
  const row = (way) => ({ name, dtype, shape }) => [name || "without a name", way, dtype, shape ? `[${shape.map(size).join(", ")}]` : "any"];
  const content = [table(`${nodes}${whole ? "" : " or more"} operations in the graph (${file}, ${figure(bytes / 1e6)} MB)`, ["operation", "how often"], operations)];
  const hints = [kinds > operations.length && `The ${operations.length} most frequent of ${kinds} kinds.`, !whole && "The file is larger than what is counted."].filter(Boolean);
  if (hints.length) content.push(make("p", { class: "hint" }, hints.join(" ")));
  if (inputs) content.push(table("Inputs and outputs of the graph", ["name", "way", "type", "shape"], [...inputs.map(row("in")), ...outputs.map(row("out"))]));
  place.replaceChildren(...content);
}

export async function showCard(model) {
  const path = chosen(model)?.card;
  const place = element("card-content");
  if (path && place.dataset.path === path) return;
  const response = path ? await fetch(path) : null;
  place.dataset.path = path ?? "";
  if (response?.ok) place.replaceChildren(...render(await response.text()));
  else place.replaceChildren(make("p", { class: "hint" }, "The version has no card."));
}
