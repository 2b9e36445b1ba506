// The page: its tabs, the text that all views look at, and the models.

import * as attention from "./view_attention.js";
import * as curve from "./view_curve.js";
import { h, later } from "./dom.js";
import * as influence from "./view_influence.js";
import { models } from "./models.js";
import * as pieces from "./view_pieces.js";
import { roving } from "./roving.js";
import * as senses from "./view_senses.js";
import * as states from "./view_states.js";
import * as translate from "./view_translate.js";
import * as write from "./view_write.js";

const VIEWS = [write, translate, pieces, attention, senses, states, influence, curve];
const $ = (id) => document.getElementById(id);
const [tabs, panels, box, live, choose] = ["tabs", "panels", "text", "live", "choose"].map($);

const open = new Map(); // views that were made, by their id
const changes = new Map(); // senses that were changed, by the run's id
let shown = null; // the view that is seen
let chosen = null; // the run that views of one run look at
const given = box.value; // what the page begins with, where a model has no example of its own
let typed = false;
let wanted = location.hash.slice(1); // a view, until a person chooses another

const page = {
  get runs() { return served.all(); },
  get text() { return box.value; },
  /** The run that is looked at: the chosen one, where it has this view. */
  get run() {
    const able = page.runsOf(shown.needs);
    return able.find((run) => run.id === chosen) ?? able[0];
  },
  runsOf: (need) => page.runs.filter((run) => run.views.includes(need)),
  name: (run) => served.name(run),
  ready: (...given) => served.ready(...given),
  changes: (run) => changes.get(run.id) ?? [],
  change: (run, given) => changes.set(run.id, given),
  announce: (words) => { live.textContent = words; },
  open(id) {
    wanted = null;
    history.replaceState(null, "", `#${id}`);
    show(VIEWS.find((view) => view.id === id));
  },
  setText(text) {
    typed = true;
    box.value = text;
    box.focus();
    box.setSelectionRange(text.length, text.length);
    box.scrollTop = box.scrollHeight;
  },
};

const served = models($("runs"), $("server"), (runs) => {
  document.title = `${runs.map(page.name).join(" and ")} – scratchlm play`;
  const there = VIEWS.filter((view) => page.runsOf(view.needs).length);
  const ids = there.map((view) => view.id).join(" ");
  $("ask").hidden = !there.length || shown?.label === null;
  if (tabs.dataset.views !== ids) {
    tabs.dataset.views = ids;
    const focused = tabs.contains(document.activeElement);
    tabs.replaceChildren(...there.map((view) => h("button", { type: "button", role: "tab", id: `tab-${view.id}`,
      tabindex: -1, "aria-selected": "false", "aria-controls": `panel-${view.id}` }, view.title)));
    panels.replaceChildren(...there.map(panel));
    const asked = there.find((view) => view.id === wanted); // it may come only when a model is loaded
    const waits = runs.every((run) => run.status === "waiting");
    const first = asked ?? (there.includes(shown) ? shown : waits && there.includes(curve) ? curve : there[0]);
    if (first) show(first);
    if (first && focused) $(`tab-${first.id}`).focus();
  } else if (shown) {
    offer();
    if (shown.every) open.get(shown.id).refresh();
  }
});

function panel(view) {
  if (!open.has(view.id)) {
    const made = view.create(page);
    made.panel = h("section", { id: `panel-${view.id}`, role: "tabpanel", "aria-labelledby": `tab-${view.id}`,
      hidden: true }, made.element);
    open.set(view.id, made);
  }
  return open.get(view.id).panel;
}

function show(view) {
  if (shown && shown !== view) open.get(shown.id).leave();
  shown = view;
  for (const tab of tabs.children) {
    const on = tab.id === `tab-${view.id}`;
    tab.setAttribute("aria-selected", String(on));
    if (on) {
      tabStops.go(tab);
      tab.scrollIntoView({ block: "nearest", inline: "nearest" });
    }
  }
  for (const one of panels.children) one.hidden = one.id !== `panel-${view.id}`;
  $("ask").hidden = view.label === null;
  $("text-label").textContent = view.label ?? "";
  offer();
  open.get(view.id).refresh();
}

/** The choice between two models, in views that look at one. */
function offer() {
  const able = page.runsOf(shown.needs);
  choose.hidden = shown.every || page.runs.length < 2;
  const now = page.run?.id;
  if (!typed && now) box.value = page.run.example ?? (page.run.pairs ? "" : given);
  choose.replaceChildren(h("legend", {}, "Model"), ...page.runs.map((run) => {
    const can = able.includes(run);
    return h("label", { title: can ? null : `${page.name(run)} has nothing to show here` },
      h("input", { type: "radio", name: "run", value: run.id, checked: run.id === now, disabled: !can,
        onchange: () => pick(run) }), page.name(run));
  }));
}

function pick(run) {
  chosen = run.id;
  offer();
  choose.querySelector(":checked").focus();
  open.get(shown.id).refresh();
}

const tabStops = roving(tabs, "tab", { move: (_, tab) => page.open(tab.id.slice("tab-".length)) });

const look = later(300, () => open.get(shown?.id)?.refresh());
box.addEventListener("input", () => {
  typed = true;
  look();
});

document.addEventListener("keydown", (event) => {
  const view = open.get(shown?.id);
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    view?.submit?.();
  } else if (event.key === "Escape") view?.escape?.();
});

const THEMES = ["auto", "light", "dark"];

function theme(name) {
  $("theme").textContent = `Colours: ${name}`;
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  document.dispatchEvent(new Event("theme"));
}

$("theme").addEventListener("click", () => {
  const now = document.documentElement.dataset.theme ?? "auto";
  const next = THEMES[(THEMES.indexOf(now) + 1) % THEMES.length];
  theme(next);
  try {
    localStorage.setItem("theme", next);
  } catch {
    // no storage: the choice lasts as long as the page
  }
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => document.dispatchEvent(new Event("theme")));

theme(document.documentElement.dataset.theme ?? "auto");
served.look();
