// @ts-check
// The current view. URLs are fragments, so they work below any path and need no routes on the server: `#/service/claude`,
// `#/spend?by=tag`. Messages about alerts contain a component instead: `#ai:claude`.

import { signal } from "../vendor/signals.js";

/** @typedef {{view: string, name: string, asked: URLSearchParams}} Route */

export const RANGES = [["15m", "15 min"], ["1h", "1 h"], ["24h", "24 h"], ["30d", "30 d"]];
const VIEWS = ["service", "database", "incidents", "incident", "spend", "requests", "fleet", "timeline"];

/**
 * @param {string} fragment what follows the #; a link from elsewhere may contain anything
 * @returns {Route}
 */
export function routeOf(fragment) {
  const asked = new URLSearchParams(fragment.startsWith("/") ? fragment.split("?")[1] ?? "" : "");
  const [view = "", ...name] = fragment.startsWith("/") ? fragment.split("?")[0].slice(1).split("/") : placeOf(decoded(fragment));
  return { view: VIEWS.includes(view) ? view : "now", name: decoded(name.join("/")), asked };
}

/**
 * The view of a component.
 * @param {string} component as named in alerts: "database", "ai:claude/claude-opus-5", "budget:team/night"
 */
function placeOf(component) {
  if (component === "database") return ["database"];
  if (component.startsWith("ai:")) return ["service", encodeURIComponent(component.slice(3).split("/")[0])];
  return component.startsWith("budget:") ? ["spend"] : ["now", encodeURIComponent(component)];
}

/** @param {string} text */
function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

export const route = signal(routeOf(location.hash.slice(1)));
/** The range of all charts. */
export const range = signal(route.value.asked.get("range") ?? "1h");

/** Follow changes of the URL. */
export function follow() {
  window.addEventListener("hashchange", () => {
    const before = route.value;
    route.value = routeOf(location.hash.slice(1));
    range.value = route.value.asked.get("range") ?? range.value;
    if (before.view === route.value.view && before.name === route.value.name) return;
    window.scrollTo(0, 0);
    document.getElementById("content")?.focus({ preventScroll: true });
  });
}

/**
 * The URL of a view.
 * @param {string} view
 * @param {string} [name]
 * @param {Record<string, string>} [asked]
 */
export function to(view, name = "", asked = {}) {
  const query = new URLSearchParams(Object.entries(asked).filter(([, value]) => value)).toString();
  return `#/${view}${name ? `/${encodeURIComponent(name)}` : ""}${query ? `?${query}` : ""}`;
}

/**
 * The URL of a component's view; null if it has none.
 * @param {string} component
 */
export function toComponent(component) {
  const [view, name = ""] = placeOf(component);
  return view === "now" ? null : `#/${view}${name ? `/${name}` : ""}`;
}

/**
 * Change parameters of the current view, without a new entry in the browser's history.
 * @param {Record<string, string>} more
 */
export function ask(more) {
  const { view, name, asked } = route.value;
  location.replace(to(view === "now" ? "" : view, name, { ...Object.fromEntries(asked), ...more }));
}
