import { alerts, all, apply, configured, health, names, points, service, severity } from "../dashboard/data/store.js";
import { effect } from "../dashboard/vendor/signals-core.js";
import { equal, test } from "./tiny.js";

const one = (name, more) => ({ service_name: name, configured: true, state: "healthy", last_updated: "1", ...more });
const whole = (...services) => ({
  at: new Date().toISOString(),
  parts: { status: { overall_health: "healthy" }, alerts: [], ...Object.fromEntries(services.map((it) => [`service/${it.service_name}`, it])) },
});

test("a part replaces its predecessor and no other part", () => {
  apply("whole", whole(one("a"), one("b")));
  let drawnA = 0, drawnB = 0;
  const ends = [effect(() => void (service("a").value, drawnA++)), effect(() => void (service("b").value, drawnB++))];
  apply("part", { key: "service/b", value: one("b", { state: "degraded" }) });
  ends.forEach((end) => end());
  equal([drawnA, drawnB, service("b").value?.state], [1, 2, "degraded"]);
});

test("a new timestamp alone is not a change", () => {
  let drawn = 0;
  const end = effect(() => void (service("a").value, drawn++));
  apply("part", { key: "service/a", value: one("a", { last_updated: "2" }) });
  end();
  equal(drawn, 1);
});

test("a removed service leaves the list, a new one comes last", () => {
  apply("whole", whole(one("b"), one("c", { configured: false })));
  equal([names.value, configured.value.length], [["b", "c"], 1]);
  apply("part", { key: "service/b", value: null });
  equal(all.value.map((it) => it.service_name), ["c"]);
});

test("the most severe firing alert sets the colour, and a pending one does not", () => {
  const alert = (type, phase, ended_at = null) => ({ type, phase, ended_at });
  const said = (...list) => (apply("part", { key: "alerts", value: list }), severity.value);
  equal(said(), null);
  equal(said(alert("warning", "firing"), alert("critical", "pending"), alert("critical", "resolved", "x")), "warning");
  equal(said(alert("warning", "firing"), alert("critical", "firing")), "critical");
  equal(alerts.value.length, 2);
});

test("a point is kept once", () => {
  apply("point", { at: "1", step_s: 5, series: {} });
  apply("point", { at: "1", step_s: 5, series: {} });
  equal([points.value.length, health.value], [1, "healthy"]);
});
