// @ts-check
// Bars and figures. A bar is never alone: its numbers are next to it.

import { h } from "../vendor/preact.js";
import { severityLook } from "../words/looks.js";
import { shape } from "./badge.js";

/** This is also the share at which an alert fires. */
const APPROACHING = 0.8;

/**
 * @param {number} ratio
 * @returns {"info" | "warning" | "critical"}
 */
export function toneOf(ratio) {
  if (ratio >= 1) return "critical";
  return ratio >= APPROACHING ? "warning" : "info";
}

/**
 * A bar of one or two parts (the second is hatched), each a share of the whole.
 * @param {string} label for screen readers
 * @param {number[]} shares
 */
export function bar(label, shares) {
  const used = shares.reduce((sum, share) => sum + share, 0);
  let left = 1;
  const parts = shares.map((share, place) => {
    const width = Math.min(Math.max(share, 0), left);
    left -= width;
    return h("span", { class: place ? "fill held" : "fill", style: { width: `${(width * 100).toFixed(2)}%` } });
  });
  return h("span", { class: `meter ${toneOf(used)}`, role: "img", "aria-label": label }, parts);
}

/**
 * A sign that a limit is near or reached, in shape and colour; the caller adds the words.
 * @param {number} ratio
 */
export function nearness(ratio) {
  const tone = toneOf(ratio);
  return tone === "info" ? null : shape(severityLook(tone), "tiny");
}

/**
 * A figure with its name.
 * @param {string} name
 * @param {import("../vendor/preact.js").ComponentChildren} value
 * @param {string} [title]
 */
export function figure(name, value, title) {
  return h("div", { class: "figure", title }, h("dt", null, name), h("dd", null, value));
}
