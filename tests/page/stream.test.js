import { Failure } from "../dashboard/data/api.js";
import { pauseMs, stateOf } from "../dashboard/data/stream.js";
import { equal, test } from "./tiny.js";

const link = (more) => ({ state: "live", failure: null, cameAt: 1_000_000, dueAt: 0, asking: false, way: "polling", ...more });

test("pauses grow with failures and in hidden tabs", () => {
  equal([0, 1, 2, 3, 4, 500].map((failures) => pauseMs(failures, false)), [2000, 2000, 4000, 8000, 10_000, 10_000]);
  equal([0, 9].map((failures) => pauseMs(failures, true)), [15_000, 15_000]);
});

test("numbers are stale if the next ones are late", () => {
  equal([8_000, 8_001].map((age) => stateOf(link(), true, 1_000_000 + age, false)), ["live", "stale"]);
  equal([21_000, 21_001].map((age) => stateOf(link(), true, 1_000_000 + age, true)), ["live", "stale"]);
});

test("over a stream events may take longer, because only changes are sent", () => {
  equal([16_000, 16_001].map((age) => stateOf(link({ way: "stream" }), true, 1_000_000 + age, false)), ["live", "stale"]);
});

test("a server that requires a token is not lost", () => {
  equal([401, 0, 500].map((status) => stateOf(link({ failure: new Failure("no", status) }), true, 0, false)), ["locked", "lost", "lost"]);
  equal(stateOf(link(), false, 0, false), "connecting");
});
