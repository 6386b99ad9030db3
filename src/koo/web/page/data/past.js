// @ts-check
// A history that was requested, and what the stream has added since. Pure.

import { timeOf } from "../words/times.js";

/**
 * @typedef {import("./shapes.js").History} History
 * @typedef {import("./store.js").Point} Point
 */

/**
 * Extend a history to the newest sample without changing its length. A history in coarser steps, or of all processes, is
 * returned unchanged.
 * @param {History} history
 * @param {Point[]} points oldest first
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

/** @typedef {(number | null | undefined)[]} Values null: unknown; undefined: there was nothing to measure */

/**
 * How many spans one point of a chart covers, so that it has at most `most` points.
 * @param {number} spans
 * @param {number} most
 */
export const stride = (spans, most) => Math.max(1, Math.ceil(spans / most));

/**
 * A value for each group of `size` spans, counted from the end, so that the newest group is always complete.
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
