// @ts-check
// One incident: why the breaker opened, what preceded it, what it did, who did what, and how it ended.

import { addressOf, incident } from "../data/api.js";
import { marks } from "../data/store.js";
import { badge } from "../parts/badge.js";
import { useLoaded } from "../parts/loaded.js";
import { number, table } from "../parts/table.js";
import { h } from "../vendor/preact.js";
import { incidentLook } from "../words/looks.js";
import { count, counted, latency, percent } from "../words/numbers.js";
import { capital, spaced } from "../words/text.js";
import { clock, span, timeOf } from "../words/times.js";
import { Lasted } from "./incidents.js";
import { Clock, Plain } from "./moments.js";
import { to, toComponent } from "./route.js";
import { Marks } from "./timeline.js";

/**
 * @typedef {import("../data/shapes.js").Incident} Incident
 * @typedef {import("../data/shapes.js").IncidentCall} IncidentCall
 * @typedef {import("../data/shapes.js").Trigger} Trigger
 * @typedef {import("../vendor/preact.js").ComponentChildren} Children
 */

/** @param {{name: string}} props the incident's id */
export function IncidentView({ name }) {
  const { content, failure } = useLoaded(name, () => incident(name), 10_000, marks.value);
  if (content === null) return h("section", { class: "panel" }, h("h1", null, "Incident"), h("p", { class: "soft" }, failure ? `${capital(failure)}.` : "Loading…"));
  const one = content.incident, at = timeOf(one.opened_at) ?? 0;
  const trouble = failure || content.trouble;
  return [
    h("header", { class: "view-head", key: "head" }, h("div", null,
      h("h1", null, one.guard, badge(incidentLook(one.state))),
      h("p", { class: "soft" }, "opened ", h(Clock, { at }), one.closed_at === null && one.state !== "lost" ? " · lasts for " : " · lasted ", h(Lasted, { one }), ` · in ${one.process}`)),
    h("div", { class: "row" },
      h("a", { href: toComponent(one.component) ?? to("") }, one.component.replace(/^ai:/, "")), h("a", { href: to("incidents", "", { component: one.component }) }, "All its incidents"),
      h("a", { class: "button quiet", href: addressOf(`monitoring/incidents/${encodeURIComponent(name)}.md`), download: `${name}.md` }, "Download as Markdown"))),
    trouble ? h("p", { class: "why", key: "trouble" }, `${capital(trouble)}.`) : null,
    h("div", { class: "split", key: "split" },
      h("div", { class: "side" },
        panel("why", "Why it opened", h("p", null, h(Plain, { text: one.reason })), one.trigger ? arithmetic(one.trigger) : h("p", { class: "soft" }, "An operator forced it open.")),
        panel("calls", "The calls that opened it", one.calls.length ? calls(one.calls, "Calls of the window") : none(),
          one.calls_left_out ? h("p", { class: "soft small" }, `${counted(one.calls_left_out, "more call is", "more calls are")} not kept.`) : null),
        one.probes.length ? panel("probes", "Probes", calls(one.probes, "Probes")) : null,
        panel("before", "The hour before", one.before.length ? h(Marks, { all: one.before }) : none())),
      h("div", { class: "side" },
        panel("did", "What it did", did(one)),
        panel("course", "Course of events", h("ol", { class: "course" }, one.steps.map((step, place) => h("li", { key: place },
          h("span", { class: "soft when" }, clock(timeOf(step.at) ?? 0, at)), h("p", null, h("b", null, spaced(step.what)), step.text ? [" ", h(Plain, { text: step.text })] : null)))),
        one.ended ? h("p", null, h(Plain, { text: one.ended })) : null),
        panel("acts", "Who did what", one.acts.length ? h("ol", { class: "course" }, one.acts.map((act, place) => h("li", { key: place },
          h("span", { class: "soft when" }, clock(timeOf(act.at) ?? 0, at)), h("p", null, spaced(act.what), act.by ? [" by ", h("b", null, act.by)] : null, act.reason ? `: ${act.reason}` : "")))) : h("p", { class: "soft" }, "No operator acted.")),
        one.elsewhere.length ? panel("elsewhere", "In other processes", h("ul", { class: "course" }, one.elsewhere.map((other) => h("li", { key: other.id },
          h("a", { href: to("incident", other.id) }, clock(timeOf(other.opened_at) ?? 0, at)), h("p", null, other.process, " ", badge(incidentLook(other.state)), ` refused ${count(other.refused)}`))))) : null)),
  ];
}

/**
 * @param {string} id
 * @param {string} title
 * @param {...Children} content
 */
function panel(id, title, ...content) {
  return h("section", { class: "panel", key: id, "aria-labelledby": `of-${id}` }, h("h2", { id: `of-${id}` }, title), content);
}

const none = () => h("p", { class: "soft" }, "None.");

/** What was counted, next to the thresholds. @param {Trigger} trigger */
function arithmetic(trigger) {
  const { calls_min: least, calls: all } = trigger;
  /** @type {[string, string, string, boolean][]} */
  const rows = [
    ["Failures in a row", count(trigger.failures_in_a_row), count(trigger.failures_in_a_row_max), trigger.failures_in_a_row >= trigger.failures_in_a_row_max],
    ["Failed", `${count(trigger.failures)} of ${count(all)}, ${percent(trigger.failure_rate)}`, `${percent(trigger.failure_rate_max)} of ${count(least)} or more`, all >= least && trigger.failure_rate >= trigger.failure_rate_max],
    ["Slow", `${count(trigger.slow)} of ${count(all)}, ${percent(trigger.slow_rate)}`, trigger.slow_s === null ? "not counted" : `${percent(trigger.slow_rate_max)} of ${count(least)} or more, slow from ${latency(trigger.slow_s)}`,
      trigger.slow_s !== null && all >= least && trigger.slow_rate >= trigger.slow_rate_max],
  ];
  return [
    h("p", null, h(Plain, { text: trigger.sentence }), "."),
    table("What was counted", [`In the last ${span(trigger.window_s * 1000)}`, number("Counted"), number("Opens at")], rows.map(([what, is, opens, met]) => ({
      key: what, cells: [what, met ? h("b", null, is) : is, opens] }))),
    trigger.primed ? h("p", { class: "soft" }, `One failure was enough: ${trigger.primed}.`) : null,
  ];
}

/**
 * @param {IncidentCall[]} all
 * @param {string} label
 */
function calls(all, label) {
  const last = timeOf(all[all.length - 1].at) ?? 0;
  return table(label, ["Ended", number("Took"), "Outcome", "Error", number("In a row")], all.map((call, place) => ({ key: String(place), cells: [
    h("span", { class: "when" }, clock(timeOf(call.at) ?? 0, last)), latency(call.duration_s), spaced(call.outcome),
    [call.kind ? h("b", null, spaced(call.kind)) : null, call.sentence ? [" ", h(Plain, { text: call.sentence })] : null], call.in_row ? count(call.in_row) : "–"] })));
}

/** @param {Incident} one */
function did(one) {
  const fallback = Object.entries(one.fallback).map(([name, times]) => `${name} ${count(times)}`).join(" · ");
  return h("dl", { class: "facts" },
    h("dt", null, one.shadow ? "Would have refused" : "Refused"), h("dd", null, one.shadow ? counted(one.passed, "call") : `${counted(one.refused, "call")} in all processes`),
    h("dt", null, "For"), h("dd", null, span(one.refused_for_s * 1000)),
    h("dt", null, "Answered instead by"), h("dd", null, fallback || "none"),
    h("dt", null, "Open in"), h("dd", null, counted(one.processes, "process", "processes")));
}
