// Pieces: what the tokenizer makes of the text.

import { count, h, many, quoted, visible } from "./dom.js";
import { looking } from "./looking.js";
import { roving } from "./roving.js";

export const id = "pieces";
export const title = "Pieces";
export const needs = "pieces";
export const label = "Text";

const SHOWN = 2000; // more would make the page slow, and nobody reads them
const hex = (value) => value.toString(16).padStart(2, "0");

export function create(page) {
  const summary = h("p", { class: "figures" });
  const list = h("div", { class: "pieces model-text", role: "listbox", "aria-label": "The pieces" });
  const readout = h("p", { class: "readout", role: "status" });
  const content = h("div", {}, summary, list, readout);
  let pieces = [];

  const point = (at) => {
    const piece = pieces[at];
    readout.textContent = piece
      ? `${quoted(piece.label)} is token ${count(piece.id)} of ${count(page.run.vocab_size)}: ` +
        `${many(piece.bytes.length, "byte")}, ${piece.bytes.slice(0, 48).map(hex).join(" ")}`
      : "Point at a token to see its bytes.";
  };
  const widget = roving(list, "option", { move: point });
  list.addEventListener("pointerover", (event) => {
    const item = event.target.closest("[role=option]");
    if (item) point([...list.children].indexOf(item));
  });

  return looking(page, "/api/pieces", {
    about: "A model does not read letters or words but tokens, the pieces that its tokenizer cuts a text into. " +
      "Each has a number, which is all that the model gets.",
    content,
    draw(answer) {
      pieces = answer.pieces.slice(0, SHOWN);
      const each = answer.tokens ? (answer.bytes / answer.tokens).toFixed(2) : 0;
      const rest = answer.tokens > SHOWN ? ` The first ${count(SHOWN)} are shown.` : "";
      summary.textContent =
        `${many(answer.tokens, "token")} of ${many(answer.bytes, "byte")}: ${each} bytes each in the mean.${rest}`;
      list.replaceChildren(...pieces.map((piece) => h("span", { class: "piece", role: "option", tabindex: -1 },
        h("span", { class: "text" }, visible(piece.label)), h("span", { class: "id" }, String(piece.id)))));
      if (list.firstChild) widget.go(list.firstChild);
      point(-1);
    },
  });
}
