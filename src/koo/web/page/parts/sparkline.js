// @ts-check
// A line as small as a word that shows how a value has changed recently. Its numbers are next to it.

import { h } from "../vendor/preact.js";

const WIDTH = 120, HEIGHT = 24, TOP = 3;

/**
 * The path of a line through `values`, with gaps for unknown values. `most`: the value at the top.
 * @param {(number | null)[]} values
 * @param {number} most
 */
export function pathOf(values, most) {
  const step = values.length > 1 ? WIDTH / (values.length - 1) : WIDTH;
  let pen = "M", path = "";
  values.forEach((value, place) => {
    if (value !== null) path += `${pen}${(place * step).toFixed(1)} ${(HEIGHT - 1 - (most > 0 ? value / most : 0) * (HEIGHT - 1 - TOP)).toFixed(1)}`;
    pen = value === null ? "M" : "L";
  });
  return path;
}

/**
 * @param {string} label for screen readers
 * @param {(number | null)[]} values oldest first
 * @param {(number | null)[]} [bad] failures in the same spans: a second line in their colour
 */
export function sparkline(label, values, bad = []) {
  // Both lines use one scale, so that one more failure looks as large as one more call.
  const most = Math.max(0, ...values.map((one) => one ?? 0));
  const fails = (/** @type {number} */ at) => (bad[at] ?? 0) > 0;
  const some = bad.some((_, at) => fails(at));
  // There is no second line where nothing failed, or the whole chart would have a red base line.
  const risen = bad.map((one, at) => (fails(at - 1) || fails(at) || fails(at + 1) ? one : null));
  return h("svg", { class: "sparkline", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": label },
    h("path", { class: "line", d: pathOf(values, most) }), some ? h("path", { class: "line bad", d: pathOf(risen, most) }) : null);
}
