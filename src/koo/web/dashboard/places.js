// @ts-check
// Where on the page something is: the id of each card is the component that alerts and links name, so that
// `…/dashboard/#ai:claude` leads to it from a message, a bookmark or an alert.

import { h } from "./dom.js";

/**
 * The id of a component's card. A name may hold anything but stays one word; the colon of `ai:` is left for people's eyes.
 * @param {string} component as alerts name it: "database", "ai:claude", "budget:team/night"
 */
export function placeOf(component) {
  return encodeURIComponent(component).replace(/%3A/g, ":");
}

/**
 * The components that have a card, of which some are within another's: the models of a service.
 * @param {import("./data.js").Dashboard} dashboard
 * @param {string} component
 * @returns {string | null} that of the card; null: it has none
 */
export function cardOf(dashboard, component) {
  if (component === "database") return component;
  const { services, budgets } = dashboard.ai_services;
  if (budgets.some((one) => component === `budget:${one.title}`)) return component;
  const name = Object.keys(services).find((one) => component === `ai:${one}` || component.startsWith(`ai:${one}/`));
  return name !== undefined && services[name].configured ? `ai:${name}` : null;
}

/**
 * A component's name, which leads to its card if it has one.
 * @param {import("./data.js").Dashboard} dashboard
 * @param {string} component
 * @param {string} words
 */
export function leadTo(dashboard, component, words) {
  const card = cardOf(dashboard, component);
  const name = h("b", {}, words);
  return card === null ? name : h("a", { href: `#${placeOf(card)}` }, name);
}

/**
 * Show what the address names, once it is there: the browser looked for it before the first answer came. A model leads to
 * its service; what has no card, as a disk or a channel, to its alert. Going there anew also marks it as the target.
 * @param {import("./data.js").Dashboard} dashboard
 */
export function goToPlace(dashboard) {
  const component = decoded(location.hash.slice(1));
  const card = cardOf(dashboard, component);
  const rows = [...document.querySelectorAll("[data-component]")];
  const row = rows.find((one) => one instanceof HTMLElement && one.dataset.component === component);
  const id = card === null ? row?.id : placeOf(card);
  if (id && document.getElementById(id) !== null) location.replace(`#${id}`);
}

/** @param {string} fragment a stranger's link may hold anything */
function decoded(fragment) {
  try {
    return decodeURIComponent(fragment);
  } catch {
    return fragment;
  }
}
