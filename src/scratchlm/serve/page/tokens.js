// Tokens in a row, as one widget: pointed at, picked, shaded by numbers.

import { h, visible } from "./dom.js";
import { roving } from "./roving.js";

const LINE_END = "↵";

/**
 * A row of tokens. `point(index)` when one is pointed at or reached by the keys, null when the pointer leaves;
 * `pick(index)` when one is chosen.
 */
export function tokenRow(name, { point = () => {}, pick } = {}) {
  const element = h("div", { class: "tokens model-text", role: "listbox", "aria-label": name });
  let items = [];
  let chosen = null;

  const widget = roving(element, "option", { move: (at) => point(at), pick: (at) => (pick ?? (() => {}))(at) });
  element.addEventListener("pointerover", (event) => {
    const at = items.indexOf(event.target.closest("[role=option]"));
    if (at >= 0) point(at);
  });
  element.addEventListener("pointerleave", () => point(null));

  return {
    element,
    set(labels) {
      items = labels.map((label) => h("span", { class: "token", role: "option", tabindex: -1 }, visible(label)));
      chosen = null;
      element.classList.toggle("apart", labels.some((label) => label.length > 1)); // or nobody sees where one ends
      // a line ends where the text's does
      const ends = (at) => labels[at].endsWith(LINE_END);
      element.replaceChildren(...items.flatMap((item, at) => (ends(at) ? [item, h("br")] : [item])));
      if (items.length) widget.go(items[0]);
    },
    /** Shades from -1 to 1; null for none. Words say what each is, for those who do not see the shade. */
    shade(values, words = () => "") {
      items.forEach((item, at) => {
        const value = values?.[at] ?? 0;
        item.style.setProperty("--w", `${Math.round(60 * Math.min(Math.abs(value), 1))}%`);
        item.classList.toggle("cold", value < 0);
        item.classList.toggle("none", Boolean(values) && values[at] === null);
        const said = values ? words(at) : "";
        if (said) item.setAttribute("aria-label", `${item.textContent}, ${said}`);
        else item.removeAttribute("aria-label");
      });
    },
    choose(at) {
      items[chosen]?.setAttribute("aria-selected", "false");
      chosen = at;
      if (at === null || !items[at]) return;
      items[at].setAttribute("aria-selected", "true");
      widget.go(items[at]);
    },
  };
}
