// The models that are served: what is known of them, when they are ready, and how the top of the page says so.

import { ask, Failure, inWords } from "./asking.js";
import { count, h, notice, number, visible } from "./dom.js";

const PAUSES = { loading: 500, waiting: 2000, training: 3000, else: 10000 }; // milliseconds between two questions

const STATUS = {
  loading: "loading the weights …",
  waiting: "no checkpoint yet",
  ready: "ready",
  failed: "failed",
};

const WAITS = {
  loading: "The weights are being loaded; this starts by itself.",
  waiting: "This run has no checkpoint yet. As soon as training writes one, this starts by itself.",
};

/** Keeps asking for the models; `changed(runs)` at every answer that is news. */
export function models(list, trouble, changed) {
  const problem = notice();
  trouble.append(problem.element);
  let runs = [];
  let known = "";
  let timer;
  let waiting = [];

  /** The end of a run's path, or all of it where that does not tell two apart. */
  function name(run) {
    const end = ({ name: path }) => path.split("/").slice(-2).join("/");
    const alike = runs.some((other) => other.id !== run.id && end(other) === end(run));
    return visible(alike ? run.name : end(run));
  }

  /** What a model can show is known once it is loaded; until then, what any can, so that a person can begin. */
  const withViews = (run) => {
    if (run.status !== "loading" && run.status !== "waiting") return run;
    return { ...run, views: [...new Set([...run.views, run.pairs ? "translate" : "generate", "pieces"])] };
  };

  const of = (id) => runs.find((run) => run.id === id);

  function card(run) {
    const facts = [
      visible(run.title),
      run.parameters ? `${count(run.parameters)} parameters` : null,
      Number.isInteger(run.step) ? `step ${count(run.step)}${run.steps ? ` of ${count(run.steps)}` : ""}` : null,
      Number.isFinite(run.val_loss) ? `validation loss ${number(run.val_loss, 4)}` : null,
      run.context ? `context ${count(run.context)}` : null,
      run.device ? visible(run.device) : null,
    ].filter(Boolean);
    const failed = run.status === "failed";
    const fresh = run.status === "ready" && run.newest > run.step;
    return h("li", { class: "run" },
      h("span", { class: "who" }, h("strong", { title: visible(run.name) }, name(run)),
        h("span", { class: "pill", "data-status": run.status }, STATUS[run.status] ?? visible(run.status)),
        run.training ? h("span", { class: "pill", "data-status": "training" }, "training") : null),
      h("span", { class: "facts" }, facts.join(" · ")),
      run.message ? h("span", failed ? { class: "notice failed", role: "alert" } : { class: "facts" },
        visible(run.message)) : null,
      run.note ? h("span", { class: "base" }, visible(run.note)) : null,
      fresh ? h("button", { type: "button", onclick: () => reload(run) }, `Load step ${count(run.newest)}`) : null);
  }

  async function reload(run) {
    try {
      await ask("/api/reload", { run: run.id });
      await look();
    } catch (error) {
      problem.fail(inWords(error));
    }
  }

  function settle() {
    waiting = waiting.filter(({ id, signal, message, resolve, reject }) => {
      const run = of(id);
      if (signal.aborted) reject(signal.reason);
      else if (run?.status === "ready") resolve();
      else if (run?.status === "failed") reject(new Failure(run.message || "The model could not be loaded."));
      else {
        message.say(WAITS[run?.status] ?? WAITS.loading);
        return true;
      }
      return false;
    });
  }

  async function look() {
    clearTimeout(timer);
    let pause = PAUSES.else;
    try {
      const answer = await ask("/api/runs");
      problem.clear();
      const news = JSON.stringify(answer.runs);
      runs = answer.runs.map(withViews);
      if (news !== known) {
        known = news;
        list.replaceChildren(...runs.map(card));
        changed(runs);
      }
      settle();
      const some = (test) => runs.some(test);
      if (some((run) => run.status === "loading")) pause = PAUSES.loading;
      else if (some((run) => run.status === "waiting")) pause = PAUSES.waiting;
      else if (some((run) => run.training)) pause = PAUSES.training;
    } catch (error) {
      problem.fail(inWords(error));
      pause = PAUSES.waiting;
    } finally {
      timer = setTimeout(look, pause);
    }
  }

  return {
    look,
    name,
    of,
    all: () => runs,
    /** Settles when the model can answer; what it waits for is said in `message`. */
    ready: (run, message, signal) => new Promise((resolve, reject) => {
      waiting.push({ id: run.id, signal, message, resolve, reject });
      signal.addEventListener("abort", settle, { once: true });
      settle();
    }),
  };
}
