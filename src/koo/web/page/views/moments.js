// @ts-check
// Times that go on: the only components that each second is drawn anew.

import { now } from "../data/store.js";
import { h } from "../vendor/preact.js";
import { alertWords, capital } from "../words/text.js";
import { clock, plainly, span, timeOf, until } from "../words/times.js";

/** How long ago, or how long since: "12 s". @param {{at: number}} props */
export const Since = ({ at }) => span(now.value - at);

/** "in 42 s"; "now" once it has come. @param {{at: number}} props */
export const Until = ({ at }) => until(at, now.value);

/** "42 s", after a word that says until when. @param {{at: number}} props */
export const Within = ({ at }) => until(at, now.value).replace(/^in /, "");

/** "14:02:11". @param {{at: number}} props */
export const Clock = ({ at }) => clock(at, now.value);

/** A sentence of the server's with its times as people read them. @param {{text: string}} props */
export const Plain = ({ text }) => capital(plainly(text, now.value));

/** What an alert says, without the name that stands before it. @param {{alert: {component: string, message: string}}} props */
export const Said = ({ alert }) => alertWords(alert, now.value).said;

/**
 * "12 s ago"; a dash for never.
 * @param {string | null | undefined} iso
 */
export function ago(iso) {
  const at = timeOf(iso);
  return at === null ? "–" : [h(Since, { at }), " ago"];
}
