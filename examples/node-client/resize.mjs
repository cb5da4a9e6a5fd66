// From an image's size to that of the graph: shrink by area, enlarge linearly, each axis by itself.

/** Bring pixels { data, height, width, channels } to `preprocess`, by its rule. */
export function broughtTo(image, spec) {
  if (spec.tiles) throw new Error("This bundle needs tiles of the image (preprocess.tiles): use recame's own runtime.");
  const { height, width } = spec;
  if (spec.resize === "stretch") return scaled(image, height, width);
  if (image.height === height && image.width === width) return image;
  const ratios = [height / image.height, width / image.width];
  const ratio = spec.resize === "pad" ? Math.min(...ratios) : Math.max(...ratios);
  const near = scaled(image, Math.max(1, halfEven(image.height * ratio)), Math.max(1, halfEven(image.width * ratio)));
  const top = Math.floor((height - near.height) / 2);
  const left = Math.floor((width - near.width) / 2);
  const fill = spec.resize === "pad" ? rimMedian(near) : null;
  return moved(near, height, width, top, left, fill);
}

export function scaled(image, height, width) {
  const smaller = resampled(image, Math.min(height, image.height), Math.min(width, image.width), areaWeights);
  return resampled(smaller, height, width, linearWeights);
}

/** Weighted sums along both axes, rounded once; unchanged where the size is right already. */
function resampled(image, height, width, weights) {
  if (image.height === height && image.width === width) return image;
  const { data, channels } = image;
  const across = weights(image.width, width);
  const half = new Float64Array(image.height * width * channels);
  for (let y = 0; y < image.height; y++)
    for (let x = 0; x < width; x++)
      for (const [from, weight] of across[x])
        for (let c = 0; c < channels; c++)
          half[(y * width + x) * channels + c] += weight * data[(y * image.width + from) * channels + c];
  const down = weights(image.height, height);
  const out = new data.constructor(height * width * channels);
  const row = new Float64Array(width * channels);
  for (let y = 0; y < height; y++) {
    row.fill(0);
    for (const [from, weight] of down[y])
      for (let i = 0; i < row.length; i++) row[i] += weight * half[from * row.length + i];
    for (let i = 0; i < row.length; i++) out[y * row.length + i] = Math.floor(row[i] + 0.5);
  }
  return { data: out, height, width, channels };
}

/** Each target pixel is the mean over the stretch of the source that it covers. */
function areaWeights(source, target) {
  const step = source / target;
  return Array.from({ length: target }, (_, i) => {
    const [first, last] = [i * step, Math.min((i + 1) * step, source)];
    const found = [];
    for (let j = Math.floor(first); j < Math.min(source, Math.ceil(last)); j++)
      found.push([j, (Math.min(last, j + 1) - Math.max(first, j)) / (last - first)]);
    return found;
  });
}

/** Between the two source pixels whose centres lie around the target's; the border is repeated. */
function linearWeights(source, target) {
  return Array.from({ length: target }, (_, i) => {
    const place = Math.min(Math.max(((i + 0.5) * source) / target - 0.5, 0), source - 1);
    const first = Math.floor(place);
    const share = place - first;
    return share ? [[first, 1 - share], [first + 1, share]] : [[first, 1]];
  });
}

/** The image at (top, left) of a canvas; what lies outside of it is cut off. */
function moved({ data, height: rows, width: columns, channels }, height, width, top, left, fill) {
  const out = new data.constructor(height * width * channels);
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++) {
      const inside = y >= top && y < top + rows && x >= left && x < left + columns;
      for (let c = 0; c < channels; c++)
        out[(y * width + x) * channels + c] = inside ? data[((y - top) * columns + x - left) * channels + c] : fill[c];
    }
  return { data: out, height, width, channels };
}

/** Of each channel the median of the first and last row and column, corners twice, fraction cut off. */
function rimMedian({ data, height, width, channels }) {
  const places = [];
  for (const y of [0, height - 1]) for (let x = 0; x < width; x++) places.push(y * width + x);
  for (const x of [0, width - 1]) for (let y = 0; y < height; y++) places.push(y * width + x);
  return Array.from({ length: channels }, (_, c) => {
    const values = places.map((place) => data[place * channels + c]).sort((a, b) => a - b);
    const middle = values.length / 2; // always an even number of places
    return Math.floor((values[middle - 1] + values[middle]) / 2);
  });
}

function halfEven(value) {
  const floor = Math.floor(value);
  const rest = value - floor;
  return rest === 0.5 ? floor + (floor % 2) : Math.floor(value + 0.5);
}
