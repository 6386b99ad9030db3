import { inStretches, most, stride, sum, withPoints } from "../dashboard/data/past.js";
import { alone } from "../dashboard/parts/chart.js";
import { pathOf } from "../dashboard/parts/sparkline.js";
import { equal, test } from "./tiny.js";

const HISTORY = {
  since: "2026-11-29T12:00:00.000Z", until: "2026-11-29T12:00:15.000Z", step_s: 5, scope: "this process",
  series: { "ai:claude": { calls: [1, null, 3], p95: [0.1, null, 0.3] } },
};
const point = (at, calls) => ({ at, step_s: 5, series: { "ai:claude": { calls, p95: null } } });

test("a newer sample replaces the oldest", () => {
  const longer = withPoints(HISTORY, [point("2026-11-29T12:00:15Z", 4), point("2026-11-29T12:00:20Z", 5)]);
  equal(longer.series["ai:claude"], { calls: [3, 4, 5], p95: [0.3, null, null] });
  equal([longer.since, longer.until], ["2026-11-29T12:00:10.000Z", "2026-11-29T12:00:25.000Z"]);
});

test("a component that the history does not have starts with its first sample", () => {
  const longer = withPoints({ ...HISTORY, series: {} }, [point("2026-11-29T12:00:15Z", 4), point("2026-11-29T12:00:20Z", 5)]);
  equal(longer.series, { "ai:claude": { calls: [null, 4, 5], p95: [null, null, null] } });
});

test("a sample of a span that was not sampled when the history was requested goes there", () => {
  const begun = { ...HISTORY, series: { "ai:claude": { calls: [1, null, null], p95: [0.1, null, null] } } };
  equal(withPoints(begun, [point("2026-11-29T12:00:05Z", 2)]).series["ai:claude"].calls, [1, 2, null]);
  const both = withPoints(begun, [point("2026-11-29T12:00:10Z", 3), point("2026-11-29T12:00:15Z", 4)]);
  equal(both.series["ai:claude"].calls, [null, 3, 4]);
});

test("after a clock that was set forward, the history starts again", () => {
  const later = withPoints(HISTORY, [point("2036-11-29T12:00:15Z", 4)]);
  equal(later.series["ai:claude"].calls, [null, null, 4]);
});

test("a sample that the history already contains is not added twice", () => {
  equal(withPoints(HISTORY, [point("2026-11-29T12:00:10Z", 4)]), HISTORY);
});

test("a history of all processes is not extended with samples of this one", () => {
  const all = { ...HISTORY, scope: "all processes" };
  equal(withPoints(all, [point("2026-11-29T12:00:15Z", 4)]), all);
});

test("the newest group is complete, and an unknown one stays unknown", () => {
  equal(inStretches([1, 2, 3, null, 4], 2, sum), [1, 5, 4]);
  equal(inStretches([null, null, 3, 9], 2, most), [null, 9]);
});

test("a value is drawn as a point if no line leads to it", () => {
  equal(alone([undefined, 3, undefined, undefined]), [1]);
  equal(alone([null, 3, null, 4, undefined, 5]), [1]);
  equal(alone([1, undefined, 2, null]), []);
  equal(alone([null, undefined]), []);
});

test("a chart has a limited number of points", () => equal([stride(720, 180), stride(10, 180), stride(181, 180)], [4, 1, 2]));

test("a sparkline has gaps for unknown values", () => {
  equal(pathOf([0, 2, null, 1], 2).replace(/[^ML]/g, ""), "MLM");
  equal(pathOf([0, 0], 0), "M0.0 23.0L120.0 23.0");
});
