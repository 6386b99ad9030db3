// @ts-check
// Adapts the server's sentences to their place on the page.

import { plainly } from "./times.js";

/** @param {string} text */
export function capital(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/**
 * An alert's component, and its message without that name.
 * @param {{component: string, message: string}} alert
 * @param {number} now
 */
export function alertWords({ component, message }, now) {
  const whose = component.replace(/^ai:/, "");
  return { whose, said: `${capital(plainly(withoutName(message, whose), now))}.` };
}

/**
 * A message without the name with which it starts, because the name stands next to it.
 * @param {string} message
 * @param {string} name
 */
export function withoutName(message, name) {
  const head = message.startsWith("ended: ") ? "ended: " : "";
  return message.startsWith(`${head}${name} `) ? head + message.slice(head.length + name.length + 1) : message;
}

/** @param {string} word */
export const spaced = (word) => word.replaceAll("_", " ");

/**
 * As many of the first sentences as fit into `most` letters; always at least one.
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
