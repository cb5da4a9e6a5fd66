// From a PNG file to the integers that a bundle's graph needs: docs/bundle-format.md, "From a file to the graph's input".
import { readFileSync } from "node:fs";
import { PNG } from "pngjs";
import { broughtTo } from "./resize.mjs";

/** Decode a file and bring it to a bundle's depth, channels and size: { data, height, width, channels, nearBlack }. */
export function decode(path, bundle) {
  const spec = bundle.preprocess;
  const image = readPng(path);
  return { ...broughtTo(matched(image, spec), spec), nearBlack: isNearBlack(image, spec) };
}

/** Whether a 16-bit file uses at most 14 bits, so that it is nearly black for an 8-bit model. */
function isNearBlack({ data, depth }, spec) {
  if (depth !== 16 || spec.bit_depth !== 8) return false;
  return data.every((value, i) => i % 4 === 3 || value < 2 ** 14);
}

/** Stored values, RGB; alpha is dropped. A grey file has three equal channels. */
function readPng(path) {
  const bytes = readFileSync(path);
  if (bytes.includes("eXIf")) throw new Error(`${path} may be rotated (eXIf), which this client does not read`);
  const depth = bytes[24] === 16 ? 16 : 8;
  const png = PNG.sync.read(bytes, { skipRescale: depth === 16 });
  return { data: png.data, height: png.height, width: png.width, depth };
}

/** Depth first, then channels. */
function matched({ data, height, width, depth }, spec) {
  const { channels, bit_depth: wanted } = spec;
  const out = new (wanted === 16 ? Uint16Array : Uint8Array)(height * width * channels);
  const toDepth = wanted === depth ? (v) => v : wanted === 16 ? (v) => v * 257 : (v) => v >> 8;
  for (let i = 0; i < height * width; i++) {
    const [red, green, blue] = [0, 1, 2].map((c) => toDepth(data[4 * i + c]));
    if (channels === 1) {
      out[i] = Math.floor((9798 * red + 19235 * green + 3735 * blue + 16384) / 32768);
    } else {
      out.set([red, green, blue], 3 * i);
    }
  }
  return { data: out, height, width, channels };
}
