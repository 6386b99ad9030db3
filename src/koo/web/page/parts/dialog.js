// @ts-check
// The dialog of an act: what it will do, with the current state; who does it and why; then what it did.

import { useEffect, useLayoutEffect, useRef, useState } from "../vendor/hooks.js";
import { h } from "../vendor/preact.js";
import { DISCONNECTED, severityLook, verdictLook } from "../words/looks.js";
import { shape } from "./badge.js";

/**
 * `Effect`: what will happen, and afterwards (`done`) the resulting state. `send` does it and returns the message to show.
 * `lasts`: the durations to choose from, each as value and label; `needs`: the required fields.
 * `fails`: what did not happen, such as "nothing was reset"; `unsure`: for a missing response, such as "whether it was
 * reset".
 * @typedef {import("../vendor/preact.js").ComponentChildren} Children
 * @typedef {{
 *   title: string, go: string, going: string, fails: string, unsure: string,
 *   Effect: (props: {done: boolean}) => Children,
 *   send: (given: Given) => Promise<string>,
 *   lasts?: [string, string][], needs?: ("by" | "reason")[], logged: string,
 * }} Act
 * @typedef {{by: string, reason: string, lasts: string}} Given
 * @typedef {{look: import("../words/looks.js").Look, words: string}} Said
 */

/** The user's name as last typed, kept until the page is left. */
let typedName = "";

/**
 * `onEnd`: called when it is closed. `onDone`: called after an attempt. `whyNot`: why the act is described but not
 * offered; empty if it is offered.
 * @param {{act: Act, onEnd: () => void, onDone: () => void, whyNot: string}} props
 */
export function ActDialog({ act, onEnd, onDone, whyNot }) {
  const dialog = useRef(/** @type {HTMLDialogElement | null} */ (null));
  const go = useRef(/** @type {HTMLButtonElement | null} */ (null));
  const [phase, setPhase] = useState(/** @type {"asked" | "busy" | "done"} */ ("asked"));
  const [said, setSaid] = useState(/** @type {Said | null} */ (null));
  const given = useRef({ by: typedName, reason: "", lasts: act.lasts?.[0][0] ?? "" });
  const done = phase === "done";
  useLayoutEffect(() => dialog.current?.showModal(), []);
  useEffect(() => (done ? go.current?.focus() : undefined), [done]); // the focused field is gone

  const perform = async () => {
    if (phase === "busy") return;
    setPhase("busy");
    const one = { ...given.current, by: given.current.by.trim(), reason: given.current.reason.trim() };
    typedName = one.by;
    try {
      const words = await act.send(one);
      setSaid({ look: verdictLook("healthy"), words: `Done: ${words}.` });
      setPhase("done");
    } catch (error) {
      setSaid(failed(act, error));
      setPhase("asked");
    }
    onDone();
  };
  /** @param {Event} event */
  const submit = (event) => {
    event.preventDefault();
    if (done) dialog.current?.close();
    else void perform();
  };
  return h("dialog", { id: "act", ref: dialog, "aria-labelledby": "act-title", onClose: onEnd },
    h("form", { id: "act-form", onSubmit: submit },
      h("h2", { id: "act-title" }, act.title),
      h("div", { id: "act-effect" }, h(act.Effect, { done })),
      done || whyNot ? null : fields(act, given.current),
      whyNot ? h("p", { class: "why" }, whyNot) : null,
      h("div", { id: "act-result", role: "status", "aria-live": "polite" },
        said && h("p", { class: `result ${said.look.tone}` }, shape(said.look), h("span", null, said.words))),
      h("div", { class: "row end" },
        done ? null : h("button", { type: "button", id: "act-cancel", class: "quiet", onClick: () => dialog.current?.close() }, whyNot ? "Close" : "Cancel"),
        // This is not `disabled`, which would lose the focus.
        whyNot ? null : h("button", { type: "submit", id: "act-go", ref: go, "aria-disabled": String(phase === "busy") },
          done ? "Close" : phase === "busy" ? act.going : act.go))));
}

/**
 * @param {Act} act
 * @param {Given} given receives the input
 */
function fields(act, given) {
  const { lasts, needs = [] } = act;
  /** @param {"by" | "reason" | "lasts"} name */
  const keep = (name) => (/** @type {Event} */ event) => {
    given[name] = /** @type {HTMLInputElement} */ (event.target).value;
  };
  const soft = (/** @type {"by" | "reason"} */ name) =>
    h("span", { class: "soft" }, needs.includes(name) ? act.logged : `optional, ${act.logged}`);
  return h("div", { id: "act-words" },
    lasts ? h("div", null, h("label", { for: "act-lasts" }, "For"),
      h("select", { id: "act-lasts", onChange: keep("lasts") }, lasts.map(([value, words]) => h("option", { value, key: value }, words)))) : null,
    h("label", { for: "act-reason" }, "Reason ", soft("reason")),
    h("input", { id: "act-reason", maxLength: 500, autocomplete: "off", required: needs.includes("reason"), onInput: keep("reason") }),
    h("label", { for: "act-by" }, "Your name ", soft("by")),
    h("input", { id: "act-by", maxLength: 100, autocomplete: "off", required: needs.includes("by"), defaultValue: given.by, onInput: keep("by") }));
}

/**
 * @param {Act} act
 * @param {unknown} error
 * @returns {Said}
 */
function failed(act, error) {
  const { message, status = 0 } = /** @type {{message: string, status?: number}} */ (error);
  if (status) return { look: severityLook("critical"), words: `${act.fails}: ${message}.` };
  return { look: DISCONNECTED, words: `It is not known ${act.unsure}: ${message}. Doing it twice does no harm.` };
}
