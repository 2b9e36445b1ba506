// Influence: which tokens the next prediction depends on, and for a CNN the tree of connections that carries it.

import { bars } from "./bars.js";
import { h, many, percent, quoted, short, svg } from "./dom.js";
import { cutNote, looking } from "./looking.js";
import { tokenRow } from "./tokens.js";

export const id = "influence";
export const title = "Influence";
export const needs = "influence";
export const label = "Text";

const ROW = 56; // pixels between two layers

/** The convolutions one by one: a block may have several, as its reach tells. */
function convolutions(blocks) {
  let reach = 1;
  return blocks.flatMap((block) => {
    const each = (block.width - 1) * block.dilation;
    const times = each ? Math.round((block.reach - reach) / each) : 1;
    return Array.from({ length: times }, (_, at) => {
      reach += each;
      return { ...block, reach, name: times > 1 ? `${block.name}, convolution ${at + 1}` : block.name };
    });
  });
}

/** Which positions each layer has to know for the prediction after the last token; that of the tokens comes first. */
function cone(layers, length) {
  const needed = [new Set([length - 1])];
  for (const { width, dilation } of [...layers].reverse()) {
    const below = new Set();
    for (const at of needed.at(-1)) {
      for (let back = 0; back < width && at - back * dilation >= 0; back++) below.add(at - back * dilation);
    }
    needed.push(below);
  }
  return needed.reverse();
}

/** The tree: tokens at the bottom, a row of dots for each layer's outputs above, lines where one reads another. */
function tree({ tokens, layers: blocks }, room) {
  const layers = convolutions(blocks);
  const step = Math.max(Math.min(Math.floor((room - 24) / tokens.length), 28), 9);
  const [width, bottom] = [tokens.length * step + 24, (layers.length + 0.6) * ROW];
  const needed = cone(layers, tokens.length);
  const x = (at) => 12 + (at + 0.5) * step;
  const y = (row) => bottom - row * ROW;
  const dots = (used) => needed.map((known, row) =>
    tokens.map((_, at) => (known.has(at) === used ? `M${x(at)} ${y(row)}h0` : "")).join("")).join("");
  const links = layers.map(({ width: taps, dilation }, row) => [...needed[row + 1]].map((at) => {
    let lines = "";
    for (let back = 0; back < taps && at - back * dilation >= 0; back++) {
      lines += `M${x(at - back * dilation)} ${y(row)}L${x(at)} ${y(row + 1)}`;
    }
    return lines;
  }).join("")).join("");
  const names = layers.map((layer, row) => svg("text", { x: 12, y: y(row + 1) - 10, class: "name" },
    `${layer.name}: ${layer.width} wide, ${layer.dilation} apart, reaches ${many(layer.reach, "token")}`));
  const labels = tokens.map((token, at) => {
    const text = short(token, 8);
    const place = [...text].length === 1 ? { x: x(at), y: bottom + 20, "text-anchor": "middle" }
      : { transform: `translate(${x(at) - 4} ${bottom + 12}) rotate(90)` };
    return svg("text", { ...place, class: needed[0].has(at) ? "token" : "token far" }, text);
  });
  const longest = Math.max(...tokens.map((token) => [...short(token, 8)].length));
  const height = bottom + (longest === 1 ? 32 : 24 + 7 * longest);
  return svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": `Tree of ${layers.length} convolutions: the next token depends on ${needed[0].size} tokens` },
    svg("path", { d: links, class: "link" }), svg("path", { d: dots(false), class: "dot" }),
    svg("path", { d: dots(true), class: "dot used" }), names, labels);
}

export function create(page) {
  const note = h("div");
  const readout = h("p", { class: "readout", role: "status" });
  const next = h("div");
  const reach = h("p", { class: "figures" });
  const picture = h("div", { class: "scroller tree", tabindex: 0, role: "region",
    "aria-label": "Tree of connections" });
  const field = h("section", {}, h("h3", {}, "How it gets there"),
    h("p", { class: "note" }, "Each dot is a layer's output at a token; lines lead to what it reads. Only the way to " +
      "the last prediction is drawn. Tokens outside of the tree cannot change it."), picture);
  let answer = null;

  const hint = "Point at a token to see its share.";
  const row = tokenRow("The text, shaded by influence", {
    point(at) {
      if (at === null) {
        readout.textContent = hint;
        return;
      }
      const share = answer.influence[at];
      readout.textContent = `${quoted(answer.tokens[at])} (${at + 1}): ` +
        (share === 0 ? "exactly 0, it is out of reach." : `${percent(share)} of the influence.`);
    },
  });
  row.element.classList.add("reach");
  const content = h("div", {}, note, reach, row.element, readout, h("h3", {}, "Next, the model expects"), next, field);

  return looking(page, "/api/field", {
    about: "How much the most probable next token depends on each token read: the size of the gradient of its " +
      "log-probability, in shares of 100%. It says how far a small change of a token would be felt, not why.",
    content,
    draw(given) {
      answer = given;
      note.replaceChildren(...cutNote(given));
      reach.textContent = given.reach === null ? "This model can look at all of the text."
        : `This model can look back over ${many(given.reach, "token")}, and no further.`;
      row.set(given.tokens);
      const most = Math.max(...given.influence, 1e-12);
      row.shade(given.influence.map((share) => (share === 0 ? null : Math.sqrt(share / most))),
        (at) => (given.influence[at] === 0 ? "no influence" : `${percent(given.influence[at])} of the influence`));
      readout.textContent = hint;
      next.replaceChildren(bars(given.next, "Most probable next tokens"));
      field.hidden = !given.layers?.length;
      if (!field.hidden) {
        picture.replaceChildren(tree(given, picture.clientWidth));
        picture.scrollLeft = picture.scrollWidth;
      }
    },
  });
}
