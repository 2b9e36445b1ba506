// Translate: a source, its beams, and where the best of them looked.

import { aborted, ask, inWords } from "./asking.js";
import { headBrowser } from "./browser.js";
import { h, many, notice, visible } from "./dom.js";

export const id = "translate";
export const title = "Translate";
export const needs = "translate";
export const label = "Source";

const fixed = (value) => value.toFixed(2).replace("-", "−");
const START = "<end>"; // what a target begins with

export function create(page) {
  const message = notice();
  const beam = h("input", { id: "beam", type: "number", min: 1, max: 16, value: 4, inputmode: "numeric" });
  const alternatives = h("input", { id: "alternatives", type: "number", min: 1, max: 16, value: 3,
    inputmode: "numeric" });
  const list = h("ol", { class: "targets" });
  const heads = headBrowser();
  const cross = h("section", {}, h("h3", {}, "Where the best one looked"), heads.element);
  const content = h("div", { hidden: true }, list, cross);
  let flight = new AbortController();

  async function translate() {
    flight.abort();
    flight = new AbortController();
    const { signal } = flight;
    if (!page.text) {
      message.hint("Type a source above.");
      return;
    }
    content.setAttribute("aria-busy", "true");
    message.say("Translating …");
    try {
      const run = page.run;
      await page.ready(run, message, signal);
      const question = { run: run.id, text: page.text, beam: Number(beam.value),
        alternatives: Number(alternatives.value) };
      const answer = await ask("/api/translate", question, signal);
      message.clear();
      list.replaceChildren(...answer.targets.map((target) => h("li", {},
        h("span", { class: "model-text" }, visible(target.text) || "(nothing)"),
        h("span", { class: "value" }, `score ${fixed(target.score)}, ` +
          `log-probability ${fixed(target.log_probability)}, ${many(target.labels.length, "token")}`))));
      content.hidden = false;
      cross.hidden = !answer.layers?.length;
      if (!cross.hidden) {
        const tokens = [START, ...answer.targets[0].labels];
        heads.set({ tokens, source: answer.source, layers: answer.layers });
      }
      page.announce(`The best translation is ${answer.targets[0].text}`);
    } catch (error) {
      if (aborted(error)) return;
      content.hidden = true;
      message.fail(inWords(error));
    } finally {
      if (!signal.aborted) content.removeAttribute("aria-busy");
    }
  }

  const form = h("form", { class: "controls", onsubmit: (event) => { event.preventDefault(); translate(); } },
    h("button", { type: "submit", class: "primary" }, "Translate"),
    h("div", { class: "field" }, h("label", { for: "beam" }, "Beams"), beam),
    h("div", { class: "field" }, h("label", { for: "alternatives" }, "Shown"), alternatives));
  const element = h("div", { class: "view" },
    h("p", { class: "about" }, "The model turns the source into a target. It keeps the best few beginnings (beams) " +
      "at every step. The score is the log-probability (nats) with a correction for length; nearer to 0 is better."),
    form, message.element, content);
  return { element, refresh: () => {}, submit: translate, leave: () => flight.abort() };
}
