// What a screen reader and a keyboard need and the theme leaves out: names of its search's controls, and reach of what scrolls.
const NAMES = { "lucide-search": "Search", "lucide-list-filter": "Filters" };

function mend(search) {
  for (const box of search.querySelectorAll('input[role="combobox"]')) {
    box.setAttribute("role", "searchbox");
    box.setAttribute("aria-label", "Search");
  }
  for (const [icon, name] of Object.entries(NAMES)) {
    for (const drawn of search.querySelectorAll(`button > svg.${icon}`)) drawn.parentElement.setAttribute("aria-label", name);
  }
  for (const one of search.querySelectorAll("div:has(> div > h3)")) one.tabIndex = 0;
}

// the theme draws its search after the page, into a root of its own, and wraps each table
const drawing = new MutationObserver(() => {
  for (const one of document.querySelectorAll("body > div")) {
    if (one.shadowRoot && !one.dataset.mended) {
      one.dataset.mended = "yes";
      new MutationObserver(() => mend(one.shadowRoot)).observe(one.shadowRoot, { childList: true, subtree: true });
      mend(one.shadowRoot);
    }
  }
  for (const one of document.querySelectorAll(".md-typeset__scrollwrap")) one.tabIndex = 0;
});
drawing.observe(document.body, { childList: true, subtree: true });
