// @ts-check
// A history that was requested, and what the stream has added since. Pure.

import { timeOf } from "../words/times.js";

/**
 * @typedef {import("./shapes.js").History} History
 * @typedef {import("./store.js").Point} Point
 */

/**
 * Add the samples of the stream to a history, which keeps its length. A history in coarser steps, or of all processes, is
 * returned unchanged.
 *
 * Each sample goes where its time is: the last spans of a history are often not sampled yet when it is requested. A
 * component that the history does not have is added: the page of a process that has just started requests a history
 * without any, and the next request is two minutes away.
 * @param {History} history
 * @param {Point[]} points oldest first
 * @returns {History}
 */
export function withPoints(history, points) {
  const stepMs = history.step_s * 1000, since = timeOf(history.since) ?? 0;
  /** @param {string} iso */
  const placeOf = (iso) => Math.round(((timeOf(iso) ?? 0) - since) / stepMs);
  const inside = points.filter((one) => one.step_s === history.step_s)
    .map(({ at, series }) => ({ place: placeOf(at), series })).filter(({ place }) => place >= 0);
  if (inside.length === 0 || history.scope !== "this process") return history;
  const spans = placeOf(history.until), ahead = Math.max(0, ...inside.map(({ place }) => place + 1 - spans));
  /** @param {string} component @param {string} name */
  const valuesOf = (component, name) => {
    const lists = /** @type {Record<string, Values> | undefined} */ (history.series[component]);
    const kept = (lists?.[name] ?? []).slice(ahead);
    const values = [...kept, ...Array(spans - kept.length).fill(null)];
    for (const { place, series } of inside) if (place >= ahead) values[place - ahead] ??= series[component]?.[name] ?? null;
    return values;
  };
  const known = Object.assign({}, ...inside.map(({ series }) => series), history.series);
  const series = Object.entries(known).map(([component, lists]) =>
    [component, Object.fromEntries(Object.keys(lists).map((name) => [name, valuesOf(component, name)]))]);
  /** @param {string} iso */
  const later = (iso) => new Date((timeOf(iso) ?? 0) + ahead * stepMs).toISOString();
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
