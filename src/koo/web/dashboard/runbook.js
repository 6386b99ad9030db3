// @ts-check
// What to do about each kind of alert. It never changes while the server runs, so it is read once; until it has come, the
// page is whole without it.

import { runbook } from "./api.js";
import { h } from "./dom.js";
import { capital } from "./words.js";

/** @type {Record<string, import("./api.js").Advice>} */
let entries = {};

/** @param {() => void} onCome */
export async function loadRunbook(onCome) {
  entries = await runbook().catch(() => entries);
  onCome();
}

/**
 * A fold below an alert; null for a kind of which nothing is known.
 * @param {string} kind
 * @param {string} link
 */
export function whatToDo(kind, link) {
  if (!Object.hasOwn(entries, kind)) return null;
  const { refuses, advice, ends } = entries[kind];
  return h("details", { key: "runbook", class: "runbook" },
    h("summary", {}, "What to do"),
    advice.split("\n\n").map((paragraph) => h("p", {}, capital(paragraph))),
    refuses ? h("p", { class: "soft" }, `Refused: ${refuses}`) : null,
    h("p", { class: "soft" }, `Ends ${ends} `, h("a", { href: link }, "On a page of its own")));
}
