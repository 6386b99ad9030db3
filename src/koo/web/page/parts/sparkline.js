// @ts-check
// A line as small as a word: how something was over the last while. The numbers stand beside it.

import { h } from "../vendor/preact.js";

const WIDTH = 120, HEIGHT = 24, TOP = 3;

/**
 * The path of a line through `values`, broken where nothing is known. `most`: what stands at the top.
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
 * @param {string} label for who does not see it
 * @param {(number | null)[]} values the oldest first
 * @param {(number | null)[]} [bad] of the same spans, what failed: a second line in the colour of failures
 */
export function sparkline(label, values, bad = []) {
  // Both of one scale: a failure more looks as large as a call more.
  const most = Math.max(0, ...values.map((one) => one ?? 0));
  const fails = (/** @type {number} */ at) => (bad[at] ?? 0) > 0;
  const some = bad.some((_, at) => fails(at));
  // Where nothing failed there is no second line, or all of it would have a red foot.
  const risen = bad.map((one, at) => (fails(at - 1) || fails(at) || fails(at + 1) ? one : null));
  return h("svg", { class: "sparkline", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": label },
    h("path", { class: "line", d: pathOf(values, most) }), some ? h("path", { class: "line bad", d: pathOf(risen, most) }) : null);
}
