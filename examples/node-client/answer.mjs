// From the graph's outputs to calibrated probabilities, the predicted class and the action.

/** Calibrate one row of the graph's probabilities. */
export function calibrated(row, bundle) {
  const kept = bundle.calibration;
  if (!kept) return Array.from(row); // bundles of schema 1 have it in their graph
  if (Math.max(...row) === Math.min(...row)) return Array.from(row);
  const { floor } = bundle.interface.answer;
  const scores = Array.from(row, (p, i) => {
    const scale = kept.scale ? kept.scale[i] : 1 / kept.temperature;
    return scale * Math.log(Math.max(p, floor)) + (kept.bias ? kept.bias[i] : 0);
  });
  const largest = Math.max(...scores);
  const powers = scores.map((score) => Math.exp(score - largest));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map((power) => power / sum);
}

/** Why an output names no class; null if it names one. */
function fault(probabilities) {
  if (!probabilities.every(Number.isFinite)) return "the model's answer is no number";
  const sum = probabilities.reduce((a, b) => a + b);
  if (Math.min(...probabilities) < -0.05 || Math.abs(sum - 1) > 0.05) return "the model's answer is no probability";
  return Math.max(...probabilities) === Math.min(...probabilities) ? "all classes are equally probable" : null;
}

/** { label, confidence, action, reason } of calibrated probabilities, by `decisions.json` where there is one. */
export function decided(probabilities, bundle, decisions, nearBlack) {
  const names = bundle.label_space.names;
  if (fault(probabilities)) return { label: null, confidence: NaN, action: "review", reason: "not_finite" };
  const best = probabilities.indexOf(Math.max(...probabilities));
  const answer = { label: names[best], confidence: probabilities[best] };
  if (nearBlack) return { ...answer, action: "review", reason: "near_black" };
  const policy = decisions?.policy;
  // Decisions hold for the bundle that they were fitted to, and for no other.
  if (policy?.holds_for.bundle !== bundle.checksum) return { ...answer, action: "automatic", reason: "automatic" };
  if (policy.unknown_above !== null || policy.products !== null || policy.audit > 0)
    throw new Error("These decisions ask for the unknown, for products or for an audit, which this client does not know.");
  const odds = logOdds(probabilities, bundle)[best];
  if (released(probabilities, answer.label, odds, bundle, policy)) {
    const normal = { label: policy.normal, confidence: probabilities[names.indexOf(policy.normal)] };
    return { ...normal, action: "release", reason: "released" };
  }
  if (answer.label === policy.normal) return { ...answer, action: "review", reason: "below_release" };
  const above = threshold(policy.automatic_above[answer.label]);
  if (odds > above) return { ...answer, action: "automatic", reason: "automatic" };
  return { ...answer, action: "review", reason: above === Infinity ? "class_not_promised" : "ambiguous" };
}

/** Whether an image passes: by its score of release, or in older decisions by the odds of its class. */
function released(probabilities, label, odds, bundle, policy) {
  const above = threshold(policy.release_above);
  if (!policy.defect_weights) return label === policy.normal && odds > above;
  if (policy.guarded.includes(label)) return false;
  const { names } = bundle.label_space;
  const weights = names.map((name) => policy.defect_weights[name] ?? 1);
  return againstOthers(rawScores(probabilities, bundle), names.indexOf(policy.normal), weights) > above;
}

/** Of each class against all others together. */
export function logOdds(probabilities, bundle) {
  const scores = rawScores(probabilities, bundle);
  return scores.map((_, own) => againstOthers(scores, own));
}

/** Log probabilities whose scale is undone. */
function rawScores(probabilities, bundle) {
  const { floor } = bundle.interface.answer;
  return probabilities.map((p) => bundle.calibration.temperature * Math.log(Math.max(p, floor)));
}

function againstOthers(scores, own, weights = null) {
  const weighted = scores.map((score, i) => score + (weights ? Math.log(weights[i]) : 0));
  const others = weighted.filter((_, i) => i !== own);
  const largest = Math.max(...others);
  const sum = others.reduce((total, other) => total + Math.exp(other - largest), 0);
  return scores[own] - largest - Math.log(sum);
}

function threshold(told) {
  return told === "never" ? Infinity : told === "always" ? -Infinity : told;
}
