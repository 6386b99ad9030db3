// @ts-check
// How a component was over the last minutes, as a line as small as a word.

import { inStretches, stride, sum } from "../data/past.js";
import { sparkline } from "../parts/sparkline.js";
import { count } from "../words/numbers.js";

/** @typedef {import("../data/shapes.js").History} History */

/** Points of a sparkline. */
const POINTS = 60;

/**
 * @param {History | null} history
 * @param {string} component
 * @param {string} what
 */
export function curve(history, component, what) {
  const series = history?.series[component];
  if (series === undefined) return null;
  const size = stride(series.calls.length, POINTS), calls = inStretches(series.calls, size, sum), failed = inStretches(series.failed, size, sum);
  return sparkline(`${what} over the last 15 minutes, at most ${count(Math.max(0, ...calls.map((one) => one ?? 0)))} in ${size * (history?.step_s ?? 0)} s`, calls, failed);
}
