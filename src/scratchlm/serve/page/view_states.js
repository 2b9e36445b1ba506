// State: what a recurrent network remembers after each token.

import { h, number, quoted } from "./dom.js";
import { heatMap, legend } from "./heatmap.js";
import { cutNote, looking } from "./looking.js";
import { tokenRow } from "./tokens.js";

export const id = "states";
export const title = "State";
export const needs = "states";
export const label = "Text";

export function create(page) {
  const select = h("select", { id: "state-layer", onchange: () => show() });
  const note = h("div");
  const words = h("p", { class: "note" });
  const row = tokenRow("The text, shaded by the chosen unit");
  const map = heatMap("State: rows are units, columns are tokens", { press: (unit) => choose(unit) });
  const scale = h("div");
  const content = h("div", {}, note,
    h("div", { class: "field inline" }, h("label", { for: "state-layer" }, "Layer and vector"), select),
    words, row.element, map.element, scale);
  let answer = null;
  let unit = 0;

  const layer = () => answer.layers[select.selectedIndex];
  const name = (at) => answer.units?.[at] ?? at;
  const most = () => Math.max(...layer().values.flat().map(Math.abs), 1e-9);

  function choose(at) {
    unit = at;
    const largest = most();
    row.shade(layer().values.map((values) => values[at] / largest), (time) => number(layer().values[time][at]));
    words.textContent =
      `Unit ${name(at)} over the text: blue above 0, orange below. Choose another row in the picture.`;
  }

  function show() {
    const { values } = layer();
    const largest = most();
    const units = values[0].map((_, at) => `${name(at)}`);
    row.set(answer.tokens);
    map.set({
      rows: units,
      columns: answer.tokens,
      signed: true,
      value: (at, time) => values[time][at] / largest,
      says: (at, time) =>
        `Unit ${name(at)} after ${quoted(answer.tokens[time])} (${time + 1}): ${number(values[time][at])}`,
    }, "Point at a cell; the arrow keys work too, and Enter or a click shades the text by that unit.");
    const mark = (share) => [share, number(share * largest, 2)];
    scale.replaceChildren(legend("Value", [mark(-1), mark(-0.5), [0, "0"], mark(0.5), mark(1)]));
    choose(Math.min(unit, units.length - 1));
  }

  return looking(page, "/api/states", {
    about: "All that a recurrent network knows of the text so far is a vector of numbers, changed at every token. " +
      "Each row is one of its units, each column a token that was read.",
    content,
    draw(given) {
      const before = select.selectedIndex;
      answer = given;
      note.replaceChildren(...cutNote(given));
      select.replaceChildren(...given.layers.map((one) => h("option", {}, one.name)));
      select.selectedIndex = before >= 0 && before < given.layers.length ? before : 0;
      show();
    },
  });
}
