// @ts-check
// Tables that scroll sideways in a narrow window, with the keyboard too.

import { h } from "../vendor/preact.js";

/** @typedef {import("../vendor/preact.js").ComponentChildren} Children */

/**
 * `cells`: one for each head. Columns whose head has `number` are right-aligned.
 * @typedef {{words: Children, number?: boolean}} Head
 * @typedef {{key: string, cells: Children[], tone?: string}} Row
 */

/**
 * @param {string} label what the table contains
 * @param {(string | Head)[]} heads
 * @param {Row[]} rows
 */
export function table(label, heads, rows) {
  const all = heads.map((head) => (typeof head === "string" ? { words: head } : head));
  const side = all.map((head) => ("number" in head && head.number ? "number" : undefined));
  return h("div", { class: "wide-table", tabIndex: 0, role: "region", "aria-label": `${label}: table` },
    h("table", null,
      h("thead", null, h("tr", null, all.map((head, place) => h("th", { scope: "col", class: side[place] }, head.words)))),
      h("tbody", null, rows.map((row) => h("tr", { key: row.key, class: row.tone },
        row.cells.map((cell, place) => h("td", { class: side[place] }, cell)))))));
}

/**
 * @param {string} words
 * @returns {Head}
 */
export const number = (words) => ({ words, number: true });
