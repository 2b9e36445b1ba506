// What a screen reader and a keyboard need and the theme leaves out: names of its search's controls, and reach of what scrolls.
const NAMES = { "lucide-search": "Search", "lucide-list-filter": "Filters" };

function mend(root) {
  for (const box of root.querySelectorAll('input[role="combobox"]')) {
    box.setAttribute("role", "searchbox");
    box.setAttribute("aria-label", "Search");
  }
  for (const button of root.querySelectorAll("button:not([aria-label])")) {
    const icon = Object.keys(NAMES).find((name) => button.querySelector(`svg.${name}`));
    if (icon) button.setAttribute("aria-label", NAMES[icon]);
  }
  for (const one of root.querySelectorAll("div")) {
    if (["auto", "scroll"].includes(getComputedStyle(one).overflowY) || one.matches(".md-typeset__scrollwrap")) one.tabIndex = 0;
  }
}

function mendAll() {
  mend(document);
  for (const one of document.querySelectorAll("body > div")) if (one.shadowRoot) mend(one.shadowRoot);
}

new MutationObserver(mendAll).observe(document.body, { childList: true });
mendAll();
