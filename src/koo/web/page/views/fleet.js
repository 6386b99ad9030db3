// @ts-check
// The processes on one state store.

import { fleet } from "../data/store.js";
import { shape } from "../parts/badge.js";
import { number, table } from "../parts/table.js";
import { h } from "../vendor/preact.js";
import { count, counted, usd } from "../words/numbers.js";
import { capital } from "../words/text.js";
import { timeOf } from "../words/times.js";
import { Since, Until } from "./moments.js";
import { to } from "./route.js";

/** @type {import("../words/looks.js").Look} */
const LIVE = { shape: "circle", tone: "ok", word: "live" };
/** @type {import("../words/looks.js").Look} */
const SILENT = { shape: "triangle", tone: "warning", word: "silent" };

/** For the first screen: the number of processes, and whether the store is reachable. */
export function FleetStrip() {
  const one = fleet.value;
  if (one === null) return null;
  const silent = one.processes.filter((process) => process.state === "silent").length;
  const inFlight = one.processes.reduce((sum, process) => sum + process.in_flight, 0);
  return h("section", { class: "panel fleet-strip", "aria-labelledby": "fleet" },
    h("h2", { id: "fleet" }, h("a", { href: to("fleet") }, "Fleet")),
    h("ul", { class: "dots" }, one.processes.map((process) => h("li", { key: process.id, title: process.id },
      shape(process.state === "live" ? LIVE : SILENT, "tiny"), process.host, process.worker ? ` ${process.worker}` : "",
      process.leads ? h("span", { class: "soft" }, " leader") : null))),
    h("p", { class: "soft" }, `${counted(one.processes.length - silent, "live process", "live processes")}`, silent ? `, ${count(silent)} silent` : "",
      `, ${counted(inFlight, "call")} in flight`, one.differences.length ? `, ${counted(one.differences.length, "differing option")}` : "",
      one.state_store.reachable ? "" : `. ${capital(one.state_store.reason)}`));
}

export function FleetView() {
  const one = fleet.value;
  if (one === null) return h("p", { class: "soft" }, "The state of the fleet is unknown.");
  return [
    h("header", { class: "view-head", key: "head" }, h("h1", null, "Fleet"),
      h("p", { class: "soft" }, one.state_store.reachable ? "The state store is reachable." : `${capital(one.state_store.reason)}.`)),
    section("processes", "Processes", h(Processes, { one })),
    section("guards", "Guards across all processes", one.guards.length ? guards(one) : none()),
    section("purses", "Budgets: what processes hold", one.purses.length ? purses(one) : none()),
    section("leases", "Limits: units on lease", one.leases.some(isOut) ? table("Limits", ["Limit", number("Units"), number("On lease"), number("Processes")],
      one.leases.filter(isOut).map((lease) => ({ key: lease.limit, cells: [lease.limit, count(lease.units), count(lease.leased), count(lease.processes)] }))) : none()),
    section("differences", "Options that differ between processes", one.differences.length ? table("Differences", ["Section", "Option", "Groups"],
      one.differences.map((diff) => ({ key: `${diff.section} ${diff.option}`, cells: [diff.section, diff.option || "the whole section", diff.groups.map((group) => group.join(", ")).join(" | ")] }))) : none()),
  ];
}

/**
 * @param {string} id
 * @param {string} title
 * @param {import("../vendor/preact.js").ComponentChildren} content
 */
function section(id, title, content) {
  return h("section", { class: "panel", key: id, "aria-labelledby": id }, h("h2", { id }, title), content);
}

/** @param {import("../data/shapes.js").FleetUnits} lease */
const isOut = (lease) => lease.leased > 0 || lease.processes > 0;

const none = () => h("p", { class: "soft" }, "None.");

/** @param {{one: import("../data/shapes.js").FleetStatus}} props */
function Processes({ one }) {
  return table("Processes", ["Process", "State", "Version", number("In flight"), "Up for", "Last beat"], one.processes.map((process) => ({
    key: process.id, cells: [
      [process.id, process.answers ? h("span", { class: "soft" }, " serves this page") : null],
      [shape(process.state === "live" ? LIVE : SILENT, "tiny"), process.state, process.leads ? ", leader" : ""],
      [process.version, process.label].filter(Boolean).join(" · "), count(process.in_flight),
      h(Since, { at: timeOf(process.started_at) ?? 0 }), [h(Since, { at: timeOf(process.seen_at) ?? 0 }), " ago"]] })));
}

/** @param {import("../data/shapes.js").FleetStatus} one */
function guards(one) {
  return table("Guards", ["Guard", "Open in", "Half open in", "Of", number("Calls last minute"), "Open since"], one.guards.map((guard) => {
    const since = timeOf(guard.open_since);
    return { key: `${guard.name} ${guard.place}`, tone: guard.open ? "critical" : undefined, cells: [
      [guard.name, guard.primed ? h("span", { class: "soft" }, ` ${capital(guard.primed)}`) : null],
      count(guard.open), count(guard.half_open), counted(guard.processes, "process", "processes"), count(guard.calls), since === null ? "–" : h(Since, { at: since })] };
  }));
}

/** @param {import("../data/shapes.js").FleetStatus} one */
function purses(one) {
  return table("Budgets", ["Budget", number("Limit"), number("Spent"), number("Held"), number("Idle"), number("Unsettled"), "Resets"], one.purses.map((purse) => ({
    key: purse.budget, cells: [purse.budget, purse.limit === null ? "none" : usd(purse.limit), usd(purse.spent), usd(purse.held), usd(purse.idle), usd(purse.unsettled),
      h(Until, { at: timeOf(purse.resets_at) ?? 0 })] })));
}
