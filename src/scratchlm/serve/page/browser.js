// Layers and heads side by side, one of them large: for attention, cross attention and senses.

import { recoloured } from "./colours.js";
import { h, percent, quoted } from "./dom.js";
import { heatMap, legend, paint } from "./heatmap.js";
import { tokenRow } from "./tokens.js";

const KINDS = {
  encoder: ["Encoder", "Source tokens look at source tokens.", "looks at"],
  decoder: ["Decoder", "Each token looks at itself and those before it, to predict the next one.", "looks at"],
  cross: ["Cross attention", "Each target token looks at the source, to predict the next; the first is <end>.",
    "looks at"],
  senses: ["Senses", "How much of each sense of each token goes into the prediction after a token.", "takes in"],
};
const MARKS = [[0, "0%"], [Math.sqrt(0.05), "5%"], [Math.sqrt(0.2), "20%"], [Math.sqrt(0.5), "50%"], [1, "100%"]];

/** Colours go by the square root: on a straight scale the many small weights would all look like none. */
const shade = Math.sqrt;

export function headBrowser() {
  const grid = h("div", { class: "heads" });
  const heading = h("h3");
  const about = h("p", { class: "note" });
  const looks = tokenRow("Tokens that look", { point: (row) => look(row ?? picked), pick: (row) => pick(row) });
  const looked = tokenRow("Tokens looked at");
  const map = heatMap("Weights of the chosen head: rows look, columns are looked at", {
    point: (row) => look(row),
    press: (row) => pick(row),
  });
  const strips = h("div", { class: "strips" });
  const large = h("section", { class: "large", "aria-label": "The chosen head" },
    heading, about, strips, map.element, legend("Weight", MARKS));
  const element = h("div", { class: "browser" }, grid, large);

  let answer = null;
  let thumbnails = [];
  let chosen = null; // of the thumbnails
  let picked = null; // the row that stays shaded when the pointer leaves

  const sides = (kind) => ({
    encoder: [answer.source, answer.source], decoder: [answer.tokens, answer.tokens],
    cross: [answer.tokens, answer.source], senses: [answer.tokens, answer.tokens],
  })[kind];
  const later = (kind, row, column) => (kind === "decoder" || kind === "senses") && column > row;

  const gridOf = ({ layer, head }) => {
    const [rows, columns] = sides(layer.kind);
    return {
      rows,
      columns,
      square: true,
      value: (row, column) => (later(layer.kind, row, column) ? null : shade(head.weights[row][column])),
      says: (row, column) =>
        later(layer.kind, row, column)
          ? `${quoted(rows[row])} (${row + 1}) may not see ${quoted(columns[column])} (${column + 1}): it comes later.`
          : `${quoted(rows[row])} (${row + 1}) ${KINDS[layer.kind][2]} ${quoted(columns[column])} (${column + 1}): ` +
            `weight ${percent(head.weights[row][column])}.`,
    };
  };

  function look(row) {
    const { layer, head } = thumbnails[chosen];
    const target = layer.kind === "cross" ? looked : looks;
    looks.choose(row);
    if (row === null) target.shade(null);
    else {
      const shades = head.weights[row].map((weight, column) => (later(layer.kind, row, column) ? null : shade(weight)));
      target.shade(shades, (column) => `weight ${percent(head.weights[row][column])}`);
    }
  }

  function pick(row) {
    picked = row;
    look(row);
  }

  function choose(at) {
    thumbnails[chosen]?.button.setAttribute("aria-pressed", "false");
    chosen = at;
    const { layer, button, name } = thumbnails[at];
    button.setAttribute("aria-pressed", "true");
    heading.textContent = name;
    about.textContent = KINDS[layer.kind][1];
    const [rows, columns] = sides(layer.kind);
    looks.set(rows);
    looked.set(columns);
    strips.replaceChildren(looks.element, ...(layer.kind === "cross" ? [looked.element] : []));
    map.set(gridOf(thumbnails[at]), "Point at a token or a cell; the arrow keys work too.");
    pick(rows.length - 1);
  }

  function enlarge(at) {
    choose(at);
    large.scrollIntoView({ block: "nearest" }); // on a phone it is below all the small ones
  }

  const paintAll = () => thumbnails.forEach((one) => paint(one.canvas, gridOf(one)));
  recoloured(paintAll);

  function thumbnail(layer, head) {
    const what = layer.kind === "senses" ? `sense ${head.head}` : `head ${head.head}`;
    const name = layer.kind === "senses" ? `Sense ${head.head}`
      : `${KINDS[layer.kind][0]}, layer ${layer.layer}, ${what}`;
    const canvas = h("canvas", { "aria-hidden": "true" });
    const at = thumbnails.length;
    const button = h("button", { type: "button", class: "thumbnail", "aria-label": name, "aria-pressed": "false",
      onclick: () => enlarge(at) }, canvas, h("span", { "aria-hidden": "true" }, what));
    thumbnails.push({ layer, head, button, canvas, name });
    return button;
  }

  return {
    element,
    set(given) {
      const before = thumbnails[chosen]?.name;
      answer = given;
      thumbnails = [];
      const kinds = Object.keys(KINDS).filter((kind) => given.layers.some((layer) => layer.kind === kind));
      grid.replaceChildren(...kinds.map((kind) => h("section", {},
        h("h3", {}, KINDS[kind][0]),
        given.layers.filter((layer) => layer.kind === kind).map((layer) => h("div", { class: "layer" },
          layer.layer === null ? null : h("p", {}, `layer ${layer.layer}`),
          h("div", { class: layer.heads.length > 4 ? "row" : "row few" },
            layer.heads.map((head) => thumbnail(layer, head))))))));
      paintAll();
      chosen = null;
      choose(Math.max(thumbnails.findIndex((one) => one.name === before), 0));
    },
  };
}
