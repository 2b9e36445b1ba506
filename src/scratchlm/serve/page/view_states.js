// State: what a recurrent network remembers after each token.

import { h, number, quoted } from "./dom.js";
import { heatMap, legend } from "./heatmap.js";
import { cutNote, looking } from "./looking.js";
import { tokenRow } from "./tokens.js";

export const id = "states";
export const title = "State";
export const needs = "states";
export const label = "Text";

/** The unit whose value varies most over the text. */
function liveliest(values) {
  const spread = (at) => Math.max(...values.map((one) => one[at])) - Math.min(...values.map((one) => one[at]));
  const spreads = values[0].map((_, at) => spread(at));
  return spreads.indexOf(Math.max(...spreads));
}

export function create(page) {
  const select = h("select", { id: "state-layer", onchange: () => show() });
  const note = h("div");
  const words = h("p", { class: "note" });
  const row = tokenRow("The text, shaded by the chosen unit");
  const map = heatMap("State: rows are units, columns are tokens", {
    press(at) {
      unit = at;
      choose(at);
    },
  });
  const scale = h("div");
  const content = h("div", {}, note,
    h("div", { class: "field inline" }, h("label", { for: "state-layer" }, "Layer and vector"), select),
    words, row.element, map.element, scale);
  let answer = null;
  let unit = null; // until a person chooses one, the one that changes most

  const layer = () => answer.layers[select.selectedIndex];
  const name = (at) => answer.units?.[at] ?? at;
  const largestOf = (values) => Math.max(...values.map(Math.abs), 1e-9);
  /** Colours go by the square root: one large cell would make the others look like none. */
  const shade = (share) => Math.sign(share) * Math.sqrt(Math.abs(share));

  function choose(at) {
    const values = layer().values.map((one) => one[at]);
    const largest = largestOf(values);
    row.shade(values.map((value) => value / largest), (time) => number(values[time]));
    words.textContent = `Unit ${name(at)} over the text: blue above 0, orange below, strongest at ` +
      `${number(largest, 2)}. Choose another row in the picture.`;
  }

  function show() {
    const { values } = layer();
    const largest = largestOf(values.flat());
    const units = values[0].map((_, at) => `${name(at)}`);
    row.set(answer.tokens);
    map.set({
      rows: units,
      columns: answer.tokens,
      signed: true,
      value: (at, time) => shade(values[time][at] / largest),
      says: (at, time) =>
        `Unit ${name(at)} after ${quoted(answer.tokens[time])} (${time + 1}): ${number(values[time][at])}`,
    }, "Point at a cell; the arrow keys work too, and Enter or a click shades the text by that unit.");
    const mark = (share) => [share, number(share * Math.abs(share) * largest, 2)];
    scale.replaceChildren(legend("Value", [mark(-1), mark(-0.5), [0, "0"], mark(0.5), mark(1)]));
    choose(unit ?? liveliest(values));
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
      if (unit >= given.layers[0].values[0].length) unit = null; // of another model
      show();
    },
  });
}
