// A panel of curves as SVG: mean and range of each bucket, and the values under the pointer.
import { h, svg } from "../dom.js";
import { short } from "./words.js";

const [HEIGHT, LEFT, BOTTOM, TOP, RIGHT] = [170, 46, 20, 6, 8];
const STEEP = 50; // times the median from which on a logarithmic axis shows more

export function chart(panel) {
  const legend = h("div", { class: "legend" });
  const at = h("span", { class: "quiet small" });
  const figure = h("figure", { class: "chart" }, h("header", {}, h("h3", {}, panel.title.replaceAll("_", " ")), at), legend);
  let drawn = null;
  new ResizeObserver(() => {
    const width = Math.round(figure.clientWidth - 24);
    if (width <= LEFT + RIGHT || drawn?.width === width) return;
    drawn?.element.remove();
    drawn = { width, element: curves(panel, width, tell) };
    legend.before(drawn.element);
  }).observe(figure);

  function tell(step) {
    legend.replaceChildren(...panel.series.map((series, number) => key(series, number, step)));
    at.textContent = step === null ? (isSteep(panel) ? "logarithmic" : "") : `step ${Math.round(step).toLocaleString("en")}`;
  }
  tell(null);
  return figure;
}

function isSteep(panel) {
  const values = panel.series.flatMap((series) => series.points.map((point) => point[1]));
  return Math.min(...values) > 0 && Math.max(...values) > STEEP * median(values);
}

function curves(panel, width, tell) {
  const all = panel.series.flatMap((series) => series.points);
  const [steps, values] = [0, 1].map((column) => all.map((point) => point[column]));
  const [first, last, low, high] = [Math.min(...steps), Math.max(...steps), Math.min(...values), Math.max(...values)];
  const isLog = isSteep(panel);
  const bent = (value) => (isLog ? Math.log10(value) : value);
  const across = scale(first, last, LEFT, width - RIGHT);
  const up = scale(bent(low), bent(high), HEIGHT - BOTTOM, TOP);
  const height = (value) => up(bent(Math.min(high, Math.max(low, value)))).toFixed(1);
  const drawn = svg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": spoken(panel) });

  for (const tick of ticks(low, high, isLog)) {
    drawn.append(svg("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: height(tick), y2: height(tick) }));
    drawn.append(svg("text", { x: LEFT - 6, y: Number(height(tick)) + 3.5, "text-anchor": "end" }, short(tick)));
  }
  drawn.append(svg("text", { x: LEFT, y: HEIGHT - 4 }, `step ${first.toLocaleString("en")}`));
  drawn.append(svg("text", { x: width - RIGHT, y: HEIGHT - 4, "text-anchor": "end" }, last.toLocaleString("en")));
  panel.series.forEach((series, number) => draw(drawn, series.points, `c${(number % 6) + 1}`, across, height));

  const cross = svg("line", { class: "cross", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
  drawn.append(cross);
  drawn.addEventListener("pointermove", (event) => {
    const x = Math.max(LEFT, Math.min(width - RIGHT, event.clientX - drawn.getBoundingClientRect().left));
    for (const end of ["x1", "x2"]) cross.setAttribute(end, x);
    cross.setAttribute("visibility", "visible");
    tell(first + ((x - LEFT) / (width - RIGHT - LEFT)) * (last - first));
  });
  drawn.addEventListener("pointerleave", () => {
    cross.setAttribute("visibility", "hidden");
    tell(null);
  });
  return drawn;
}

function draw(drawn, points, colour, across, height) {
  if (points.some((point) => point[3] > point[2])) {
    const top = points.map((point) => `${across(point[0]).toFixed(1)},${height(point[3])}`);
    const bottom = points.map((point) => `${across(point[0]).toFixed(1)},${height(point[2])}`).reverse();
    drawn.append(svg("polygon", { class: `range ${colour}`, points: [...top, ...bottom].join(" ") }));
  }
  drawn.append(svg("polyline", { class: `curve ${colour}`, points: points.map((point) => `${across(point[0]).toFixed(1)},${height(point[1])}`).join(" ") }));
  if (points.length > 30) return;
  for (const point of points) drawn.append(svg("circle", { class: colour, cx: across(point[0]), cy: height(point[1]), r: 2.4 }));
}

function key(series, number, step) {
  const point = step === null ? series.points.at(-1) : nearest(series.points, step);
  return h("span", {}, h("i", { class: `c${(number % 6) + 1}` }), `${series.name.replaceAll("_", " ")} ${short(point[1])}`);
}

const nearest = (points, step) => points.reduce((best, point) => (Math.abs(point[0] - step) < Math.abs(best[0] - step) ? point : best));
const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1];
const spoken = (panel) => `${panel.title}: ${panel.series.map((series) => `${series.name} is ${short(series.points.at(-1)[1])}`).join(", ")}`;

function scale(low, high, from, to) {
  if (high === low) return () => (from + to) / 2;
  return (value) => from + ((value - low) / (high - low)) * (to - from);
}

function ticks(low, high, isLog) {
  if (isLog) {
    const powers = [];
    for (let power = Math.ceil(Math.log10(low)); power <= Math.floor(Math.log10(high)); power++) powers.push(10 ** power);
    return powers.length > 1 ? powers : [low, high];
  }
  if (high === low) return [low];
  const raw = (high - low) / 3;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((times) => times * power).find((size) => size >= raw);
  const found = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high + step * 1e-9; tick += step) found.push(Number(tick.toPrecision(10)));
  return found;
}
