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

// the theme draws its search some time after the page, into a root of its own, and wraps tables that scroll
const waiting = setInterval(() => {
  const search = [...document.querySelectorAll("body > div")].find((one) => one.shadowRoot);
  if (!search) return;
  clearInterval(waiting);
  new MutationObserver(() => mend(search.shadowRoot)).observe(search.shadowRoot, { childList: true, subtree: true });
  mend(search.shadowRoot);
  for (const one of document.querySelectorAll(".md-typeset__scrollwrap")) one.tabIndex = 0;
  document.body.dataset.mended = "yes";
}, 50);
