// @ts-check
// The dialog of a reset: what it will do, with the state of now; then what it did.

import { Failure, keepToken, readToken, resetDatabase, resetService } from "./api.js";
import { databaseReason } from "./cards.js";
import { h, patch } from "./dom.js";
import { badge, breakerLook, DISCONNECTED, partLook, shape, severityLook, stateLook, verdictLook } from "./shapes.js";
import { capital, counted, plainly } from "./words.js";

/**
 * @typedef {import("./feed.js").Feed} Feed
 * @typedef {{kind: "database"} | {kind: "service", name: string}} Target
 */

/**
 * @template {HTMLElement} T
 * @param {string} id
 * @returns {T}
 */
function part(id) {
  return /** @type {T} */ (document.getElementById(id));
}

export class ResetDialog {
  /** @param {Feed} feed */
  constructor(feed) {
    this.feed = feed;
    /** @type {Target | null} */
    this.target = null;
    this.done = false;
    this.busy = false;
    this.dialog = /** @type {HTMLDialogElement} */ (part("reset"));
    this.go = /** @type {HTMLButtonElement} */ (part("reset-go"));
    this.reason = /** @type {HTMLInputElement} */ (part("reset-reason"));
    this.token = /** @type {HTMLInputElement} */ (part("reset-token"));
    part("reset-cancel").addEventListener("click", () => this.dialog.close());
    part("reset-form").addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.done) this.dialog.close();
      else void this.act();
    });
    this.dialog.addEventListener("close", () => (this.token.value = ""));
  }

  /** @param {Target} target */
  open(target) {
    this.target = target;
    this.done = this.busy = false;
    this.reason.value = this.token.value = "";
    part("reset-reason-part").hidden = false;
    part("reset-token-part").hidden = true;
    part("reset-title").textContent =
      target.kind === "database" ? "Reset the database's circuit breaker?" : `Reset ${target.name}?`;
    patch(part("reset-result"), []);
    this.render();
    this.dialog.showModal();
  }

  /** What it says follows the state for as long as the dialog is open. */
  render() {
    if (this.target === null) return;
    part("reset-cancel").hidden = this.done;
    this.go.ariaDisabled = String(this.busy); // `disabled` would lose the focus
    this.go.textContent = this.done ? "Close" : this.busy ? "Resetting…" : "Reset";
    patch(part("reset-effect"), effect(this.target, this.feed, this.done));
  }

  async act() {
    if (this.target === null || this.busy) return;
    this.busy = true;
    this.render();
    const token = this.token.value.trim();
    try {
      const said = await this.send(this.target, token);
      if (token) keepToken(token);
      this.done = true;
      this.tell(verdictLook("healthy"), `Done: ${said}.`);
      part("reset-token-part").hidden = part("reset-reason-part").hidden = true;
    } catch (error) {
      this.fail(error);
    }
    this.busy = false;
    this.render();
    if (this.done) this.go.focus(); // the field where it was is gone
    this.feed.askNow();
  }

  /**
   * @param {Target} target
   * @param {string} token
   */
  async send(target, token) {
    const reason = this.reason.value.trim();
    const answer = await (target.kind === "database" ? resetDatabase(reason, token) : resetService(target.name, reason, token));
    const state = answer.new_state ? `; its state is ${stateLook(answer.new_state).word}` : "";
    return `${answer.message}${state}`;
  }

  /** @param {unknown} error */
  fail(error) {
    const failure = error instanceof Failure ? error : new Failure(String(error));
    if (failure.status) this.tell(severityLook("critical"), `Nothing was reset: ${failure.message}.`);
    else this.tell(DISCONNECTED, `Nobody knows whether it was reset: ${failure.message}. Doing it twice does no harm.`);
    const wantsToken = failure.status === 401 || (failure.status === 403 && readToken() !== "");
    if (wantsToken) {
      part("reset-token-part").hidden = false;
      this.token.focus();
    }
  }

  /**
   * @param {import("./shapes.js").Look} look
   * @param {string} words
   */
  tell(look, words) {
    patch(part("reset-result"), [h("p", { class: `result ${look.tone}` }, shape(look), h("span", {}, words))]);
  }
}

/**
 * @param {Target} target
 * @param {Feed} feed
 * @param {boolean} done
 */
function effect(target, feed, done) {
  const dashboard = feed.snapshot?.dashboard;
  if (!dashboard) return [];
  const service = target.kind === "service" ? dashboard.ai_services.services[target.name] : undefined;
  if (target.kind === "service" && service === undefined) return [h("p", {}, "It is not there any more.")];
  const now = service
    ? nowLine(partLook(service.state, service.health.circuit_breaker_state), service.reason, feed.now)
    : nowLine(
        partLook(dashboard.database.state, dashboard.database.circuit_breaker.state),
        databaseReason(dashboard.database),
        feed.now,
      );
  return done ? [now] : [now, service ? serviceEffect(service) : databaseEffect(dashboard.database)];
}

/**
 * @param {import("./shapes.js").Look} look
 * @param {string} why
 * @param {number} now
 */
function nowLine(look, why, now) {
  return h("p", {}, "Now: ", badge(look), why ? ` ${capital(plainly(why, now))}.` : "");
}

/** @param {import("./data.js").DatabaseHealth} database */
function databaseEffect(database) {
  const failures = counted(database.circuit_breaker.failure_threshold, "failure");
  return h("ul", {},
    h("li", {}, "Calls pass at once, here and in every process on the same state store."),
    h("li", {}, `If the database still fails, ${failures} in a row open it again.`),
    h("li", {}, "Connections and counts stay as they are."));
}

/** @param {import("./data.js").ServiceHealth} service */
function serviceEffect(service) {
  const refused = Object.entries(service.models).filter(([, one]) => one.state !== "closed");
  return h("ul", {},
    refused.map(([name, one]) => h("li", { key: `model ${name}` }, `The breaker of ${name} (${breakerLook(one.state).word}) is closed.`)),
    h("li", {}, "Streaks of failures, pauses that the provider asked for and a refused key are forgotten, for all its models, "
      + "here and in every process on the same state store."),
    h("li", {}, "Calls pass at once, and cost what they cost."),
    h("li", {}, "Money spent, requests used and counts stay: a limit that is reached stays reached."));
}
