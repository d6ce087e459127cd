// Light or dark, before the page is painted: the reader's system says, and the button overrules it. Folds, on screen and paper.
"use strict";

const THEMES = ["auto", "light", "dark"];

function storedTheme() {
  try {
    const stored = localStorage.getItem("evalswap-theme");
    return THEMES.includes(stored) ? stored : "auto";
  } catch {
    return "auto"; // a browser may refuse storage to a local file
  }
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  const button = document.getElementById("theme");
  if (button) button.textContent = `Theme: ${theme}`;
}

setTheme(storedTheme());

document.addEventListener("DOMContentLoaded", () => {
  const button = document.getElementById("theme");
  button.hidden = false;
  setTheme(storedTheme());
  button.addEventListener("click", () => {
    const now = document.documentElement.dataset.theme;
    const next = THEMES[(THEMES.indexOf(now) + 1) % THEMES.length];
    setTheme(next);
    try {
      localStorage.setItem("evalswap-theme", next);
    } catch {
      // it holds for this view then
    }
  });
});

// A link into what is folded opens it.
document.addEventListener("click", (event) => {
  const link = event.target.closest("a[href^='#dataset-']");
  const fold = link && document.querySelector(`${link.getAttribute("href")} > details.fold`);
  if (fold) fold.open = true;
});

// Paper has no folds to open: what is folded and belongs on paper is printed open.
let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details.printed:not([open])")];
  for (const fold of opened) fold.open = true;
});
addEventListener("afterprint", () => {
  for (const fold of opened) fold.open = false;
});
