// The model at work, in a worker: the page stays alive while it computes, and threads may wait here.

import { packTensors, plain, unpackTensors } from "./tensors.js";

let ort;
let session;
let feed;
let outputs;

const calls = {
  async open({ manifest, threads }) {
    const begun = performance.now();
    const { module, loader, binary } = manifest.runtime;
    const place = (name) => new URL(name, import.meta.url).href;
    ort = await import(place(module));
    ort.env.wasm.wasmPaths = { mjs: place(loader), wasm: place(binary) };
    if (threads) ort.env.wasm.numThreads = threads;
    ort.env.logLevel = "error";
    const [model, ...beside] = await Promise.all(manifest.model.map((name) => download(place(name))));
    const gpu = manifest.device === "webgpu" ? await adapter() : null;
    session = await ort.InferenceSession.create(model, {
      executionProviders: [manifest.device],
      graphOptimizationLevel: manifest.optimization,
      externalData: beside.map((data, index) => ({ path: manifest.model[index + 1], data })),
    });
    return {
      loadMs: performance.now() - begun,
      threads: ort.env.wasm.numThreads,
      isolated: self.crossOriginIsolated,
      version: ort.env.versions.web,
      resolutionMs: resolution(),
      gpu,
    };
  },

  // Fixes the inputs: given as they are, or at the address `from`.
  async bind({ tensors, from }) {
    const given = tensors ?? unpackTensors(await (await fetched(from)).arrayBuffer());
    feed = {};
    for (const [name, { type, dims, data }] of Object.entries(given)) {
      feed[name] = new ort.Tensor(type, data, dims);
    }
  },

  async run() {
    const begun = performance.now();
    outputs = await session.run(feed);
    return performance.now() - begun;
  },

  // Runs over and over; the latencies in ms go to the address `to`, or back. They are those of
  // session.run: inputs are copied to the runtime and outputs from it, as in every page.
  async measure({ iterations, durationMs, to }) {
    const latencies = [];
    const first = performance.now();
    for (;;) {
      const begun = performance.now();
      outputs = await session.run(feed);
      const ended = performance.now();
      latencies.push(ended - begun);
      if (latencies.length >= iterations || ended - first >= durationMs) break;
    }
    const samples = new Float64Array(latencies);
    if (!to) return samples;
    await send(to, [samples]);
    return null;
  },

  async outputs({ to }) {
    const found = {};
    for (const name of session.outputNames) found[name] = plain(outputs[name]);
    if (!to) return found;
    await send(to, packTensors(found));
    return null;
  },
};

async function fetched(address) {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error(`${address}: the web server answers ${answer.status}`);
  return answer;
}

async function send(address, parts) {
  const answer = await fetch(address, { method: "POST", body: new Blob(parts) });
  if (!answer.ok) throw new Error(`${address}: the server answers ${answer.status}`);
}

// The file at `address`, read into one piece of memory while the page is told how far it is.
async function download(address) {
  const answer = await fetched(address);
  // a server that compresses on its way tells the length of something else
  const coded = answer.headers.get("Content-Encoding");
  const total = coded ? 0 : Number(answer.headers.get("Content-Length"));
  if (!total) return new Uint8Array(await answer.arrayBuffer());
  const bytes = new Uint8Array(total);
  let done = 0;
  for (const reader = answer.body.getReader(); ; ) {
    const part = await reader.read();
    if (part.done) break;
    bytes.set(part.value, done);
    done += part.value.length;
    self.postMessage({ progress: { address, done, total } });
  }
  if (done !== total) throw new Error(`${address}: ${done} of ${total} bytes came`);
  return bytes;
}

async function adapter() {
  let found = null;
  // a browser that has just started may still be at work on it
  for (let trial = 0; navigator.gpu && !found && trial < 5; trial += 1) {
    if (trial) await new Promise((resolve) => setTimeout(resolve, 300));
    found = await navigator.gpu.requestAdapter();
  }
  if (!found) throw new Error("this browser offers no WebGPU adapter");
  const { vendor, architecture, description, isFallbackAdapter } = found.info;
  return { vendor, architecture, description, software: isFallbackAdapter === true };
}

// The smallest step of the clock, seen in some of its steps.
function resolution() {
  let least = Infinity;
  for (let trial = 0; trial < 20; trial += 1) {
    const begun = performance.now();
    let now = begun;
    while (now === begun) now = performance.now();
    least = Math.min(least, now - begun);
  }
  return least;
}

self.onmessage = async ({ data: { number, call, parameters } }) => {
  try {
    self.postMessage({ number, result: await calls[call](parameters) });
  } catch (error) {
    self.postMessage({ number, error: String(error?.message ?? error) });
  }
};
