// @ts-check
// The frame around every view: whose page it is, the navigation, and how old the numbers are.

import { logOut } from "../data/api.js";
import { fleet, known, lasting, link, mayOnlyLook, serverNow, session } from "../data/store.js";
import { useEffect, useState } from "../vendor/hooks.js";
import { Component, h } from "../vendor/preact.js";
import { computed } from "../vendor/signals.js";
import { OpenAct } from "./acts.js";
import { DatabaseView } from "./database.js";
import { FleetView } from "./fleet.js";
import { IncidentView } from "./incident.js";
import { IncidentsView } from "./incidents.js";
import { Clock, Since } from "./moments.js";
import { Now } from "./now.js";
import { RequestsView } from "./requests.js";
import { route, to } from "./route.js";
import { ServiceView } from "./service.js";
import { SpendView } from "./spend.js";
import { TimelineView } from "./timeline.js";

/** @type {[string, string][]} */
const PLACES = [["", "Now"], ["incidents", "Incidents"], ["timeline", "Timeline"], ["spend", "Spend"], ["requests", "Requests"], ["fleet", "Fleet"]];

/** @type {Record<string, (props: {name: string}) => import("../vendor/preact.js").ComponentChildren>} */
const VIEWS = { now: Now, service: ServiceView, database: DatabaseView, spend: SpendView, requests: RequestsView, fleet: FleetView, timeline: TimelineView,
  incidents: IncidentsView, incident: IncidentView };

const linkState = computed(() => link.value.state);

/**
 * `application`: the application in which koo is mounted; empty if there is none, or it has no name.
 * @param {{
 *   application: string, environment: string, docs: string, login: string, logout: string,
 *   stream: import("../data/stream.js").Stream,
 * }} props
 */
export function Shell({ application, environment, docs, login, logout, stream }) {
  const { view, name } = route.value, state = linkState.value;
  return [
    h("a", { class: "skip", href: "#content", onClick: skip }, "Skip to the details"),
    h("header", { class: "top" },
      h("p", { class: "brand" }, h("b", { id: "application" }, application || "koo"),
        environment ? h("span", { class: "environment" }, environment) : null, h(Label, null),
        h("span", { class: "soft" }, application ? `koo · ${location.host}` : location.host)),
      h(Places, { view }), h(Age, null),
      h(LogOut, { login, logout })),
    state === "lost" ? h(Lost, { stream }) : null,
    h("main", { id: "content", tabIndex: -1 },
      state === "locked" ? h(Locked, { login }) : h(Whole, { key: `${view} ${name}` }, known.value ? h(VIEWS[view], { name }) : h(Now, null))),
    h("footer", { class: "soft small" }, h("p", null, "Times are in your browser's time zone; days and budgets end at midnight UTC. ", h("a", { href: docs }, "The API"))),
    h(OpenAct, null),
  ];
}

/** Replaces a view that fails to render: numbers that are half new and half old would be believed. */
class Whole extends Component {
  /** @param {unknown} error */
  static getDerivedStateFromError(error) {
    return { error };
  }

  render() {
    const { error } = /** @type {{error?: unknown}} */ (this.state);
    if (error === undefined) return /** @type {any} */ (this.props.children);
    return h("section", { class: "panel", role: "alert" }, h("h1", null, "Unknown"),
      h("p", null, `This page cannot show the server's response (${error}). Reload the page, or use koo status.`));
  }
}

/** The fragment is used for the view, so an ordinary link to an element's id would leave the view. @param {Event} event */
function skip(event) {
  event.preventDefault();
  document.getElementById("content")?.focus();
}

/** @param {{view: string}} props */
function Places({ view }) {
  const alerts = lasting.value.filter((one) => one.type !== "info").length;
  return h("nav", { "aria-label": "Views" }, h("ul", null, PLACES.map(([place, words]) => h("li", { key: place },
    h("a", { href: to(place), "aria-current": (place || "now") === view ? "page" : undefined }, words,
      place === "" && view !== "now" && alerts ? h("span", { class: "count" }, String(alerts)) : null)))));
}

/** The deployment's label, from the process that responds. */
function Label() {
  const label = fleet.value?.processes.find((one) => one.answers)?.label;
  return label ? h("span", { class: "label" }, label) : null;
}

/** The age of what is shown. */
function Age() {
  const { state, cameAt, way } = link.value;
  const since = { at: cameAt };
  const words = state === "live" ? [h("span", { class: "pulse", key: "pulse" }), "live · ", h(Young, since), " ago"]
    : state === "stale" ? ["stale since ", h(Clock, since)]
      : state === "lost" ? (known.value ? ["disconnected · numbers from ", h(Clock, since)] : "disconnected") : state;
  return h("p", { id: "link", class: `link ${state}`, title: state === "live" ? `over ${way === "stream" ? "a stream" : way}` : undefined }, words);
}

/** The age is by this machine's clock, which was also used for the time of arrival. @param {{at: number}} props */
const Young = ({ at }) => h(Since, { at: at + serverNow() - Date.now() });

/** @param {{stream: import("../data/stream.js").Stream}} props */
function Lost({ stream }) {
  const { asking, dueAt } = link.value;
  return h("p", { class: "lost row" }, h("span", null, asking ? "Trying now." : ["Trying again ", h(Due, { at: dueAt }), "."]),
    h("button", { type: "button", "data-act": "again", onClick: () => stream.askNow() }, "Try now"));
}

/** While nothing arrives, the server's clock stands still, so this one uses this machine's. @param {{at: number}} props */
function Due({ at }) {
  const [, again] = useState(0);
  useEffect(() => {
    const timer = window.setInterval(() => again((times) => times + 1), 1000);
    return () => window.clearInterval(timer);
  }, []);
  const s = Math.ceil((at - Date.now()) / 1000);
  return s > 0 ? `in ${s} s` : "now";
}

/** There is no session, or it has ended. The login form is a separate page. @param {{login: string}} props */
function Locked({ login }) {
  return h("section", { id: "locked", class: "panel" }, h("h1", null, "Log in to see the state"),
    h("p", null, "The server shows its state only with a session. ", h("a", { class: "button", href: login }, "Log in")));
}

/** @param {{login: string, logout: string}} props */
function LogOut({ login, logout }) {
  if (!session.value?.expires_at) return null;
  const end = () => logOut(logout).finally(() => location.assign(login));
  return h("button", { type: "button", id: "log-out", class: "quiet", onClick: end,
    title: mayOnlyLook.value ? "This session is read-only" : undefined }, "Log out");
}
