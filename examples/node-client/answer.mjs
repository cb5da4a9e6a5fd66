// What the graph gives -> calibrated probabilities -> a class and what is done with the image.

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

/** Why an answer names no class; null where it does. */
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
  if (answer.label === policy.normal) {
    const released = odds > threshold(policy.release_above);
    return { ...answer, action: released ? "release" : "review", reason: released ? "released" : "below_release" };
  }
  const above = threshold(policy.automatic_above[answer.label]);
  if (odds > above) return { ...answer, action: "automatic", reason: "automatic" };
  return { ...answer, action: "review", reason: above === Infinity ? "class_not_promised" : "ambiguous" };
}

/** Of each class against all others together, of scores whose scale is undone. */
export function logOdds(probabilities, bundle) {
  const { floor } = bundle.interface.answer;
  const scores = probabilities.map((p) => bundle.calibration.temperature * Math.log(Math.max(p, floor)));
  return scores.map((score, own) => {
    const others = scores.filter((_, i) => i !== own);
    const largest = Math.max(...others);
    const sum = others.reduce((total, other) => total + Math.exp(other - largest), 0);
    return score - largest - Math.log(sum);
  });
}

function threshold(told) {
  return told === "never" ? Infinity : told === "always" ? -Infinity : told;
}
