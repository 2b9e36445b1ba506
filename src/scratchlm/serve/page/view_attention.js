// Attention: which tokens each layer and head looks at.

import { headBrowser } from "./browser.js";
import { h, later } from "./dom.js";
import { cutNote, looking } from "./looking.js";

export const id = "attention";
export const title = "Attention";
export const needs = "attention";
export const label = "Text";

export function create(page) {
  const note = h("div");
  const heads = headBrowser();
  const target = h("input", { id: "target", type: "text", class: "model-text", spellcheck: "false",
    autocomplete: "off" });
  const field = h("div", { class: "field", hidden: true },
    h("label", { for: "target" }, "Target (left empty: what the model itself writes)"), target);
  const view = looking(page, "/api/attention", {
    about: "Where each head of each layer looks while it reads the text. Stronger colour is more weight; the weights " +
      "of a row sum to 100%. Choose a head to see it large.",
    content: h("div", {}, note, heads.element),
    question: () => (page.run.pairs && target.value ? { target: target.value } : {}),
    draw(answer) {
      note.replaceChildren(...cutNote(answer));
      heads.set(answer);
    },
  });
  view.element.querySelector(".about").after(field);
  target.addEventListener("input", later(300, view.refresh));
  return {
    ...view,
    refresh() {
      field.hidden = !page.run.pairs;
      return view.refresh();
    },
  };
}
