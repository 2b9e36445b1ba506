// What the views that look into one text share: asking again when it changes, one question at a time.

import { aborted, ask, inWords } from "./asking.js";
import { h, notice } from "./dom.js";

/**
 * The frame of such a view: words at the top, a message, and what `draw(answer, run)` fills. `question()` is what is
 * asked beside the run and the text. A newer question ends the older one.
 */
export function looking(page, path, { about, content, draw, question = () => ({}) }) {
  const message = notice();
  const element = h("div", { class: "view" }, h("p", { class: "about" }, about), message.element, content);
  let flight = new AbortController();

  async function refresh() {
    flight.abort();
    flight = new AbortController();
    const { signal } = flight;
    const run = page.run;
    if (!page.text) {
      content.hidden = true;
      message.hint("Type a text above, and it is shown here.");
      return;
    }
    const patient = setTimeout(() => message.say("Looking …"), 300); // what is quick needs no sign
    content.setAttribute("aria-busy", "true");
    try {
      await page.ready(run, message, signal);
      const answer = await ask(path, { run: run.id, text: page.text, ...question() }, signal);
      if (signal.aborted) return;
      clearTimeout(patient);
      message.clear();
      content.hidden = false;
      draw(answer, run);
    } catch (error) {
      if (aborted(error)) return;
      content.hidden = true;
      message.fail(inWords(error));
    } finally {
      clearTimeout(patient);
      if (!signal.aborted) content.removeAttribute("aria-busy");
    }
  }

  return { element, refresh, leave: () => flight.abort() };
}

/** What is said where a text was too long to be shown whole. */
export const cutNote = (answer) => (answer.cut
  ? [h("p", { class: "note" }, `The text is long: what is shown is its last ${answer.tokens.length} tokens.`)] : []);
