// @ts-check
// The first screen: the state, the cause, what koo does about it and what to do; then failing components, most severe
// first; then the healthy ones, one line each.

import { all, budgets, configured, database, health, lasting, link, saved, severity } from "../data/store.js";
import { isIll, leadOf, stateSentence, verdictOf, worstFirst } from "../data/verdict.js";
import { shape } from "../parts/badge.js";
import { h } from "../vendor/preact.js";
import { computed } from "../vendor/signals.js";
import { verdictLook } from "../words/looks.js";
import { count, counted, usd } from "../words/numbers.js";
import { capital } from "../words/text.js";
import { CheckNow } from "./acts.js";
import { Alerts, News, runbook } from "./alerts.js";
import { DatabaseCard, ServiceCard } from "./cards.js";
import { FleetStrip } from "./fleet.js";
import { DatabaseLine, LineHeads, ServiceLine } from "./lines.js";
import { Clock, Said, Until } from "./moments.js";
import { Budgets } from "./money.js";
import { useHistory } from "./past.js";
import { toComponent } from "./route.js";
import { Timeline } from "./timeline.js";

/** The look of the icon, the title and the banner. */
export const verdict = computed(() => verdictOf(link.value, health.value, severity.value));
const linkState = computed(() => link.value.state);

export function Now() {
  const history = useHistory("", "15m").content;
  return [
    h(Verdict, { key: "verdict" }),
    h(Alerts, { key: "alerts" }),
    h(Parts, { key: "parts", history }),
    h("div", { class: "pair", key: "pair" }, budgets.value.length ? h(Budgets, null) : null, h(FleetStrip, null)),
    h(News, { key: "news" }),
    h(Timeline, { key: "timeline", history, most: 8 }),
    h(Unconfigured, { key: "unconfigured" }),
  ];
}

// ── the verdict ──────────────────────────────────────────────────────────────────────────────────────────────────

function Verdict() {
  const look = verdict.value;
  return h("section", { class: `verdict ${look.tone}`, id: "verdict", "aria-labelledby": "how-it-is" },
    h("div", { class: "how", role: "status", "aria-live": "polite", "aria-atomic": "true" },
      shape(look, "large"),
      h("div", null, h("h1", { id: "how-it-is" }, capital(look.word)), h("p", null, h(Sentence, null)))),
    h(Saved, null),
    h(Lead, null));
}

/** One sentence without numbers that change each second: screen readers read it aloud on each change. */
function Sentence() {
  const state = linkState.value;
  if (state === "locked") return "The server shows its state only with a token.";
  if (health.value === null) return state === "lost" ? `${failure()}.` : "Waiting for the first response.";
  if (state === "lost") {
    return [`${failure()}. The state below is from `, h(Clock, { at: link.value.cameAt }), `, when it was ${verdictLook(health.value).word}.`];
  }
  if (state === "stale") return ["The state below is from ", h(Clock, { at: link.value.cameAt }), ". The next response is late."];
  return database.value && stateSentence(database.value, configured.value);
}

const failure = () => capital(link.value.failure?.message ?? "no response").replace(/\.$/, "");

/** What koo has spared callers, services and the database today. */
function Saved() {
  const one = saved.value;
  if (one === null) return null;
  const { refused, repeated, fallen_back: back, not_spent: kept } = one;
  return h("div", { class: "saved" }, h("h2", null, "Saved today"),
    h("dl", null,
      figureOf("refused", count(refused), "calls that an open breaker refused immediately: they would probably have failed"),
      figureOf("repeated", count(repeated), "calls that succeeded, but not on the first attempt"),
      figureOf("fell back", count(back), "responses from a service other than the one called first"),
      figureOf("not spent", usd(kept), "the most that calls refused by a budget would have cost")));
}

/**
 * @param {string} name
 * @param {string} value
 * @param {string} title
 */
const figureOf = (name, value, title) => h("div", { title }, h("dt", null, name), h("dd", null, value));

/** The cause, what koo does and what to do, for the worst alert. */
function Lead() {
  if (linkState.value !== "live") return null;
  const lead = leadOf(lasting.value, configured.value, database.value, runbook.value);
  if (lead === null) return null;
  const { alert, at } = lead;
  const href = toComponent(alert.component), whose = alert.component.replace(/^ai:/, "");
  const others = lasting.value.filter((one) => one.type !== "info").length - 1;
  return h("ol", { class: "lead" },
    h("li", null, h("h2", null, "Cause"), h("p", null, href === null ? h("b", null, whose) : h("a", { href }, whose), ": ",
      h(Said, { alert: { ...alert, message: lead.cause } }), others > 0 ? h("span", { class: "soft" }, ` And ${counted(others, "other alert")}.`) : null)),
    h("li", null, h("h2", null, "What koo does"), h("p", null, lead.does, at === null ? "." : ["; ", lead.atWords, " ", h("strong", null, h(Until, { at })), "."])),
    h("li", null, h("h2", null, "What to do"), h("p", null, lead.advice || "There is no advice for this kind of alert."),
      lead.canCheck ? h(CheckNow, { component: alert.component.split("/")[0], ill: true }) : null));
}

// ── components ───────────────────────────────────────────────────────────────────────────────────────────────────

/** Which cards are open, as one string, so that this list is redrawn only when a card opens or closes. */
const standing = computed(() => {
  const alerts = lasting.value, one = database.value;
  const services = worstFirst(configured.value).map(({ service_name: name, state }) => ({ name, ill: isIll(`ai:${name}`, state === "healthy", alerts) }));
  const ill = one !== null && isIll("database", one.state === "healthy" && one.healthy, alerts);
  return JSON.stringify({ known: one !== null, database: ill, services });
});

/** @param {{history: import("../data/shapes.js").History | null}} props */
function Parts({ history }) {
  /** @type {{known: boolean, database: boolean, services: {name: string, ill: boolean}[]}} */
  const { known, database: ill, services } = JSON.parse(standing.value);
  if (!known) return null;
  const sick = services.filter((one) => one.ill), well = services.filter((one) => !one.ill);
  const open = (ill ? 1 : 0) + sick.length;
  return [
    open ? h("section", { "aria-labelledby": "ill", key: "ill", class: "ill" }, h("h2", { id: "ill" }, "Not healthy", h("span", { class: "count" }, String(open))),
      h("div", { class: "cards" }, ill ? h(DatabaseCard, { key: "database", history }) : null,
        sick.map(({ name }) => h(ServiceCard, { name, key: name, history })))) : null,
    ill && sick.length && well.length === 0 ? null : h("section", { "aria-labelledby": "well", key: "well", class: "panel well" },
      h("h2", { id: "well" }, open ? "Healthy" : "All components"),
      services.length === 0 ? h("p", { class: "hint" }, "No AI service has a key yet. Add one to the file .env, for example ",
        h("code", null, "ANTHROPIC_API_KEY=…"), ", and restart koo.") : null,
      h("ul", { class: "lines" }, well.length || !ill ? h(LineHeads, { key: "heads" }) : null,
        ill ? null : h(DatabaseLine, { key: "database", history }),
        well.map(({ name }) => h(ServiceLine, { name, key: name, history })))),
  ];
}

/** Services that are not in use. */
function Unconfigured() {
  const off = all.value.filter((one) => !one.configured);
  // The local model needs no key. Its reason names what is missing, and the command that fixes it.
  const keyless = off.filter((one) => one.configuration.kind !== "local").map((one) => one.service_name);
  const local = off.filter((one) => one.configuration.kind === "local");
  if (off.length === 0) return null;
  return h("section", { class: "soft unconfigured small", "aria-label": "Services that are not configured" },
    keyless.length ? h("p", null, `${counted(keyless.length, "service has", "services have")} no key and `,
      `${keyless.length === 1 ? "is" : "are"} not included above: ${keyless.join(", ")}.`) : null,
    local.map((one) => h("p", { key: one.service_name }, `${one.service_name} is not included above: ${one.reason}.`)));
}

