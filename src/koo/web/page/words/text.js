// @ts-check
// Sentences of the server's, made fit for their place on the page.

import { plainly } from "./times.js";

/** @param {string} text */
export function capital(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/**
 * Whose alert it is, and what it says without saying so again.
 * @param {{component: string, message: string}} alert
 * @param {number} now
 */
export function alertWords({ component, message }, now) {
  const whose = component.replace(/^ai:/, "");
  const said = message.startsWith(`${whose} `) ? message.slice(whose.length + 1) : message;
  return { whose, said: `${capital(plainly(said, now))}.` };
}

/** @param {string} word */
export const spaced = (word) => word.replaceAll("_", " ");

/**
 * The first sentences of a text, as many as fit into so many letters; the first one whatever its length.
 * @param {string} text
 * @param {number} most
 */
export function opening(text, most) {
  const sentences = text.split(/(?<=[.?!])\s+/);
  let said = sentences[0];
  for (const one of sentences.slice(1)) {
    if (said.length + one.length >= most) break;
    said += ` ${one}`;
  }
  return said;
}
