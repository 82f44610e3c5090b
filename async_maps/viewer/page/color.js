// Colors of intensities: one table of 256 colors for each map, so that a million pixels need no arithmetic.

const LITTLE = new Uint8Array(new Uint32Array([1]).buffer)[0] === 1;

/** Return (256 x RGBA) bytes from base64. */
export function decodeTable(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

/** Return "LOW,HIGH" as two numbers, or null. */
export function parseScale(text) {
  const [low, high, ...rest] = text.split(",").map((end) => (end.trim() ? Number(end) : NaN));
  return !rest.length && Number.isFinite(low) && Number.isFinite(high) && low < high ? { low, high } : null;
}

/** Return where an intensity of a map is on the scale that is shown, 0 to 255. */
export function onScale(intensity, row, scale) {
  if (!scale || row.range_low === null) return intensity;
  const value = row.range_low + (intensity / 255) * (row.range_high - row.range_low);
  return Math.min(255, Math.max(0, (255 * (value - scale.low)) / (scale.high - scale.low)));
}

/** Return the color of each intensity as 256 pixels; those below the threshold, and ``hidden``, are transparent. */
export function pixelsOf(table, row, { scale, threshold, hidden = null }) {
  const pixels = new Uint32Array(256);
  for (let intensity = 0; intensity < 256; intensity += 1) {
    const place = onScale(intensity, row, scale);
    if (place < threshold || intensity === hidden) continue;
    const [red, green, blue, alpha] = table.subarray(4 * Math.round(place), 4 * Math.round(place) + 4);
    pixels[intensity] = LITTLE
      ? ((alpha << 24) | (blue << 16) | (green << 8) | red) >>> 0
      : ((red << 24) | (green << 16) | (blue << 8) | alpha) >>> 0;
  }
  return pixels;
}

let image = null; // reused: a new one for each map costs as much as its colors

/** Draw a map on a canvas of its size; pixels without a value get the color ``absent``. */
export function draw(canvas, plane, pixels, absent = 0) {
  const { width, height, values, mask } = plane;
  if (canvas.width !== width || canvas.height !== height) {
    canvas.width = width;
    canvas.height = height;
  }
  if (image?.width !== width || image.height !== height) image = new ImageData(width, height);
  const out = new Uint32Array(image.data.buffer);
  for (let at = 0; at < out.length; at += 1) out[at] = pixels[values[at]];
  if (mask) for (let at = 0; at < out.length; at += 1) if (!mask[at]) out[at] = absent;
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** Return the intensity that also stands for pixels without a value, or for all that the run has hidden; or null. */
export function hiddenOf(row, coloring) {
  if (coloring.merged !== null) return coloring.merged;
  if (!row.invalid_pixels) return null;
  for (let intensity = 0; intensity < 256; intensity += 1) if (!coloring.table[4 * intensity + 3]) return intensity;
  return null;
}

/** Return the value of an intensity, and by how much it may be wrong; "≥" and "≤" where the range ends before it. */
export function valueOf(intensity, row, coloring) {
  const { range_low: low, range_high: high } = row;
  if (low === null || low === undefined) return null;
  const step = (high - low) / 255;
  const half = Math.abs(step) / 2;
  if (intensity === coloring.merged) return { value: low + step * lastHidden(coloring.table), half, sign: "≤" };
  const sign = intensity === 255 && row.maximum > high ? "≥" : intensity === 0 && row.minimum < low ? "≤" : "";
  return { value: low + intensity * step, half, sign };
}

/** Return the highest intensity that a table hides. */
function lastHidden(table) {
  let last = 255;
  while (table[4 * last + 3]) last -= 1;
  return last;
}

/** Undo what the server has done: width, height, mask, differences to the row above. */
export function unpack(buffer) {
  const [width, height, hasMask] = new Uint32Array(buffer, 0, 3);
  const values = new Uint8Array(buffer, 12, width * height);
  for (let at = width; at < values.length; at += 1) values[at] += values[at - width];
  const mask = hasMask ? new Uint8Array(buffer, 12 + width * height, width * height) : null;
  return { width, height, values, mask };
}
