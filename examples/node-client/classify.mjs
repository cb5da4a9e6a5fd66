// node classify.mjs BUNDLE FILE.png... : a line of JSON for each file; without files their names come line by line on
// standard input, since onnxruntime-node 1.30 crashes where a command line is longer than some 30 kB.
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import ort from "onnxruntime-node";
import { calibrated, decided } from "./answer.mjs";
import { decode } from "./decode.mjs";

const [folder, ...named] = process.argv.slice(2);
if (!folder) {
  console.error("usage: node classify.mjs BUNDLE FILE.png..., or names of files on standard input");
  process.exit(2);
}
const files = named.length ? named : readFileSync(0, "utf8").split("\n").filter(Boolean);
const bundle = JSON.parse(readFileSync(join(folder, "bundle.json"), "utf8"));
if (bundle.interface?.schema !== 1) throw new Error("bundle.json has no interface of schema 1: export the run again.");
const beside = join(folder, "decisions.json");
const decisions = existsSync(beside) ? JSON.parse(readFileSync(beside, "utf8")) : null;
const session = await ort.InferenceSession.create(join(folder, "model.onnx"));
const { name, type } = bundle.interface.input;
for (const file of files) {
  const image = decode(file, bundle);
  const shape = [1, image.height, image.width, image.channels];
  const { probabilities } = await session.run({ [name]: new ort.Tensor(type, image.data, shape) }, ["probabilities"]);
  const answer = calibrated(probabilities.data, bundle);
  console.log(JSON.stringify({ image: file, ...decided(answer, bundle, decisions, image.nearBlack), probabilities: answer }));
}
