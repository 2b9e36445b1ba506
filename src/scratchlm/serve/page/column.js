// One model's text in Write: it streams, its tokens are shaded, and it goes on from any of them.

import { alternatives } from "./alternatives.js";
import { aborted, events, Failure, inWords } from "./asking.js";
import { h, many, notice, number, percent, visible } from "./dom.js";
import { roving } from "./roving.js";

const PROMPT = 1500; // characters of the prompt that are shown
const FAINTEST = Math.log(0.001); // a token of this probability or less has the deepest shade

/** The least expected tokens are shaded most: what the model is sure of stays calm. */
export const surprise = (probability) => Math.min(Math.log(Math.max(probability, 1e-9)) / FAINTEST, 1);

/** What is written for a token: a line end is seen and is one; of an unfinished character its label. */
function written(token) {
  if (token.text === "") return visible(token.label);
  return visible(token.text.replaceAll("\r", "")).replaceAll("\n", "↵\n");
}

export function column(page, runId) {
  const heading = h("h3", { class: "run-name" });
  const message = notice();
  const prompt = h("span", { class: "prompt" });
  const list = h("span", { role: "listbox", "aria-label": "Tokens written" });
  const caret = h("span", { class: "caret", hidden: true, "aria-hidden": "true" });
  const stream = h("div", { class: "stream model-text" }, prompt, list, caret);
  const figures = h("p", { class: "figures" });
  const undo = h("button", { type: "button", disabled: true, onclick: () => step() }, "Undo");
  const more = h("button", { type: "button", disabled: true, onclick: () => write(tokens) }, "Write more");
  const take = h("button", { type: "button", disabled: true, onclick: use }, "Use as prompt");
  const paper = h("div", { class: "paper" }, stream);
  const element = h("section", { class: "column" }, heading, message.element, paper, figures,
    h("div", { class: "buttons" }, more, undo, take));
  const box = alternatives(paper, choose, (at) => focus(at));
  paper.append(box.element);

  let tokens = [];
  let shown = { prompt: "", settings: null };
  let past = []; // what stood here before, newest last
  let flight = null;

  const text = () => tokens.map((token) => token.text).join("");
  const run = () => page.runs.find((one) => one.id === runId);

  const show = (at, item) => box.show(at, tokens[at], item, true);
  const enter = (at, item) => {
    show(at, item);
    box.enter();
  };
  const leave = () => (box.isOpen() ? box.hide() : stop());
  const widget = roving(list, "option", { move: show, keys: { Enter: enter, ArrowDown: enter, Escape: leave } });
  let returning = false; // to a token from its box, which shall not open again

  function focus(at) {
    returning = true;
    list.children[at]?.focus();
    returning = false;
  }

  list.addEventListener("focusin", ({ target }) => {
    if (!returning && target.matches(":focus-visible")) show([...list.children].indexOf(target), target);
  });
  paper.addEventListener("focusout", (event) => {
    if (event.relatedTarget && !paper.contains(event.relatedTarget)) box.hide();
  });
  list.addEventListener("pointerover", (event) => {
    const at = [...list.children].indexOf(event.target.closest("[role=option]"));
    if (event.pointerType === "mouse" && at >= 0) box.hover(at, tokens[at], list.children[at]);
  });
  list.addEventListener("pointerleave", (event) => {
    if (event.pointerType === "mouse") box.hover(null);
  });

  function add(token) {
    const item = h("span", { class: "token", role: "option", tabindex: list.childElementCount ? -1 : 0,
      "aria-label": `${visible(token.label)}, ${percent(token.probability)}` }, written(token));
    item.style.setProperty("--w", `${Math.round(60 * surprise(token.probability))}%`);
    item.classList.toggle("raw", token.text === "");
    item.classList.toggle("chosen", Boolean(token.chosen));
    list.append(item);
  }

  function put(given, prompted) {
    tokens = [...given];
    const cut = prompted.length > PROMPT;
    prompt.textContent = visible((cut ? "… " : "") + prompted.slice(-PROMPT));
    list.replaceChildren();
    tokens.forEach(add);
    box.hide();
  }

  function buttons() {
    undo.disabled = past.length === 0 || flight !== null;
    more.disabled = tokens.length === 0 || flight !== null;
    take.disabled = tokens.length === 0 || flight !== null;
    stream.classList.toggle("empty", tokens.length === 0 && flight === null);
    caret.hidden = flight === null;
    page.changed();
  }

  function use() {
    page.setText(shown.prompt + text());
  }

  function step() {
    const before = past.pop();
    shown = before.shown;
    put(before.tokens, shown.prompt);
    figures.textContent = before.said;
    message.clear();
    buttons();
  }

  function choose(index, alternative) {
    const chosen = { ...tokens[index], ...alternative, chosen: true };
    write([...tokens.slice(0, index), chosen]);
    focus(index);
  }

  /** Read the prompt and these tokens, and go on. Without tokens: from what stands in the box above. */
  async function write(continuation = []) {
    const said = flight === null ? figures.textContent : many(tokens.length, "token");
    stop();
    if (tokens.length) past.push({ tokens, shown, said });
    flight = new AbortController();
    const { signal } = flight;
    const settings = page.settings();
    shown = { prompt: continuation.length ? shown.prompt : page.text, settings };
    put(continuation, shown.prompt);
    figures.textContent = "";
    message.clear();
    buttons();
    const name = page.name(run());
    const first = tokens.length;
    page.announce(`${name} writes.`);
    const conclude = (how) => {
      const wrote = tokens.length - first;
      figures.textContent =
        `${many(wrote, "token")}${how} Seed ${settings.seed}: the same seed and settings write the same text.`;
      page.announce(`${name} has written ${many(wrote, "token")}: ${visible(text()).slice(0, 600)}`);
    };
    let end = ".";
    try {
      await page.ready(run(), message, signal);
      const question = { run: runId, prompt: shown.prompt, continuation: tokens.map((token) => token.id), ...settings };
      const changes = page.changes(run()).map(({ label: _, ...change }) => change);
      if (changes.length) question.changes = changes;
      for await (const event of events("/api/generate", question, signal)) {
        if (event.type === "token") {
          tokens.push(event);
          add(event);
          figures.textContent = `${tokens.length - first} of ${many(settings.tokens, "token")} …`;
        } else if (event.type === "waiting") {
          message.say(`${many(event.before, "other")} before this one; it starts by itself.`);
        } else if (event.type === "start") {
          start(event);
        } else if (event.type === "error") {
          throw new Failure(event.message);
        } else if (event.type === "end") {
          const ended = event.reason === "end_of_text" ? ", then the model ended its text" : "";
          end = ` in ${number(event.seconds, 2)} s${ended}.`;
        }
      }
      conclude(end);
    } catch (error) {
      if (aborted(error) || signal.aborted) {
        if (flight === null) conclude(", stopped."); // otherwise something newer is being written here
      } else message.fail(inWords(error));
    } finally {
      if (flight?.signal === signal) flight = null;
      buttons();
    }
  }

  function start(event) {
    const context = run().context;
    message.clear();
    if (event.slides) {
      message.hint(`This model looks back over ${context} tokens: of a longer text it forgets the beginning.`);
    }
    // the server's own numbers for what was chosen and what stood before
    if (event.continuation.length === tokens.length && tokens.length) {
      const chosen = tokens.map((token) => token.chosen);
      const focused = [...list.children].indexOf(document.activeElement);
      put(event.continuation.map((token, index) => ({ ...token, chosen: chosen[index] })), shown.prompt);
      if (focused >= 0) {
        widget.go(list.children[focused]);
        focus(focused);
      }
    }
  }

  function stop() {
    flight?.abort();
    flight = null;
  }

  return {
    element,
    write: () => write(),
    stop,
    writing: () => flight !== null,
    refresh() {
      heading.textContent = page.name(run());
      buttons();
    },
    open: () => box.isOpen(),
    hide: () => box.hide(),
  };
}
