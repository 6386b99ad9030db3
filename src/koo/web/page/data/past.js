// @ts-check
// The past that was asked for, and what the stream brought since. Pure.

import { timeOf } from "../words/times.js";

/**
 * @typedef {import("./shapes.js").History} History
 * @typedef {import("./store.js").Point} Point
 */

/**
 * A history that goes on to the newest sample, and is as long as it was. One in coarser steps, or of all processes, stays
 * as it is.
 * @param {History} history
 * @param {Point[]} points the oldest first
 * @returns {History}
 */
export function withPoints(history, points) {
  const until = timeOf(history.until) ?? 0;
  const newer = points.filter((one) => one.step_s === history.step_s && (timeOf(one.at) ?? 0) >= until);
  if (newer.length === 0 || history.scope !== "this process") return history;
  const series = Object.entries(history.series).map(([component, lists]) => [component, Object.fromEntries(
    Object.entries(lists).map(([name, values]) => [name, [...values, ...newer.map((one) => one.series[component]?.[name] ?? null)].slice(newer.length)]))]);
  const aheadMs = newer.length * history.step_s * 1000;
  /** @param {string} iso */
  const later = (iso) => new Date((timeOf(iso) ?? 0) + aheadMs).toISOString();
  return { ...history, since: later(history.since), until: later(history.until), series: Object.fromEntries(series) };
}

/** @typedef {(number | null | undefined)[]} Values null: nothing is known; undefined: there was nothing to measure */

/**
 * How many spans stand in one point of a chart, so that it has at most so many points.
 * @param {number} spans
 * @param {number} most
 */
export const stride = (spans, most) => Math.max(1, Math.ceil(spans / most));

/**
 * A value for each stretch of `size` spans, counted from the end: the newest stretch is always whole.
 * @param {(number | null)[]} values
 * @param {number} size
 * @param {(known: number[]) => number} together
 * @returns {(number | null)[]}
 */
export function inStretches(values, size, together) {
  const stretches = [];
  for (let end = values.length; end > 0; end -= size) {
    const known = values.slice(Math.max(0, end - size), end).filter((one) => one !== null);
    stretches.unshift(known.length ? together(known) : null);
  }
  return stretches;
}

/** @param {number[]} known */
export const sum = (known) => known.reduce((all, one) => all + one, 0);
/** @param {number[]} known */
export const mean = (known) => sum(known) / known.length;
/** @param {number[]} known */
export const most = (known) => Math.max(...known);
