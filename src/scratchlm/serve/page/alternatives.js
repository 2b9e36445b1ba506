// What could have stood in a token's place: a box beside it, for the pointer and for the keys.

import { choices } from "./bars.js";
import { h, number, percent, quoted } from "./dom.js";

const SLOW = 90; // milliseconds that the pointer rests on a token before the box opens
const LINGER = 250; // that the box stays when the pointer leaves, so that it can be reached

/** The box within `host`. `pick(index, alternative)` when one is chosen, `back(index)` when the keys leave the box. */
export function alternatives(host, pick, back) {
  const element = h("div", { class: "alternatives", role: "group", hidden: true });
  let open = null;
  let pinned = false;
  let timer;

  function place(anchor) {
    const [box, around] = [anchor.getClientRects()[0], host.getBoundingClientRect()];
    const left = Math.min(box.left - around.left, around.width - element.offsetWidth);
    const below = window.innerHeight - box.bottom > element.offsetHeight + 8;
    const above = !below && box.top > element.offsetHeight + 8;
    element.style.left = `${Math.max(left, 0)}px`;
    element.style.top = `${(above ? box.top - element.offsetHeight : box.bottom) - around.top}px`;
  }

  function show(at, token, anchor, pin) {
    clearTimeout(timer);
    open = at;
    pinned = pin;
    element.setAttribute("aria-label", `Instead of ${quoted(token.label)}`);
    element.replaceChildren(
      h("p", {}, h("strong", { class: "model-text" }, quoted(token.label)), ` ${percent(token.probability)}, `,
        h("span", { title: "0 nats: it was certain; the more, the more open" },
          `entropy ${number(token.entropy, 2)} nats`)),
      choices(token.alternatives, token.id, (one) => pick(at, one)));
    element.hidden = false;
    place(anchor);
  }

  function hide() {
    clearTimeout(timer);
    open = null;
    pinned = false;
    element.hidden = true;
  }

  element.addEventListener("pointerenter", () => clearTimeout(timer));
  element.addEventListener("pointerleave", (event) => {
    if (event.pointerType === "mouse" && !pinned) timer = setTimeout(hide, LINGER);
  });
  element.addEventListener("keydown", (event) => {
    const buttons = [...element.querySelectorAll("button")];
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) buttons[buttons.indexOf(document.activeElement) + step]?.focus();
    else if (event.key === "Escape") {
      const at = open;
      hide();
      back(at);
    } else return;
    event.preventDefault();
    event.stopPropagation();
  });
  document.addEventListener("pointerdown", (event) => {
    if (!element.contains(event.target)) hide();
  });

  return {
    element,
    show,
    hide,
    isOpen: () => open !== null,
    enter: () => element.querySelector("button")?.focus(),
    /** The pointer is over a token, or over none. */
    hover(at, token, anchor) {
      clearTimeout(timer);
      if (pinned || at === open) return;
      timer = token ? setTimeout(show, SLOW, at, token, anchor, false) : setTimeout(hide, LINGER);
    },
  };
}
