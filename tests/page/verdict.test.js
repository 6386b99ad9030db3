import { isForced, isIll, isOf, leadOf, nextAttemptAt, stateSentence, verdictOf, worstAlerts, worstFirst } from "../dashboard/data/verdict.js";
import { Failure } from "../dashboard/data/api.js";
import { opening, withoutName } from "../dashboard/words/text.js";
import { equal, test } from "./tiny.js";

const LIVE = { state: "live", failure: null };
const service = (name, state = "healthy", more = {}) => ({ service_name: name, state, reason: "", health: { next_attempt: null }, last_error: null, ...more });
const database = (state = "healthy", more = {}) => ({ state, healthy: state === "healthy", error: null, last_error: null, conditions: [], ...more });
const alert = (type, component, more = {}) => ({ type, component, kind: "k", message: "it fails", phase: "firing", data: {}, ...more });

test("the colour is that of the worst alert, the word shows what works", () => {
  const { tone, shape, word } = verdictOf(LIVE, "degraded", "critical");
  equal([tone, shape, word], ["critical", "square", "degraded"]);
  equal(verdictOf(LIVE, "healthy", null).tone, "ok");
});

test("a page without a connection shows no state", () => {
  const word = (link) => verdictOf({ ...LIVE, ...link }, "healthy", null).word;
  equal(word({ state: "lost", failure: new Failure("gone") }), "disconnected");
  equal(word({ state: "lost", failure: new Failure("not koo", 200) }), "unknown");
  equal(word({ state: "locked" }), "locked");
  equal(word({ state: "stale" }), "healthy (stale)");
  equal(verdictOf(LIVE, null, null).word, "connecting");
});

test("one sentence names what works and what does not", () => {
  equal(stateSentence(database(), []), "The database works. No AI service has a key yet.");
  equal(stateSentence(database(), [service("a"), service("b")]), "The database and both AI services work.");
  equal(stateSentence(database(), [service("a", "circuit_open"), service("b")]), "a: circuit open. The database and 1 other AI service work.");
  equal(stateSentence(database("circuit_open"), [service("a")]), "Calls to the database are refused: its circuit is open. The AI service works.");
  equal(stateSentence(database("healthy", { conditions: ["slow", "paused"] }), [service("a")]), "The database is paused. The AI service works.");
  equal(stateSentence(database("unhealthy", { error: "x" }), [service("a", "circuit_open")]), "The database does not answer. a: circuit open.");
});

test("the sentence names the worst few of many services", () => {
  const many = ["a", "b", "c", "d", "e"].map((name) => service(name, "unhealthy"));
  equal(stateSentence(database(), many), "a: unhealthy, b: unhealthy, c: unhealthy, d: unhealthy, e: unhealthy. The database works.");
  equal(stateSentence(database(), [...many, service("f", "circuit_open"), service("g")]),
    "f: circuit open, a: unhealthy, b: unhealthy, c: unhealthy and 2 more. The database and 1 other AI service work.");
});

test("the most severe states come first, and equal ones keep their order", () => {
  const names = worstFirst([service("a"), service("b", "degraded"), service("c", "circuit_open"), service("d")]).map((one) => one.service_name);
  equal(names, ["c", "b", "a", "d"]);
});

test("alerts that refuse calls come before those that only last", () => {
  const list = [alert("warning", "a"), alert("critical", "b", { phase: "pending" }), alert("critical", "c"), alert("critical", "d", { data: { refuses: "all" } })];
  equal(worstAlerts(list).map((one) => one.component), ["d", "c", "b", "a"]);
});

test("a card is open while its component is not healthy or has a firing alert", () => {
  const alerts = [alert("warning", "ai:a/model"), alert("warning", "ai:b", { phase: "pending" }), alert("info", "ai:c")];
  equal(["ai:a", "ai:b", "ai:c"].map((one) => isIll(one, true, alerts)), [true, false, false]);
  equal(isIll("ai:c", false, alerts), true);
  equal([isOf("ai:a/model", "ai:a"), isOf("ai:ab", "ai:a")], [true, false]);
});

test("the lead shows the cause, what koo does and what to do", () => {
  const book = { k: { title: "", refuses: "every call.", begins: "", ends: "", advice: "Look at the other side. Then wait.\n\nMore." } };
  const error = { kind: "timeout", sentence: "no answer in time", at: "2026-11-29T12:00:00Z", status: null };
  const lead = leadOf([alert("info", "koo"), alert("critical", "ai:a", { data: { next_attempt: "2026-11-29T12:00:30Z", last_error: error } })],
    [service("a", "circuit_open")], database(), book);
  equal([lead?.cause, lead?.does, lead?.advice, lead?.canCheck],
    ["it fails. The last error: no answer in time", "Refuses every call", "Look at the other side. Then wait.", true]);
  equal([lead?.at, lead?.atWords], [Date.parse("2026-11-29T12:00:30Z"), "tests recovery"]);
  equal(leadOf([alert("info", "koo")], [], database(), book), null);
});

test("the lead of an alert about a limit says when it ends, and nothing of an error that was over before", () => {
  const error = { kind: "auth", sentence: "it rejects the key", at: "2026-11-29T11:00:00Z", status: 401 };
  const lead = leadOf([alert("critical", "ai:a", { data: { refuses: "calls", resets_at: "2026-11-30T00:00:00Z" } })],
    [service("a", "rate_limited", { last_error: error })], database(), {});
  equal([lead?.cause, lead?.at, lead?.atWords], ["it fails", Date.parse("2026-11-30T00:00:00Z"), "that ends"]);
});

test("for a service that is down, the lead has the advice for its cause", () => {
  const book = { service_down: { title: "", refuses: "", begins: "", ends: "", advice: "Was the key revoked? Then koo reset SERVICE.\n\nWait." } };
  const down = (also) => leadOf([alert("critical", "ai:a", { kind: "service_down", data: { also, next_attempt: "2026-11-29T12:00:30Z" } })], [], database(), book);
  equal([down(["circuit_open"])?.advice, down(["circuit_open"])?.atWords], ["Wait.", "tests recovery"]);
  equal([down(["key_refused"])?.advice, down(["key_refused"])?.atWords], ["Was the key revoked? Then koo reset a.", "checks the key"]);
});

test("a message does not repeat the name that stands next to it", () => {
  equal(withoutName("claude cannot be called", "claude"), "cannot be called");
  equal(withoutName("ended: claude cannot be called", "claude"), "ended: cannot be called");
  equal(withoutName("claude's model opus cannot be called", "claude"), "claude's model opus cannot be called");
});

test("for a breaker forced open by an operator, the lead shows when that ends and offers no check", () => {
  const models = { m: { state: "forced_open", key_refused: "" }, n: { state: "closed", key_refused: "" } };
  const forced = service("a", "circuit_open", { models });
  const lead = leadOf([alert("critical", "ai:a", { data: { next_attempt: "2026-11-29T12:00:30Z" } })], [forced], database(), {});
  equal([lead?.atWords, lead?.advice, lead?.canCheck], ["that ends", "Reset the breaker when calls may pass again.", false]);
  const idle = database("healthy", { circuit_breaker: { state: "closed" } });
  const stopped = database("circuit_open", { circuit_breaker: { state: "forced_open" } });
  equal([isForced("ai:a/m", forced, idle), isForced("ai:a/n", forced, idle), isForced("ai:a", null, idle)], [true, false, false]);
  equal([isForced("database", null, idle), isForced("database", null, stopped)], [false, true]);
});

test("the next attempt follows from the breaker or the used-up limit", () => {
  const limits = (more) => ({ requests_per_minute: { remaining: 1 }, requests_per_hour: { remaining: 1 }, requests_per_day: { remaining: 1 }, daily_budget: { limit: null }, ...more });
  const at = Date.parse("2026-11-29T12:00:30Z"), iso = "2026-11-29T12:00:30Z";
  equal(nextAttemptAt(service("a", "circuit_open", { health: { next_attempt: iso } })), at);
  equal(nextAttemptAt(service("a", "rate_limited", { reason: `until ${iso}` })), at);
  equal(nextAttemptAt(service("a", "rate_limited", { rate_limits: limits({ requests_per_minute: { remaining: 0, resets_at: iso } }) })), at);
  equal(nextAttemptAt(service("a")), null);
});

test("advice is cut between two sentences", () => {
  equal(opening("One. Two is longer. Three.", 18), "One.");
  equal(opening("One. Two is longer. Three.", 20), "One. Two is longer.");
  equal(opening("Only one without an end", 3), "Only one without an end");
});
