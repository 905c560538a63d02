// Numbers for people: percentiles, a histogram, tensors in a line.

export function percentile(sorted, percent) {
  const place = ((sorted.length - 1) * percent) / 100;
  const below = Math.floor(place);
  const above = Math.min(below + 1, sorted.length - 1);
  return sorted[below] + (sorted[above] - sorted[below]) * (place - below);
}

export function milliseconds(value) {
  if (value >= 10000) return `${(value / 1000).toFixed(1)} s`;
  return `${value >= 100 ? value.toFixed(0) : value.toPrecision(3)} ms`;
}

export function bytes(count) {
  return count >= 1e6 ? `${(count / 1e6).toFixed(count >= 1e7 ? 0 : 1)} MB` : `${Math.ceil(count / 1e3)} kB`;
}

// Draws how often each latency occurred, up to the 95th percentile, into an SVG of 600 by 96.
export function histogram(svg, sorted) {
  const least = sorted[0];
  const most = Math.max(percentile(sorted, 95), least);
  const bars = Math.max(1, Math.min(60, Math.ceil(Math.sqrt(sorted.length))));
  const counts = new Array(bars).fill(0);
  for (const value of sorted) {
    if (value > most) break;
    const place = most > least ? Math.floor(((value - least) / (most - least)) * bars) : 0;
    counts[Math.min(place, bars - 1)] += 1;
  }
  const highest = Math.max(...counts);
  svg.replaceChildren(
    ...counts.map((count, index) => {
      const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      const height = (count / highest) * 92;
      const width = 600 / bars;
      const at = { x: index * width, y: 96 - height, width: Math.max(width - 2, 1), height };
      for (const [name, value] of Object.entries(at)) bar.setAttribute(name, value.toFixed(2));
      return bar;
    }),
  );
  return [least, most];
}

function fromHalf(bits) {
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  const sign = bits >> 15 ? -1 : 1;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
}

export const number = ({ type, data }, index) =>
  type === "float16" ? fromHalf(data[index]) : Number(data[index]);

const short = (value) => (Number.isInteger(value) ? String(value) : value.toPrecision(4));

export function summary(tensor) {
  const { type, data } = tensor;
  if (data.length === 0) return "empty";
  const shown = Math.min(data.length, 6);
  if (type === "string") return data.slice(0, shown).join(", ");
  const some = Array.from({ length: shown }, (_, index) => short(number(tensor, index))).join(", ");
  if (data.length <= shown) return some;
  let [least, most, place] = [Infinity, -Infinity, 0];
  for (let index = 0; index < data.length; index += 1) {
    const value = number(tensor, index);
    if (value < least) least = value;
    if (value > most) [most, place] = [value, index];
  }
  return `${some}, … (from ${short(least)} to ${short(most)}, which is element ${place})`;
}

// The largest difference, as a part of the largest expected magnitude.
export function difference(actual, expected) {
  if (String(actual.dims) !== String(expected.dims)) return Infinity;
  if (actual.type === "string") return actual.data.every((text, index) => text === expected.data[index]) ? 0 : Infinity;
  let [error, scale] = [0, 0];
  for (let index = 0; index < expected.data.length; index += 1) {
    const [mine, theirs] = [number(actual, index), number(expected, index)];
    if (Number.isNaN(mine) !== Number.isNaN(theirs)) return Infinity;
    // equal infinities have no difference
    if (mine !== theirs && !Number.isNaN(mine)) error = Math.max(error, Math.abs(mine - theirs));
    if (Number.isFinite(theirs)) scale = Math.max(scale, Math.abs(theirs));
  }
  return error === 0 ? 0 : error / (scale || 1);
}
