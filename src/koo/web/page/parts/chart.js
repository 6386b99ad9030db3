// @ts-check
// A chart over time: the only file that uses uPlot. All charts on the page share one cursor and show the same marks, and
// each has its numbers in a table for people who cannot see it or have no pointer.

import { useEffect, useRef, useState } from "../vendor/hooks.js";
import { h } from "../vendor/preact.js";
import uPlot from "../vendor/uplot.js";
import { clock } from "../words/times.js";
import { number, table } from "./table.js";

/**
 * `tone`: the name of a colour in the style sheet. `fill`: the area below the line is tinted.
 * @typedef {{name: string, values: (number | null | undefined)[], tone: string, fill?: boolean, dash?: boolean}} Line
 * @typedef {{at: number, words: string, tone: string}} Mark
 * @typedef {{
 *   title: string, times: number[], lines: Line[], marks: Mark[], write: (value: number) => string, most?: number,
 *   span: [number, number],
 * }} Plot
 */

const HEIGHT = 168;
const ROWS = 30;

/** @param {Plot} props `times`: the start of each span, in seconds since 1970 */
export function Chart(props) {
  const place = useRef(/** @type {HTMLDivElement | null} */ (null));
  const plot = useRef(/** @type {any} */ (null));
  const [at, setAt] = useState(/** @type {number | null} */ (null));
  const [open, setOpen] = useState(false);
  const latest = useRef({ ...props, setAt });
  latest.current = { ...props, setAt };
  const shape = props.lines.map((line) => `${line.name} ${line.tone}`).join();
  useEffect(() => {
    const box = /** @type {HTMLDivElement} */ (place.current);
    const dark = window.matchMedia("(prefers-color-scheme: dark)");
    const draw = () => {
      plot.current?.destroy();
      plot.current = new uPlot(optionsOf(latest, box), dataOf(latest.current), box);
    };
    draw();
    const sizes = new ResizeObserver(() => {
      if (box.clientWidth > 0) plot.current.setSize({ width: box.clientWidth, height: HEIGHT });
    });
    sizes.observe(box);
    dark.addEventListener("change", draw); // a canvas does not follow the style sheet
    return () => {
      sizes.disconnect();
      dark.removeEventListener("change", draw);
      plot.current.destroy();
      plot.current = null;
    };
  }, [shape]);
  useEffect(() => plot.current?.setData(dataOf(props)), [props.times, props.lines]);
  return h("figure", { class: "chart" },
    h("figcaption", null, h("span", { class: "name" }, props.title), moment(props, at), legend(props, at)),
    h("div", { class: "canvas", ref: place, role: "img", "aria-label": `${props.title}: ${summary(props)}` }),
    h("details", { class: "as-table", onToggle: (/** @type {any} */ event) => setOpen(event.currentTarget.open) },
      h("summary", null, "As a table"), open ? h(Numbers, props) : null));
}

/**
 * The time at the cursor; nothing if it is elsewhere and the legend shows the newest values.
 * @param {Plot} props
 * @param {number | null} at
 */
function moment({ times }, at) {
  return at === null ? null : h("span", { class: "soft" }, clock(times[at] * 1000, Date.now()));
}

/**
 * @param {Plot} props
 * @param {number | null} at where the cursor is
 */
function legend({ lines, write }, at) {
  /** @param {Line} line */
  const value = (line) => (at === null ? lastOf(line, write) : line.values[at] == null ? "–" : write(Number(line.values[at])));
  return h("span", { class: "legend" }, lines.map((line) => h("span", { key: line.name },
    h("i", { class: `swatch ${line.tone}${line.dash ? " dash" : ""}` }), line.name, " ", h("b", null, value(line)))));
}

/**
 * @param {Line} line
 * @param {(value: number) => string} write
 */
function lastOf(line, write) {
  const last = line.values.findLast((one) => one != null);
  return last == null ? "–" : write(last);
}

/** @param {Plot} props */
function summary({ lines, write }) {
  return lines.map((line) => `${line.name} ${lastOf(line, write)} now, at most ${peak(line, write)}`).join("; ");
}

/**
 * @param {Line} line
 * @param {(value: number) => string} write
 */
function peak(line, write) {
  const known = line.values.filter((one) => one != null);
  return known.length ? write(Math.max(...known)) : "–";
}

/** @param {Plot} props the same numbers in at most thirty rows: the last value of each group */
function Numbers({ title, times, lines, write }) {
  const step = Math.max(1, Math.ceil(times.length / ROWS));
  const nowMs = (times.at(-1) ?? 0) * 1000;
  const rows = [];
  for (let at = times.length - 1; at >= 0; at -= step) {
    const cells = lines.map((line) => (line.values[at] == null ? "–" : write(Number(line.values[at]))));
    rows.push({ key: String(times[at]), cells: [clock(times[at] * 1000, nowMs), ...cells] });
  }
  return table(title, ["Time", ...lines.map((line) => number(line.name))], rows);
}

/** @param {Plot} props */
const dataOf = ({ times, lines }) => /** @type {import("../vendor/uplot.js").default.AlignedData} */ ([times, ...lines.map((line) => line.values)]);

/**
 * @param {{current: Plot & {setAt: (at: number | null) => void}}} latest
 * @param {HTMLElement} box
 * @returns {import("../vendor/uplot.js").default.Options}
 */
function optionsOf(latest, box) {
  const style = getComputedStyle(box);
  /** @param {string} name */
  const colour = (name) => style.getPropertyValue(`--${name}`).trim();
  const font = "11px system-ui, sans-serif";
  const axis = { stroke: colour("muted"), font, grid: { stroke: colour("line"), width: 1 }, ticks: { show: false } };
  return {
    width: Math.max(box.clientWidth, 100), height: HEIGHT, padding: [10, 18, 0, 0], legend: { show: false },
    cursor: { sync: { key: "koo" }, drag: { x: false, y: false }, points: { size: 6 } },
    scales: { x: { time: true, range: () => latest.current.span }, y: { range: (/** @type {any} */ _, /** @type {number} */ __, /** @type {number} */ most) => /** @type {[number, number]} */ ([0, topOf(latest.current, most)]) } },
    axes: [{ ...axis, values: timesOf, size: 26, gap: 4 },
      { ...axis, size: 58, gap: 4, space: 34, values: (/** @type {any} */ _, /** @type {number[]} */ ticks) => ticks.map((one) => latest.current.write(one)) }],
    series: [{}, ...latest.current.lines.map((line) => ({
      label: line.name, stroke: colour(line.tone), width: 1.5, points: { show: false, size: 5, fill: colour(line.tone), filter: lonely }, dash: line.dash ? [4, 3] : undefined,
      fill: line.fill ? `${colour(line.tone)}22` : undefined,
    }))],
    hooks: { draw: [(/** @type {any} */ plot) => drawMarks(plot, latest.current.marks, colour)], setCursor: [(/** @type {any} */ plot) => latest.current.setAt(plot.cursor.idx ?? null)] },
  };
}

/**
 * The places of values to which no line leads, because nothing is known or measured before and after them: a line of one
 * point is invisible.
 * @param {(number | null | undefined)[]} values
 * @returns {number[]}
 */
export function alone(values) {
  const measured = values.map((_, place) => place).filter((place) => values[place] !== undefined);
  return measured.filter((place, at) => values[place] !== null
    && values[measured[at - 1] ?? -1] == null && values[measured[at + 1] ?? -1] == null);
}

/**
 * The points that are drawn; null for none.
 * @param {any} plot
 * @param {number} series
 */
function lonely(plot, series) {
  const found = alone(plot.data[series]);
  return found.length ? found : null;
}

/**
 * @param {Plot} plot
 * @param {number | null} most
 */
function topOf(plot, most) {
  return Math.max((most ?? 0) * 1.1, plot.most ?? 0) || 1;
}

/**
 * @param {any} _
 * @param {number[]} ticks
 * @param {number} __
 * @param {number} ___
 * @param {number} step seconds
 */
function timesOf(_, ticks, __, ___, step) {
  return ticks.map((tick) => {
    const then = new Date(tick * 1000);
    const time = `${String(then.getHours()).padStart(2, "0")}:${String(then.getMinutes()).padStart(2, "0")}`;
    return step >= 43_200 ? `${then.getDate()} ${then.toLocaleString("en", { month: "short" })}` : time;
  });
}

/**
 * Events in the chart's period, as lines through the chart.
 * @param {any} plot
 * @param {Mark[]} marks
 * @param {(name: string) => string} colour
 */
function drawMarks(plot, marks, colour) {
  const { ctx, bbox } = plot;
  ctx.save();
  for (const mark of marks) {
    const x = plot.valToPos(mark.at, "x", true);
    if (x < bbox.left || x > bbox.left + bbox.width) continue;
    ctx.strokeStyle = ctx.fillStyle = colour(mark.tone);
    ctx.setLineDash([3, 3]);
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
    ctx.fillRect(x - 3, bbox.top - 3, 6, 6);
  }
  ctx.restore();
}
