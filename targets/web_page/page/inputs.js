// What goes into the model: values drawn at random, or tensors of the user's files.

import { filled, sizeOf } from "./tensors.js";

// A dynamic axis with a name has one size wherever it occurs; one without is a question of its own.
export function axesOf(inputs) {
  const axes = new Map();
  for (const { name, shape } of inputs) {
    for (const [place, size] of (shape ?? []).entries()) {
      if (typeof size === "number") continue;
      const key = axisKey(name, place, size);
      if (!axes.has(key)) axes.set(key, { label: size ?? `${name}, axis ${place}`, size: guess(shape, place) });
    }
  }
  return axes;
}

const axisKey = (name, place, size) => size ?? `${name}#${place}`;

// A batch of one; pictures of a usual size; sixteen of whatever else it is.
function guess(shape, place) {
  if (place === 0) return 1;
  return shape.length === 4 ? 224 : 16;
}

export function dimsOf({ name, shape }, axes) {
  return (shape ?? []).map((size, place) =>
    typeof size === "number" ? size : axes.get(axisKey(name, place, size)).size,
  );
}

export function drawn({ type }, dims, how) {
  if (type === "string") {
    return { type, dims, data: Array.from({ length: sizeOf(dims) }, () => (how === "random" ? "text" : "")) };
  }
  const tensor = { type, dims, data: filled(type, dims) };
  const { data } = tensor;
  if (how === "zeros") return tensor;
  const wide = data instanceof BigInt64Array || data instanceof BigUint64Array;
  for (let index = 0; index < data.length; index += 1) {
    // integers may be places in a table: 0 and 1 are in every table
    if (type === "float16") data[index] = how === "ones" ? 0x3c00 : HALVES[Math.floor(Math.random() * HALVES.length)];
    else if (type.startsWith("float")) data[index] = how === "ones" ? 1 : Math.random();
    else {
      const value = how === "ones" || Math.random() < 0.5 ? 1 : 0;
      data[index] = wide ? BigInt(value) : value;
    }
  }
  return tensor;
}

// 0, 1/8 … 7/8 as the bits of float16
const HALVES = [0, 0x3000, 0x3400, 0x3600, 0x3800, 0x3900, 0x3a00, 0x3b00];

// Sorts the tensors of files into inputs and expected outputs; says which name fits nothing.
export function placed(files, manifest) {
  const inputs = {};
  const expected = {};
  const names = new Set(manifest.inputs.map(({ name }) => name));
  const outputs = new Set(manifest.outputs.map(({ name }) => name));
  for (const [name, tensor] of Object.entries(files)) {
    const [input, output] = ["in_", "out_"].map((start) => (name.startsWith(start) ? name.slice(start.length) : null));
    if (names.has(name)) inputs[name] = tensor;
    else if (names.has(input)) inputs[input] = tensor;
    else if (outputs.has(output)) expected[output] = tensor;
    else if (Object.keys(files).length === 1 && names.size === 1) inputs[[...names][0]] = tensor;
    else throw new Error(`${name} is neither an input nor an output of this model`);
  }
  for (const { name, type } of manifest.inputs) {
    if (inputs[name] && inputs[name].type !== type) {
      throw new Error(`${name} takes ${type}, and the file holds ${inputs[name].type}`);
    }
  }
  return { inputs, expected };
}
