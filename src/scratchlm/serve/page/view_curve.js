// Curve: how the loss fell, or is falling now.

import { aborted, ask, inWords } from "./asking.js";
import { count, h, notice, number, svg } from "./dom.js";

export const id = "curve";
export const title = "Curve";
export const needs = "curve";
export const label = null; // needs no text
export const every = true; // a column for each model

const [LEFT, RIGHT, TOP, BOTTOM] = [52, 28, 16, 44];
const HEADINGS = [
  "step", "tokens", "training, nats per token", "validation, nats per token", "bits per byte", "seconds",
];
const QUICK = 2000; // milliseconds between two looks at a run that trains
const SLOW = 5000; // at one that does not, as it may be resumed

/** Round numbers that cover a range, about so many. */
function ticks(low, high, about) {
  const raw = (high - low) / about;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find((one) => one * power >= raw) * power;
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-9; at++) {
    found.push(Number((at * step).toPrecision(12)));
  }
  return found;
}

/** The drawing of these lines in so many pixels, and what stands at which x. */
function draw({ lines, band, steps }, width) {
  const height = Math.round(Math.min(Math.max(width * 0.5, 240), 440));
  const training = lines.filter((line) => Number.isFinite(line.loss)).map((line) => [line.step, line.loss]);
  const validation = lines.filter((line) => Number.isFinite(line.val_loss)).map((line) => [line.step, line.val_loss]);
  const losses = [...training, ...validation].map(([, loss]) => loss);
  const [low, high] = [Math.min(...losses), Math.max(...losses)];
  const room = Math.max((high - low) * 0.06, 0.01);
  const last = Math.max(steps ?? 0, lines.at(-1).step, 1);
  const x = (step) => LEFT + (step / last) * (width - LEFT - RIGHT);
  const y = (loss) => TOP + ((high + room - loss) / (high - low + 2 * room)) * (height - TOP - BOTTOM);
  const inside = (loss) => Math.min(Math.max(y(loss), TOP), height - BOTTOM);
  const line = (points) => `M${points.map(([step, loss]) => `${x(step).toFixed(1)} ${y(loss).toFixed(1)}`).join("L")}`;
  const marks = [
    ...ticks(low, high, height / 50).map((loss) => svg("g", {},
      svg("line", { x1: LEFT, x2: width - RIGHT, y1: y(loss), y2: y(loss), class: "rule" }),
      svg("text", { x: LEFT - 8, y: y(loss) + 4, "text-anchor": "end" }, number(loss)))),
    ...ticks(0, last, width / 110).map((step) => svg("text",
      { x: x(step), y: height - BOTTOM + 18, "text-anchor": "middle" }, count(step))),
    svg("text", { x: (LEFT + width - RIGHT) / 2, y: height - 6, "text-anchor": "middle" }, "step"),
    svg("text", { transform: `translate(12 ${(TOP + height - BOTTOM) / 2}) rotate(-90)`, "text-anchor": "middle" },
      "nats per token"),
  ];
  let expected = null;
  if (band?.step?.length) {
    const there = band.step.map((step, at) => [step, band.low[at], band.high[at]]).filter(([step]) => step <= last);
    const upper = there.map(([step, , top]) => `${x(step)} ${inside(top)}`);
    const lower = there.map(([step, least]) => `${x(step)} ${inside(least)}`).reverse();
    expected = svg("path", { d: `M${[...upper, ...lower].join("L")}Z`, class: "band" });
  }
  const cursor = svg("line", { y1: TOP, y2: height - BOTTOM, class: "cursor", visibility: "hidden" });
  const picture = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": "Loss by step; the table below has the numbers" },
    expected, marks,
    training.length ? svg("path", { d: line(training), class: "training" }) : null,
    validation.length ? svg("path", { d: line(validation), class: "validation" }) : null,
    validation.map(([step, loss]) => svg("circle", { cx: x(step), cy: y(loss), r: 3, class: "validation-dot" })),
    cursor);
  return { picture, cursor, x };
}

/** A line of the metrics in words. */
const told = (line) => [
  `step ${count(line.step)}`,
  Number.isFinite(line.loss) && `training ${number(line.loss, 4)}`,
  Number.isFinite(line.val_loss) && `validation ${number(line.val_loss, 4)} nats per token`,
  Number.isFinite(line.val_bits_per_byte) && `${number(line.val_bits_per_byte, 4)} bits per byte`,
].filter(Boolean).join(", ");

const row = (line) => h("tr", {}, [
  count(line.step), count(line.tokens ?? 0), number(line.loss, 4), number(line.val_loss, 4),
  number(line.val_bits_per_byte, 4), number(line.seconds, 4),
].map((cell) => h("td", {}, cell)));

function column(page, runId) {
  const message = notice();
  const heading = h("h3", { class: "run-name" });
  const state = h("p", { class: "figures" });
  const chart = h("div", { class: "chart" });
  const readout = h("p", { class: "readout" });
  const body = h("tbody");
  const table = h("details", {}, h("summary", {}, "The evaluations as a table"),
    h("div", { class: "scroller", tabindex: 0, role: "region", "aria-label": "Evaluations" },
      h("table", {}, h("thead", {}, h("tr", {}, HEADINGS.map((name) => h("th", { scope: "col" }, name)))), body)));
  const key = h("p", { class: "legend" }, h("span", { class: "key training" }, "training"),
    h("span", { class: "key validation" }, "validation"));
  const bandKey = h("span", { class: "key band" }, "expected of this preset");
  const element = h("section", { class: "column", "aria-label": "Curve" },
    heading, message.element, state, chart, key, readout, table);
  let known = { lines: [], steps: null, band: null };
  let drawn = null;

  function redraw() {
    if (!known.lines.length || !chart.clientWidth) return;
    drawn = draw(known, chart.clientWidth);
    chart.replaceChildren(drawn.picture);
  }

  chart.addEventListener("pointermove", (event) => {
    if (!drawn) return;
    const left = event.clientX - drawn.picture.getBoundingClientRect().left;
    const distance = (line) => Math.abs(drawn.x(line.step) - left);
    const line = known.lines.reduce((nearest, one) => (distance(one) < distance(nearest) ? one : nearest));
    drawn.cursor.setAttribute("x1", drawn.x(line.step));
    drawn.cursor.setAttribute("x2", drawn.x(line.step));
    drawn.cursor.setAttribute("visibility", "visible");
    readout.textContent = `At ${told(line)}.`;
  });
  let width = 0;
  new ResizeObserver(() => {
    if (chart.clientWidth === width) return;
    width = chart.clientWidth;
    redraw();
  }).observe(chart);

  return {
    element,
    async look(signal) {
      const run = page.runs.find((one) => one.id === runId);
      heading.textContent = page.name(run);
      const after = known.lines.at(-1)?.step ?? -1;
      try {
        const answer = await ask(`/api/curve?run=${encodeURIComponent(runId)}&after=${after}`, undefined, signal);
        const read = known.lines.at(-1)?.step ?? -1;
        const lines = answer.lines.filter((line) => line.step > read);
        known = { ...answer, lines: [...known.lines, ...lines] };
        message.clear();
        if (!known.lines.length) {
          message.hint("Nothing is written yet: the curve begins with the first steps of training.");
          return answer.training;
        }
        if (lines.length || !drawn) {
          const best = answer.best && ` Best validation loss ${number(answer.best.val_loss, 4)}, ` +
            `at step ${count(answer.best.step)}.`;
          const now = answer.training ? "Training now" : "Trained";
          state.textContent = `${now}: ${told(known.lines.at(-1))}.${best ?? ""}`;
          if (answer.band) key.append(bandKey);
          body.replaceChildren(...known.lines.filter((line) => Number.isFinite(line.val_loss)).map(row));
          readout.textContent ||= "Point at the curve to read it.";
          redraw();
        }
        return answer.training;
      } catch (error) {
        if (!aborted(error)) message.fail(inWords(error));
        return false;
      }
    },
  };
}

export function create(page) {
  const columns = new Map();
  const grid = h("div", { class: "columns" });
  let timer;
  let flight = new AbortController();

  async function refresh() {
    clearTimeout(timer);
    flight.abort();
    flight = new AbortController();
    const { signal } = flight;
    for (const run of page.runsOf("curve")) {
      if (columns.has(run.id)) continue;
      columns.set(run.id, column(page, run.id));
      grid.append(columns.get(run.id).element);
    }
    const training = await Promise.all([...columns.values()].map((one) => one.look(signal)));
    if (!signal.aborted) timer = setTimeout(refresh, training.some(Boolean) ? QUICK : SLOW);
  }

  const element = h("div", { class: "view" },
    h("p", { class: "about" }, "The loss is how surprised the model is by each next token, in the mean: lower is " +
      "better. Training is what it learns from; validation is text that it has never seen."), grid);
  return { element, refresh, leave() { clearTimeout(timer); flight.abort(); } };
}
