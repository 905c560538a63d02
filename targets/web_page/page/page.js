// The page itself: what the user sees and presses.

import { bytes, difference, histogram, milliseconds, percentile, summary } from "./figures.js";
import { axesOf, dimsOf, drawn, placed } from "./inputs.js";
import { Model } from "./model.js";
import { readNpy, readNpz } from "./tensors.js";

const at = (id) => document.getElementById(id);
const SLICE_MS = 250;

let manifest;
let axes;
let model;
let given = { inputs: {}, expected: {} };
const kinds = new Map();

function made(tag, text, kind) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (kind) element.className = kind;
  return element;
}

const kindOf = (type, dims) => `${type} [${dims.map((size) => size ?? "?").join(", ")}]`;

function describe() {
  const name = manifest.name || "Model";
  document.title = name;
  at("name").textContent = name;
  at("about").textContent =
    `${bytes(manifest.bytes)}, ${manifest.precision}, ` +
    `ONNX Runtime Web ${manifest.runtime.version} on ${manifest.device === "webgpu" ? "WebGPU" : "WebAssembly"}`;
  if (manifest.threads) at("threads").value = manifest.threads;
  if (!self.crossOriginIsolated) {
    at("threads").disabled = true;
    at("threads").placeholder = "1";
    at("threads").value = "";
    say("One thread only: this web server does not send the headers Cross-Origin-Opener-Policy and Cross-Origin-Embedder-Policy, or not over https.");
  }
  axes = axesOf(manifest.inputs);
  at("axes").hidden = axes.size === 0;
  for (const axis of axes.values()) {
    const label = made("label", axis.label);
    const field = made("input");
    Object.assign(field, { type: "number", min: 0, value: axis.size, inputMode: "numeric" });
    field.addEventListener("input", () => {
      axis.size = Math.max(0, Math.floor(Number(field.value) || 0));
      showInputs();
    });
    label.append(field);
    at("axes").append(label);
  }
  showInputs();
}

function showInputs() {
  at("inputs").replaceChildren(
    ...manifest.inputs.map((input) => {
      const file = given.inputs[input.name];
      const row = made("div", undefined, "tensor");
      const words = made("div");
      words.append(made("b", input.name), made("div", kindOf(input.type, file?.dims ?? dimsOf(input, axes)), "kind"));
      const choice = made("select");
      choice.setAttribute("aria-label", `Values of ${input.name}`);
      for (const [value, text] of [["random", "random"], ["zeros", "zeros"], ["ones", "ones"], ...(file ? [["file", "from the file"]] : [])]) {
        choice.append(Object.assign(made("option", text), { value }));
      }
      choice.value = file ? "file" : (kinds.get(input.name) ?? "random");
      choice.addEventListener("change", () => {
        if (choice.value !== "file") {
          delete given.inputs[input.name];
          given.expected = {};
          kinds.set(input.name, choice.value);
          showInputs();
        }
      });
      row.append(words, choice);
      return row;
    }),
  );
  if (manifest.inputs.length === 0) at("inputs").replaceChildren(made("p", "This model has no inputs.", "quiet"));
}

function say(text, kind = "") {
  at("state").textContent = text;
  at("state").className = kind;
}

function progress(part) {
  at("progress").hidden = part === null;
  if (part === undefined) at("progress").removeAttribute("value");
  else if (part !== null) at("progress").value = part;
}

// The number of threads is the runtime's for good: another one needs another worker.
async function opened() {
  const threads = Number(at("threads").value) || 0;
  if (model?.threads === threads) return model;
  model?.close();
  model = undefined;
  say("Loading the model…");
  const done = new Map();
  const loaded = await Model.open(threads, ({ address, done: part }) => {
    done.set(address, part);
    const all = [...done.values()].reduce((sum, each) => sum + each, 0);
    if (all < manifest.bytes) progress(all / manifest.bytes);
    else progress(undefined);
  });
  loaded.threads = threads;
  model = loaded;
  return model;
}

async function run() {
  const feed = {};
  for (const input of manifest.inputs) {
    feed[input.name] =
      given.inputs[input.name] ?? drawn(input, dimsOf(input, axes), kinds.get(input.name) ?? "random");
  }
  progress(undefined);
  const { facts } = await opened();
  say("First run…");
  await model.call("bind", { tensors: feed });
  const first = await model.call("run");
  const allMs = Math.max(0.5, Number(at("seconds").value) || 3) * 1000;
  // a third of the time more to warm up: machine code is still being made better
  await slices(allMs / 3, (part) => show("Warming up…", part));
  const samples = await slices(allMs, (part) => show("Measuring…", part));
  const outputs = await model.call("outputs");
  const sorted = Float64Array.from(samples).sort();
  at("p50").textContent = milliseconds(percentile(sorted, 50));
  at("p90").textContent = sorted.length >= 10 ? milliseconds(percentile(sorted, 90)) : "–";
  at("runs").textContent = sorted.length;
  at("rate").textContent = ((sorted.length * 1000) / sorted.reduce((sum, each) => sum + each, 0)).toPrecision(3);
  at("first").textContent = milliseconds(first);
  at("load").textContent = milliseconds(facts.loadMs);
  const [least, most] = histogram(at("chart"), sorted);
  at("least").textContent = milliseconds(least);
  at("most").textContent = milliseconds(most);
  at("backend").textContent = backend(facts);
  const wrong = showOutputs(outputs);
  at("results").hidden = false;
  if (wrong === null) say("Done.");
  else say(wrong ? "Done: the outputs differ from the file’s." : "Done: the outputs agree with the file’s.", wrong ? "bad" : "good");
}

function show(text, part) {
  say(text);
  progress(part);
}

async function slices(allMs, tell) {
  const samples = [];
  const begun = performance.now();
  for (let spent = 0; spent < allMs; spent = performance.now() - begun) {
    tell(spent / allMs);
    samples.push(...(await model.call("measure", { iterations: 1e6, durationMs: Math.min(SLICE_MS, allMs - spent) })));
  }
  return samples;
}

function backend(facts) {
  const { gpu } = facts;
  const threads = facts.isolated ? facts.threads : 1;
  const where = gpu
    ? `WebGPU on ${[gpu.vendor, gpu.architecture, gpu.description].filter(Boolean).join(" ") || "a GPU without a name"}${gpu.software ? " (software, no GPU)" : ""}`
    : `WebAssembly, ${threads === 1 ? "1 thread" : `${threads} threads`}`;
  return `${where}. The clock counts in steps of ${Math.round(facts.resolutionMs * 1000)} µs. Each run includes copying its inputs and outputs.`;
}

// Returns whether an output differs from the file's, null where there is none to compare with.
function showOutputs(outputs) {
  let wrong = null;
  at("outputs").replaceChildren(
    ...manifest.outputs.map(({ name }) => {
      const tensor = outputs[name];
      const row = made("div", undefined, "tensor");
      const words = made("div");
      words.append(made("b", name), made("div", kindOf(tensor.type, tensor.dims), "kind"));
      row.append(words, made("div", summary(tensor), "values quiet"));
      if (given.expected[name]) {
        const error = difference(tensor, given.expected[name]);
        const good = error <= 1e-3;
        wrong = Boolean(wrong) || !good;
        const text = error === Infinity ? "differs in shape or kind" : `largest difference ${error.toExponential(1)} of its largest value`;
        row.append(made("div", text, `values ${good ? "good" : "bad"}`));
      }
      return row;
    }),
  );
  return wrong;
}

async function openFiles(list) {
  const tensors = {};
  for (const file of list) {
    const buffer = await file.arrayBuffer();
    if (file.name.endsWith(".npz")) Object.assign(tensors, await readNpz(buffer, file.name));
    else tensors[file.name.replace(/\.npy$/, "")] = readNpy(buffer, file.name);
  }
  const found = placed(tensors, manifest);
  given = { inputs: { ...given.inputs, ...found.inputs }, expected: found.expected };
  showInputs();
  say(`From the file: ${Object.keys(found.inputs).join(", ") || "no input"}.`);
}

async function guarded(work) {
  at("start").disabled = true;
  try {
    await work();
  } catch (error) {
    say(error.message, "bad");
  } finally {
    at("start").disabled = false;
    progress(null);
  }
}

at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  guarded(run);
});
at("file").addEventListener("change", ({ target }) => guarded(() => openFiles(target.files)));

guarded(async () => {
  const answer = await fetch("manifest.json");
  if (!answer.ok) throw new Error(`manifest.json: the web server answers ${answer.status}`);
  manifest = await answer.json();
  describe();
});
