// One stop of the Tab key for a whole row of things, among which the arrow keys move.

const STEPS = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 1, ArrowUp: -1 };

/**
 * Make the children of this role a widget of one tab stop. `move(index, element)` after the keys or a click moved to
 * one, `pick(index, element)` at Enter, the space bar or a click; `keys` may take over single keys.
 */
export function roving(container, role, { move = () => {}, pick = () => {}, keys = {} }) {
  const all = () => [...container.querySelectorAll(`[role=${role}]:not([aria-disabled=true])`)];
  const of = (event) => event.target.closest(`[role=${role}]`);

  function go(element) {
    container.querySelector(`[role=${role}][tabindex="0"]`)?.setAttribute("tabindex", "-1");
    element.setAttribute("tabindex", "0");
  }

  container.addEventListener("keydown", (event) => {
    const now = of(event);
    if (!now || event.ctrlKey || event.metaKey || event.altKey) return;
    const items = all();
    const at = items.indexOf(now);
    if (keys[event.key]) {
      event.preventDefault();
      event.stopPropagation();
      keys[event.key](at, now);
      return;
    }
    let next;
    if (event.key in STEPS) next = items[at + STEPS[event.key]];
    else if (event.key === "Home") next = items[0];
    else if (event.key === "End") next = items.at(-1);
    else if (event.key === "Enter" || event.key === " ") pick(at, now);
    else return;
    event.preventDefault();
    if (next) {
      go(next);
      next.focus();
      move(items.indexOf(next), next);
    }
  });
  container.addEventListener("click", (event) => {
    const now = of(event);
    if (!now || now.getAttribute("aria-disabled") === "true") return;
    go(now);
    now.focus();
    const at = all().indexOf(now);
    move(at, now);
    pick(at, now);
  });

  return { go };
}
