// @ts-check
// A stacked bar for each day.

import { h } from "../vendor/preact.js";

/** @typedef {{key: string, label: string, title: string, parts: {name: string, value: number}[]}} Bar */

/** The number of colours; all further names share the last one. */
export const SERIES = 5;

/**
 * @param {string} label for screen readers; the numbers are in a table next to it
 * @param {Bar[]} bars
 * @param {string[]} names in the order of their colours
 */
export function bars(label, bars, names) {
  const most = Math.max(...bars.map((one) => sum(one)), 0) || 1;
  return h("div", { class: "bars", role: "img", "aria-label": label }, bars.map((one) =>
    h("div", { class: "day", key: one.key, title: one.title },
      h("span", { class: "stack" }, one.parts.map(({ name, value }) =>
        h("span", { key: name, class: `part series-${tone(names, name)}`, style: { height: `${((value / most) * 100).toFixed(2)}%` } }))),
      h("span", { class: "label soft" }, one.label))));
}

/** @param {Bar} bar */
const sum = (bar) => bar.parts.reduce((all, { value }) => all + value, 0);

/**
 * @param {string[]} names
 * @param {string} name
 */
export const tone = (names, name) => Math.min(Math.max(names.indexOf(name), 0), SERIES - 1);
