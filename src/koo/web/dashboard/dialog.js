// @ts-check
// The dialog of an act: what it will do, with the state of now; who does it and why; then what it did. What the act is,
// is an `Act`: reset.js and hush.js make them.

import { Failure, keepToken, readToken } from "./api.js";
import { h, patch } from "./dom.js";
import { DISCONNECTED, severityLook, shape, verdictLook } from "./shapes.js";

/**
 * `effect`: what will happen, and once it has (`done`), how things are. `send` does it, and returns what to say.
 * `lasts`: for how long it may be, each as what is sent and what is read; `needs`: what must be typed.
 * `fails`: what did not happen, as "nothing was reset"; `unsure`: where no answer came, as "whether it was reset".
 * @typedef {{
 *   title: string, go: string, going: string, fails: string, unsure: string,
 *   effect: (feed: import("./feed.js").Feed, done: boolean) => import("./dom.js").Child[],
 *   send: (given: Given, token: string) => Promise<string>,
 *   lasts?: [string, string][], needs?: ("by" | "reason")[],
 * }} Act
 * @typedef {{by: string, reason: string, lasts: string}} Given
 */

/** Who sits here, as they typed it last: known until the page is left. */
let typedName = "";

export class ActDialog {
  /**
   * @param {string} prefix of the ids of its parts
   * @param {import("./feed.js").Feed} feed
   */
  constructor(prefix, feed) {
    this.prefix = prefix;
    this.feed = feed;
    /** @type {Act | null} */
    this.act = null;
    this.done = false;
    this.busy = false;
    this.dialog = /** @type {HTMLDialogElement} */ (document.getElementById(prefix));
    this.go = /** @type {HTMLButtonElement} */ (this.part("go"));
    this.reason = /** @type {HTMLInputElement} */ (this.part("reason"));
    this.by = /** @type {HTMLInputElement} */ (this.part("by"));
    this.token = /** @type {HTMLInputElement} */ (this.part("token"));
    this.lasts = /** @type {HTMLSelectElement | null} */ (document.getElementById(`${prefix}-lasts`));
    this.part("cancel").addEventListener("click", () => this.dialog.close());
    this.part("form").addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.done) this.dialog.close();
      else void this.perform();
    });
    this.dialog.addEventListener("close", () => (this.token.value = ""));
  }

  /**
   * @param {string} name
   * @returns {HTMLElement}
   */
  part(name) {
    return /** @type {HTMLElement} */ (document.getElementById(`${this.prefix}-${name}`));
  }

  /** @param {Act} act */
  open(act) {
    this.act = act;
    this.done = this.busy = false;
    this.reason.value = this.token.value = "";
    this.by.value = typedName;
    this.by.required = act.needs?.includes("by") ?? false;
    this.reason.required = act.needs?.includes("reason") ?? false;
    this.part("words").hidden = false;
    this.part("token-part").hidden = true;
    this.part("title").textContent = act.title;
    if (this.lasts !== null) {
      this.part("lasts-part").hidden = act.lasts === undefined;
      patch(this.lasts, (act.lasts ?? []).map(([value, words]) => h("option", { value }, words)));
    }
    patch(this.part("result"), []);
    this.render();
    this.dialog.showModal();
  }

  /** What it says follows the state for as long as the dialog is open. */
  render() {
    if (this.act === null) return;
    this.part("cancel").hidden = this.done;
    this.go.ariaDisabled = String(this.busy); // `disabled` would lose the focus
    this.go.textContent = this.done ? "Close" : this.busy ? this.act.going : this.act.go;
    patch(this.part("effect"), this.act.effect(this.feed, this.done));
  }

  async perform() {
    if (this.act === null || this.busy) return;
    this.busy = true;
    this.render();
    const token = this.token.value.trim();
    typedName = this.by.value.trim();
    const given = { by: typedName, reason: this.reason.value.trim(), lasts: this.lasts?.value ?? "" };
    try {
      const said = await this.act.send(given, token);
      if (token) keepToken(token);
      this.done = true;
      this.tell(verdictLook("healthy"), `Done: ${said}.`);
      this.part("token-part").hidden = this.part("words").hidden = true;
    } catch (error) {
      this.fail(error, this.act);
    }
    this.busy = false;
    this.render();
    if (this.done) this.go.focus(); // the field where it was is gone
    this.feed.askNow();
  }

  /**
   * @param {unknown} error
   * @param {Act} act
   */
  fail(error, act) {
    const failure = error instanceof Failure ? error : new Failure(String(error));
    if (failure.status) this.tell(severityLook("critical"), `${act.fails}: ${failure.message}.`);
    else this.tell(DISCONNECTED, `Nobody knows ${act.unsure}: ${failure.message}. Doing it twice does no harm.`);
    const wantsToken = failure.status === 401 || (failure.status === 403 && readToken() !== "");
    if (wantsToken) {
      this.part("token-part").hidden = false;
      this.token.focus();
    }
  }

  /**
   * @param {import("./shapes.js").Look} look
   * @param {string} words
   */
  tell(look, words) {
    patch(this.part("result"), [h("p", { class: `result ${look.tone}` }, shape(look), h("span", {}, words))]);
  }
}
