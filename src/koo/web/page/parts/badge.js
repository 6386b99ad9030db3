// @ts-check
// A state as a shape alone, or as shape and word.

import { h } from "../vendor/preact.js";
import { SHAPES } from "../words/looks.js";

/** @typedef {import("../words/looks.js").Look} Look */

/**
 * The shape alone; its meaning must be next to it in words.
 * @param {Look} look
 * @param {string} [size]
 */
export function shape(look, size = "small") {
  const path = h("path", { d: SHAPES[look.shape].path, "fill-rule": "evenodd" });
  return h("svg", { class: `shape ${size} ${look.tone}`, viewBox: "0 0 16 16", "aria-hidden": "true" }, path);
}

/**
 * Shape and word.
 * @param {Look} look
 */
export function badge(look) {
  const hatched = look.shape === "half" ? " hatched" : "";
  return h("span", { class: `badge ${look.tone}${hatched}` }, shape(look), h("span", null, look.word));
}
