// @ts-check
// "Check now": asks the other side at once, unbilled, and says below the button what came of it. A reset lets calls run
// into an outage again; a check finds out whether it is over, so this is the button that stands first on a sick card.

import { checkDatabase, checkService, Failure } from "./api.js";
import { h } from "./dom.js";
import { DISCONNECTED, severityLook, shape, verdictLook } from "./shapes.js";
import { capital, latency } from "./words.js";

/** @typedef {{busy: boolean, look: import("./shapes.js").Look, words: string}} Outcome */

/** @type {Map<string, Outcome>} by component; what was found stays until the next check or reload */
const outcomes = new Map();

/**
 * @param {string} component "database" or "ai:NAME"
 * @param {import("./feed.js").Feed} feed
 */
export async function checkNow(component, feed) {
  if (outcomes.get(component)?.busy) return;
  outcomes.set(component, { busy: true, look: DISCONNECTED, words: "Asking…" });
  feed.onChange();
  outcomes.set(component, { busy: false, ...(await look(component)) });
  feed.onChange();
  feed.askNow();
}

/** @param {string} component */
async function look(component) {
  try {
    const { error, response_time_ms: took } =
      component === "database" ? await checkDatabase() : await checkService(component.replace(/^ai:/, ""));
    if (error !== null) return { look: severityLook("critical"), words: `The check failed: ${error}` };
    return { look: verdictLook("healthy"), words: `It answers, in ${latency((took ?? 0) / 1000)}` };
  } catch (error) {
    const failure = error instanceof Failure ? error : new Failure(String(error));
    return { look: DISCONNECTED, words: `Not checked: ${failure.message}` };
  }
}

/**
 * The buttons of a card, and what the last check found.
 * @param {string} component
 * @param {string} name how the buttons are told apart by somebody who only hears them
 * @param {import("./dom.js").Wanted} reset
 * @param {string} tone of the card
 */
export function acts(component, name, reset, tone) {
  const outcome = outcomes.get(component);
  const check = h("button", { type: "button", class: tone === "ok" ? "quiet" : "", "data-check": component,
    "aria-disabled": String(outcome?.busy ?? false), "aria-label": `Check ${name} now` }, "Check now");
  return h("div", { class: "act" },
    h("p", { class: "row" }, check, reset),
    h("p", { class: "found", role: "status" },
      outcome === undefined ? null : [shape(outcome.look, "tiny"), `${capital(outcome.words)}.`]));
}
