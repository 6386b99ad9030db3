import { routeOf, to, toComponent } from "../dashboard/views/route.js";
import { equal, test } from "./tiny.js";

const place = (fragment) => {
  const { view, name } = routeOf(fragment);
  return `${view} ${name}`.trim();
};

test("a URL names a view", () => {
  equal(["", "/", "/fleet", "/service/claude", "/spend?by=tag", "/nonsense"].map(place), ["now", "now", "fleet", "service claude", "spend", "now"]);
  equal(routeOf("/spend?by=tag").asked.get("by"), "tag");
});

test("a URL from a message names a component", () => {
  equal(["database", "ai:claude", "ai:claude/another-model", "budget:team%2Fa%20b", "disk:data"].map(place),
    ["database", "service claude", "service claude", "spend", "now disk:data"]);
});

test("an invalid URL leads to the first screen", () => equal(place("%E0%A4%A"), "now %E0%A4%A"));

test("a name may contain anything", () => {
  const name = "a/b?c=1&d#e f";
  equal(routeOf(to("service", name).slice(1)).name, name);
  equal(routeOf((toComponent("ai:x y") ?? "").slice(1)).name, "x y");
  equal(toComponent("disk:data"), null);
});
