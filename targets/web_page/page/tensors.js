// Tensors as bytes, to and from deploykit and NumPy's files. A tensor is { type, dims, data }: `type`
// in ONNX Runtime's words, `data` a typed array (float16 as its 16 bits), or an array of strings.

const ARRAYS = {
  float32: Float32Array,
  float64: Float64Array,
  float16: Uint16Array,
  int8: Int8Array,
  uint8: Uint8Array,
  int16: Int16Array,
  uint16: Uint16Array,
  int32: Int32Array,
  uint32: Uint32Array,
  int64: BigInt64Array,
  uint64: BigUint64Array,
  bool: Uint8Array,
};

export const sizeOf = (dims) => dims.reduce((product, size) => product * size, 1);

// The data of a tensor of onnxruntime-web as this file has it: a Float16Array becomes its bits.
export function plain(tensor) {
  const { type, dims, data } = tensor;
  if (type === "string") return { type, dims: [...dims], data: [...data] };
  if (!(type in ARRAYS)) throw new Error(`a tensor of type ${type} cannot leave the page`);
  const bytes = data.byteLength;
  return {
    type,
    dims: [...dims],
    data: new ARRAYS[type](data.buffer, data.byteOffset, bytes / ARRAYS[type].BYTES_PER_ELEMENT),
  };
}

export const filled = (type, dims) => new ARRAYS[type](sizeOf(dims));

// --- deploykit's own form: see exchange.py --------------------------------------------------------

const up = (number) => Math.ceil(number / 16) * 16;

export function unpackTensors(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const tensors = {};
  for (const { name, type, dims, strings, at, bytes } of header) {
    const data =
      strings ?? new ARRAYS[type](buffer, at, bytes / ARRAYS[type].BYTES_PER_ELEMENT);
    tensors[name] = { type, dims, data };
  }
  return tensors;
}

// Returns parts for a Blob: large outputs are not joined in memory.
export function packTensors(tensors) {
  const header = Object.entries(tensors).map(([name, { type, dims, data }]) =>
    type === "string" ? { name, type, dims, strings: data } : { name, type, dims, bytes: data.byteLength },
  );
  const encode = () => new TextEncoder().encode(JSON.stringify(header));
  const first = up(4 + encode().length + 32 * header.length);
  let at = first;
  for (const entry of header) {
    if (entry.bytes === undefined) continue;
    entry.at = at;
    at = up(at + entry.bytes);
  }
  const head = new Uint8Array(first).fill(32);
  new DataView(head.buffer).setUint32(0, first - 4, true);
  head.set(encode(), 4);
  const parts = [head];
  for (const { data, type } of Object.values(tensors)) {
    if (type === "string") continue;
    // a Blob takes no view of memory that threads share
    const own = data.buffer instanceof ArrayBuffer ? data : data.slice();
    parts.push(own, new Uint8Array(up(data.byteLength) - data.byteLength));
  }
  return parts;
}

// --- NumPy's files: the format is described in numpy.lib.format -----------------------------------

const NUMPY = {
  f2: "float16", f4: "float32", f8: "float64", b1: "bool",
  i1: "int8", i2: "int16", i4: "int32", i8: "int64",
  u1: "uint8", u2: "uint16", u4: "uint32", u8: "uint64",
};

export function readNpy(buffer, name) {
  const bytes = new Uint8Array(buffer);
  if (String.fromCharCode(...bytes.subarray(1, 6)) !== "NUMPY") throw new Error(`${name} is no .npy file`);
  const view = new DataView(buffer);
  const long = bytes[6] > 1;
  const length = long ? view.getUint32(8, true) : view.getUint16(8, true);
  const begin = (long ? 12 : 10) + length;
  const header = new TextDecoder().decode(bytes.subarray(long ? 12 : 10, begin));
  const descr = /'descr':\s*'([<>|=])(\w+)'/.exec(header);
  const shape = /'shape':\s*\(([^)]*)\)/.exec(header);
  if (!descr || !shape) throw new Error(`${name}: its header is not understood`);
  const dims = shape[1].split(",").map((word) => word.trim()).filter(Boolean).map(Number);
  if (descr[2][0] === "U") {
    const width = Number(descr[2].slice(1));
    const codes = new Uint32Array(buffer.slice(begin));
    const data = Array.from({ length: sizeOf(dims) }, (_, index) =>
      String.fromCodePoint(...codes.subarray(index * width, (index + 1) * width)).replace(/\0+$/, ""),
    );
    return { type: "string", dims, data };
  }
  const type = NUMPY[descr[2]];
  if (!type || descr[1] === ">") throw new Error(`${name} holds ${descr[1]}${descr[2]}, which is not supported`);
  if (/'fortran_order':\s*True/.test(header) && dims.length > 1) {
    throw new Error(`${name} is in Fortran's order: save numpy.ascontiguousarray(array)`);
  }
  const data = new ARRAYS[type](buffer.slice(begin));
  if (data.length !== sizeOf(dims)) throw new Error(`${name} ends too early`);
  return { type, dims, data };
}

// An .npz file is a zip archive of .npy files, stored or deflated.
export async function readNpz(buffer, name) {
  const view = new DataView(buffer);
  let end = buffer.byteLength - 22;
  while (end >= 0 && view.getUint32(end, true) !== 0x06054b50) end -= 1;
  if (end < 0) throw new Error(`${name} is no .npz file`);
  let at = view.getUint32(end + 16, true);
  const tensors = {};
  for (let count = view.getUint16(end + 10, true); count > 0; count -= 1) {
    if (view.getUint32(at, true) !== 0x02014b50) throw new Error(`${name} is damaged`);
    const method = view.getUint16(at + 10, true);
    const size = view.getUint32(at + 20, true);
    const [path, extra, comment] = [28, 30, 32].map((place) => view.getUint16(at + place, true));
    const local = view.getUint32(at + 42, true);
    const member = new TextDecoder().decode(new Uint8Array(buffer, at + 46, path));
    const begin = local + 30 + view.getUint16(local + 26, true) + view.getUint16(local + 28, true);
    let data = buffer.slice(begin, begin + size);
    if (method === 8) {
      const stream = new Blob([data]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
      data = await new Response(stream).arrayBuffer();
    } else if (method !== 0) throw new Error(`${name} is compressed in an unknown way`);
    tensors[member.replace(/\.npy$/, "")] = readNpy(data, member);
    at += 46 + path + extra + comment;
  }
  return tensors;
}
