// Light or dark before the first paint, so that nothing flashes. main.js has the button.
"use strict";
try {
  const theme = localStorage.getItem("theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // no storage: the system's choice holds
}
