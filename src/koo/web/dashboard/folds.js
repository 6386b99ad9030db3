// @ts-check
// Folds whose content is asked for when they are opened, and again while they stay open. Most people never open them, so
// the page does not ask for it every two seconds.

import { h } from "./dom.js";

/**
 * @typedef {import("./dom.js").Child} Child
 * @typedef {{load: () => Promise<unknown>, content: unknown, failure: string, askedAt: number}} Fold
 */

const AGAIN_MS = 10_000;

/** @type {Map<string, Fold>} by key */
const folds = new Map();

/**
 * @template T
 * @param {string} key
 * @param {Child} title
 * @param {() => Promise<T>} load
 * @param {(content: T) => Child} show
 */
export function fold(key, title, load, show) {
  const one = folds.get(key) ?? { load, content: undefined, failure: "", askedAt: 0 };
  folds.set(key, Object.assign(one, { load }));
  const body = one.content !== undefined ? show(/** @type {T} */ (one.content)) : h("p", { class: "soft" }, "Asking…");
  return h("details", { key, class: "fold", "data-fold": key }, h("summary", {}, title),
    one.failure ? h("p", {}, `${one.failure}.`) : body);
}

/**
 * Ask for what stands open and is older than ten seconds, or for all of it that is open at once.
 * @param {() => void} onCome
 * @param {boolean} [now] something was done that changes it
 */
export function refreshFolds(onCome, now = false) {
  for (const element of document.querySelectorAll("details[data-fold][open]")) {
    const one = folds.get(/** @type {HTMLElement} */ (element).dataset.fold ?? "");
    if (one && (now || Date.now() - one.askedAt >= AGAIN_MS)) void ask(one, onCome);
  }
}

/**
 * @param {Fold} one
 * @param {() => void} onCome
 */
async function ask(one, onCome) {
  one.askedAt = Date.now();
  try {
    one.content = await one.load();
    one.failure = "";
  } catch (error) {
    one.failure = error instanceof Error ? error.message : String(error);
  }
  onCome();
}
