// @ts-check
// What happened: alerts, breakers, operators' acts and deployments, newest first.

import { history as alertHistory } from "../data/api.js";
import { marks, serverNow } from "../data/store.js";
import { badge, shape } from "../parts/badge.js";
import { useLoaded } from "../parts/loaded.js";
import { table } from "../parts/table.js";
import { h } from "../vendor/preact.js";
import { severityLook } from "../words/looks.js";
import { alertWords, capital, spaced, withoutName } from "../words/text.js";
import { clock, span, timeOf } from "../words/times.js";
import { endButton, untilWords } from "./hush.js";
import { Plain } from "./moments.js";
import { RangePicker, useHistory } from "./past.js";
import { to, toComponent } from "./route.js";

/**
 * @typedef {import("../data/shapes.js").Alert} Alert
 * @typedef {import("../data/shapes.js").History} History
 * @typedef {import("../data/shapes.js").HistoryMark} HistoryMark
 * @typedef {import("../words/looks.js").Look} Look
 */

/** @type {Record<string, Look>} */
const LOOKS = {
  alert: { shape: "square", tone: "critical", word: "alert" },
  circuit: { shape: "half", tone: "warning", word: "circuit" },
  act: { shape: "diamond", tone: "info", word: "act" },
  deploy: { shape: "ring", tone: "ok", word: "deploy" },
};

/** @type {Look} */
const OVER = { shape: "circle", tone: "ok", word: "over" };

/**
 * The last marks, for the first screen.
 * @param {{history: History | null, most: number}} props
 */
export function Timeline({ history, most }) {
  if (history === null) return null;
  const last = history.marks.slice(-most).reverse();
  return h("section", { "aria-labelledby": "timeline", class: "panel timeline" },
    h("h2", { id: "timeline" }, h("a", { href: to("timeline") }, "Timeline"), h("span", { class: "soft" }, "last 15 minutes")),
    last.length ? h(Marks, { all: last }) : h("p", { class: "soft" }, "Nothing happened."));
}

/** @param {{all: HistoryMark[]}} props */
export function Marks({ all }) {
  const nowMs = serverNow();
  return h("ol", { class: "marks" }, all.map((one, place) => {
    const ended = one.kind === "alert" && /^ended/.test(one.text) || one.kind === "circuit" && /^closed/.test(one.text);
    const look = ended ? { ...OVER, word: one.kind } : LOOKS[one.kind] ?? { shape: "ring", tone: "none", word: spaced(one.kind) };
    const href = toComponent(one.component), at = timeOf(one.at);
    const whose = one.component.replace(/^ai:/, "");
    return h("li", { key: `${one.at} ${place}` },
      h("span", { class: "soft when" }, at === null ? "" : clock(at, nowMs)), shape(look, "tiny"),
      h("span", { class: "soft kind" }, look.word),
      h("p", null, one.component ? [href ? h("a", { href }, whose) : h("b", null, whose), " "] : null,
        h(Plain, { text: withoutName(one.text, whose) })));
  }));
}

/** The view with all marks of the range, alerts of a week, and silences. */
export function TimelineView() {
  const { content, failure } = useHistory("");
  const week = useLoaded("week", alertHistory, 30_000, marks.value);
  return [
    h("header", { class: "view-head", key: "head" }, h("h1", null, "Timeline"), h(RangePicker, null)),
    h("section", { class: "panel", key: "marks", "aria-label": "What happened" },
      failure ? h("p", null, `${capital(failure)}.`) : null,
      content === null ? h("p", { class: "soft" }, "Loading…")
        : content.marks.length ? h(Marks, { all: [...content.marks].reverse() }) : h("p", { class: "soft" }, "Nothing happened in this period.")),
    h("section", { class: "panel", key: "week", "aria-labelledby": "week" }, h("h2", { id: "week" }, "Alerts of the last 7 days"),
      week.content === null ? h("p", { class: "soft" }, week.failure ? `${capital(week.failure)}.` : "Loading…") : [
        week.content.silences.length ? h("ul", { class: "told", key: "silences" }, week.content.silences.map(silence)) : null,
        week.content.episodes.length ? episodes(week.content.episodes) : h("p", { class: "soft" }, "None.")]),
  ];
}

/** @param {import("../data/shapes.js").SilenceView} one */
function silence(one) {
  const what = [one.kind === "*" ? "everything" : spaced(one.kind), one.component === "*" ? "" : `of ${one.component}`];
  return h("li", { key: one.id }, `Silenced: ${what.filter(Boolean).join(" ")}, by ${one.by}`, untilWords(one.ends_at),
    one.reason ? `: ${one.reason} ` : " ", endButton(one.id));
}

/** @param {Alert[]} all */
function episodes(all) {
  const nowMs = serverNow();
  return table("Alerts of the last 7 days", ["Began", "Lasted", "Severity", "Where", "What", "Notified"], all.map((one) => {
    const began = timeOf(one.timestamp) ?? nowMs, ended = timeOf(one.ended_at), noticed = timeOf(one.notified.at);
    return { key: one.id, cells: [
      h("span", { class: "when" }, clock(began, nowMs)), ended === null ? "active" : span(ended - began), badge(severityLook(one.type)),
      one.component, alertWords(one, nowMs).said, noticed === null ? one.notified.reason || spaced(one.notified.state) : clock(noticed, nowMs)] };
  }));
}
