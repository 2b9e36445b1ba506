// Write: each model goes on with the prompt, token by token.

import { column, surprise } from "./column.js";
import { h, quoted } from "./dom.js";

export const id = "write";
export const title = "Write";
export const needs = "generate";
export const label = "Prompt";
export const every = true; // a column for each model

// name, words, its range, what it is at first; one without a value is left out of the question
const SETTINGS = [
  ["tokens", "Tokens", { min: 1, max: 1000, step: 1, required: true }, 100],
  ["temperature", "Temperature", { min: 0, max: 5, step: "any", required: true }, 0.8],
  ["seed", "Seed", { min: 0, max: 2 ** 31 - 1, step: 1, required: true }, 1],
];
const MORE = [
  ["top_k", "Top k", { min: 1, step: 1 }, ""],
  ["top_p", "Top p", { min: 0, max: 1, step: "any" }, ""],
  ["min_p", "Min p", { min: 0, max: 1, step: "any" }, ""],
];
const HELP = "Temperature: 0 takes the most probable token each time, 1 draws as the model expects, more is wilder. " +
  "Top k, top p and min p leave improbable tokens out.";
const MARKS = [1, 0.3, 0.1, 0.03, 0.01, 0.001];

export function create(page) {
  const inputs = new Map();
  const field = ([name, words, range, value]) => {
    const input = h("input", { id: `set-${name}`, type: "number", value, inputmode: "decimal", placeholder: "off",
      ...range });
    inputs.set(name, input);
    return h("div", { class: "field" }, h("label", { for: input.id }, words), input);
  };

  const go = h("button", { type: "submit", class: "primary" }, "Continue the text");
  const stopper = h("button", { type: "button", disabled: true, onclick: stop }, "Stop");
  const reseed = h("button", { type: "button", onclick: () => {
    inputs.get("seed").value = 1 + Math.floor(Math.random() * 99999);
    start();
  } }, "Another seed");
  const form = h("form", { class: "controls", novalidate: true, onsubmit: submitted },
    h("div", { class: "buttons" }, go, stopper, reseed), SETTINGS.map(field),
    h("details", {}, h("summary", {}, "More settings"), h("div", { class: "controls" }, MORE.map(field)),
      h("p", { class: "note" }, HELP)));
  const problem = h("p", { class: "notice failed", role: "alert", hidden: true });
  const steered = h("div", { class: "notice hint", hidden: true });
  const legend = h("p", { class: "legend" }, h("span", {}, "Shaded: how little the model expected the token"),
    MARKS.map((probability) => {
      const swatch = h("span", { class: "token", "aria-hidden": "true" }, " ");
      swatch.style.setProperty("--w", `${Math.round(60 * surprise(probability))}%`);
      return h("span", { class: "mark" }, swatch, `${100 * probability}%`);
    }));
  const grid = h("div", { class: "columns" });
  const columns = new Map();
  const writing = () => [...columns.values()].some((one) => one.writing());

  page.settings = () => {
    const values = {};
    for (const [name, input] of inputs) if (input.value !== "") values[name] = Number(input.value);
    return values;
  };
  page.changed = () => {
    stopper.disabled = !writing();
  };

  function submitted(event) {
    event.preventDefault();
    start();
  }

  function start() {
    const wrong = [...inputs.values()].find((input) => !input.validity.valid);
    problem.hidden = !wrong;
    if (wrong) {
      wrong.closest("details")?.setAttribute("open", "");
      problem.textContent = `${wrong.labels[0].textContent}: ${wrong.validationMessage}`;
      wrong.focus();
      return;
    }
    for (const one of columns.values()) one.write();
  }

  function stop() {
    for (const one of columns.values()) one.stop();
    page.changed();
  }

  /** The Escape key closes what is open, and stops where nothing is. */
  function escape() {
    const opened = [...columns.values()].filter((one) => one.open());
    for (const one of opened) one.hide();
    if (!opened.length) stop();
  }

  function refresh() {
    for (const run of page.runsOf("generate")) {
      if (!columns.has(run.id)) {
        columns.set(run.id, column(page, run.id));
        grid.append(columns.get(run.id).element);
      }
      columns.get(run.id).refresh();
    }
    const changes = page.runsOf("generate").flatMap((run) => page.changes(run));
    const told = changes.map((one) => `sense ${one.sense} of ${quoted(one.label)} × ${one.scale}`).join(", ");
    steered.hidden = changes.length === 0;
    steered.replaceChildren(`With ${told}.`, h("button", { type: "button", onclick: unsteer }, "Without"));
  }

  function unsteer() {
    for (const run of page.runs) page.change(run, []);
    refresh();
  }

  const element = h("div", { class: "view" },
    h("p", { class: "about" }, "The model continues the prompt by one token after another and does not chat. Point " +
      "at a written token to see what else could have come; choose one of these and the text goes on from there."),
    form, problem, steered, legend, grid,
    h("p", { class: "note keys" }, h("kbd", {}, "Ctrl"), " ", h("kbd", {}, "Enter"), " continues, ",
      h("kbd", {}, "Esc"), " stops, arrow keys move among the tokens, ", h("kbd", {}, "Enter"), " opens one."));
  return { element, refresh, submit: start, escape, leave: () => columns.forEach((one) => one.hide()) };
}
