// @ts-check
// Running times and countdowns: the only components that are redrawn each second.

import { now } from "../data/store.js";
import { h } from "../vendor/preact.js";
import { alertWords, capital } from "../words/text.js";
import { clock, plainly, span, timeOf, until } from "../words/times.js";

/** The time that has passed since: "12 s". @param {{at: number}} props */
export const Since = ({ at }) => span(now.value - at);

/** "in 42 s", or "now" once it has passed. @param {{at: number}} props */
export const Until = ({ at }) => until(at, now.value);

/** "42 s", to be used after a word such as "to". @param {{at: number}} props */
export const Within = ({ at }) => until(at, now.value).replace(/^in /, "");

/** "14:02:11". @param {{at: number}} props */
export const Clock = ({ at }) => clock(at, now.value);

/** A sentence of the server with its times formatted for people. @param {{text: string}} props */
export const Plain = ({ text }) => capital(plainly(text, now.value));

/** An alert's message, without the component's name in front. @param {{alert: {component: string, message: string}}} props */
export const Said = ({ alert }) => alertWords(alert, now.value).said;

/**
 * "12 s ago"; a dash for never.
 * @param {string | null | undefined} iso
 */
export function ago(iso) {
  const at = timeOf(iso);
  return at === null ? "–" : [h(Since, { at }), " ago"];
}
