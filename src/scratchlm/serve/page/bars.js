// Tokens with their probabilities as bars; the numbers stand beside them.

import { h, percent, short } from "./dom.js";

function row(label, share, text, ...more) {
  const fill = h("span", { class: "fill" });
  fill.style.width = `${100 * share}%`;
  return [h("span", { class: "label model-text" }, short(label, 16)), h("span", { class: "track" }, ...more, fill),
    h("span", { class: "value" }, text)];
}

/** Bars as a list, the longest as long as there is room. */
export function bars(rows, name) {
  const most = Math.max(...rows.map((one) => one.probability), 1e-9);
  return h("ol", { class: "bars", "aria-label": name },
    rows.map((one) => h("li", {}, row(one.label, one.probability / most, percent(one.probability)))));
}

/** Bars that can be pressed; `pick(alternative)`. The one with this id is marked as the one that stands there. */
export function choices(rows, standing, pick) {
  const most = Math.max(...rows.map((one) => one.probability), 1e-9);
  return h("ul", { class: "bars" }, rows.map((one) => {
    const stands = one.id === standing;
    const name = `${short(one.label, 16)}, ${percent(one.probability)}${stands ? ", written" : ""}`;
    const button = h("button", { type: "button", class: "choice", "aria-label": name,
      "aria-current": stands && "true", onclick: () => pick(one) },
      row(one.label, one.probability / most, percent(one.probability)));
    return h("li", {}, button);
  }));
}

/** The next token before and after a change: rows keep their places, so that the eye can follow. */
export function changedBars() {
  const element = h("ol", { class: "bars changed", "aria-label": "The next token, before and after" });
  const rows = new Map();
  return {
    element,
    clear() {
      rows.clear();
      element.replaceChildren();
    },
    set(before, after) {
      const was = new Map(before.map((one) => [one.id, one]));
      const is = new Map(after.map((one) => [one.id, one]));
      const most = Math.max(...[...before, ...after].map((one) => one.probability), 1e-9);
      for (const [id, one] of [...was, ...is]) {
        if (rows.has(id)) continue;
        const old = h("span", { class: "old" });
        const item = h("li", {}, row(one.label, 0, "", old));
        rows.set(id, { item, old, fill: item.querySelector(".fill"), value: item.querySelector(".value") });
        element.append(item);
      }
      for (const [id, { item, old, fill, value }] of rows) {
        const [one, other] = [was.get(id)?.probability ?? 0, is.get(id)?.probability ?? 0];
        item.hidden = !was.has(id) && !is.has(id);
        old.style.width = `${(100 * one) / most}%`;
        fill.style.width = `${(100 * other) / most}%`;
        const [text, changed] = [percent(one), percent(other)];
        value.textContent = text === changed ? text : `${text} → ${changed}`;
      }
    },
  };
}
