// Senses: what each sense of a token does, and a slider for each that changes the next word at once.

import { aborted, ask, inWords } from "./asking.js";
import { changedBars } from "./bars.js";
import { h, notice, number, percent, quoted, short } from "./dom.js";
import { cutNote, looking } from "./looking.js";
import { tokenRow } from "./tokens.js";

export const id = "senses";
export const title = "Senses";
export const needs = "senses";
export const label = "Text";

const words = (list) => list.map((one) => short(one.label, 12)).join("  ");
const key = (change) => `${change.token} ${change.sense}`;

export function create(page) {
  const note = h("div");
  const row = tokenRow("Tokens: choose one to see its senses", { pick: choose });
  const heading = h("h3");
  const list = h("ul", { class: "senses" });
  const next = changedBars();
  const failed = notice();
  const changed = h("p", { class: "note", role: "status" });
  const reset = h("button", { type: "button", onclick: forget }, "Set all back to 1");
  const write = h("button", { type: "button", onclick: () => page.open("write") }, "Write with these senses");
  const effect = h("section", { class: "effect", "aria-label": "The next token" }, h("h3", {}, "The next token"),
    changed, h("p", { class: "legend" }, h("span", { class: "key before" }, "before"),
      h("span", { class: "key after" }, "after")),
    failed.element, next.element, h("div", { class: "buttons" }, reset, write));
  const content = h("div", {}, note, row.element,
    h("div", { class: "two" }, h("section", { "aria-label": "Senses" }, heading, list), effect));
  let position = null; // null: the last
  let asked = null; // the text that position belongs to
  let steered = null; // the text that the bars belong to
  let answer = null;
  let flight = new AbortController();
  let steering = false;
  let moved = false;

  /** Ask what the changes do, one question at a time: what moves meanwhile is asked once it is answered. */
  async function steer() {
    moved = true;
    if (steering) return;
    steering = true;
    while (moved) {
      moved = false;
      flight = new AbortController();
      await answered(flight.signal);
    }
    steering = false;
  }

  async function answered(signal) {
    const run = page.run;
    const changes = page.changes(run);
    tell(changes);
    try {
      const question = { run: run.id, text: page.text, changes: changes.map(({ label: _, ...change }) => change) };
      const { before, after } = await ask("/api/steer", question, signal);
      failed.clear();
      next.set(before, after);
    } catch (error) {
      if (!aborted(error)) failed.fail(inWords(error));
    }
  }

  function tell(changes) {
    changed.textContent = changes.length
      ? `Changed: ${changes.map((one) => `sense ${one.sense} of ${quoted(one.label)} × ${one.scale}`).join(", ")}.`
      : "Move a slider: 0 takes a sense out, 1 leaves it, 3 makes it three times as strong.";
    reset.disabled = changes.length === 0;
    write.disabled = changes.length === 0;
  }

  function slide(sense, scale) {
    const token = answer.ids[answer.position];
    const change = { position: null, token, sense, scale, label: answer.tokens[answer.position] };
    const others = page.changes(page.run).filter((one) => key(one) !== key(change));
    page.change(page.run, scale === 1 ? others : [...others, change]);
    steer();
  }

  function forget() {
    page.change(page.run, []);
    list.replaceChildren(...answer.senses.map(card));
    steer();
  }

  function card(one) {
    const token = answer.ids[answer.position];
    const standing = page.changes(page.run).find((change) => key(change) === key({ token, sense: one.sense }));
    const name = `sense-${one.sense}`;
    const value = h("output", { for: name }, `× ${standing?.scale ?? 1}`);
    const slider = h("input", { id: name, type: "range", min: 0, max: 3, step: 0.1, value: standing?.scale ?? 1,
      oninput: (event) => {
        value.textContent = `× ${event.target.value}`;
        slide(one.sense, Number(event.target.value));
      } });
    const weight = one.weights[answer.position];
    return h("li", { class: "sense" },
      h("div", { class: "slide" }, h("label", { for: name }, `Sense ${one.sense}`), slider, value),
      h("p", { class: "up model-text" }, h("span", { class: "mark", title: "pushes up" }, "▲"), words(one.up)),
      h("p", { class: "down model-text" }, h("span", { class: "mark", title: "pushes down" }, "▼"), words(one.down)),
      h("p", { class: "note" },
        `weight ${percent(weight)}, spread ${number(one.spread, 2)} nats`));
  }

  function choose(at) {
    if (answer && at === answer.position) return;
    position = at;
    view.refresh();
  }

  const view = looking(page, "/api/senses", {
    about: "A Backpack has several senses for each token. Whatever the context, a sense pushes the same tokens up " +
      "(▲) and down (▼). The context decides its weight in the prediction of the next token; the spread says how " +
      "strongly it tells tokens apart. Choose a token.",
    content,
    question() {
      if (asked !== page.text) position = null;
      asked = page.text;
      return { top: 8, ...(position === null ? {} : { position }) };
    },
    draw(given) {
      answer = given;
      note.replaceChildren(...cutNote(given));
      row.set(given.tokens);
      row.choose(given.position);
      heading.textContent = `Senses of ${quoted(given.tokens[given.position])}`;
      list.replaceChildren(...given.senses.map(card));
      if (steered !== page.text) next.clear();
      steered = page.text;
      flight.abort();
      steer();
    },
  });
  return { ...view, leave() { view.leave(); flight.abort(); } };
}
