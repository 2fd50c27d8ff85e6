
"use strict";
// Cards open from a link, and a bar to find them; without this script all cards are listed.
const openTarget = () => {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target instanceof HTMLDetailsElement) target.open = true;
};
addEventListener("hashchange", openTarget);
openTarget();

// Paper has no cards to open.
let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details.card:not([open])")];
  for (const card of opened) card.open = true;
});
addEventListener("afterprint", () => {
  for (const card of opened) card.open = false;
});

const bar = document.querySelector(".filter");
if (bar) {
  const cards = [...document.querySelectorAll("details.card")];
  const texts = cards.map((card) =>
    `${card.querySelector("summary").textContent} ${card.dataset.about}`.toLowerCase());
  const search = bar.querySelector("input");
  const kind = bar.querySelector("select");
  const count = bar.querySelector("output");
  const shown = () => cards.filter((card) => !card.hidden);
  const apply = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    cards.forEach((card, i) => {
      const isKind = !kind.value || card.dataset.kind === kind.value;
      card.hidden = !(isKind && words.every((word) => texts[i].includes(word)));
    });
    count.textContent = `${shown().length} of ${cards.length} cards`;
  };
  search.addEventListener("input", apply);
  kind.addEventListener("change", apply);
  for (const button of bar.querySelectorAll("button")) {
    button.addEventListener("click", () => {
      for (const card of shown()) card.open = button.value === "open";
    });
  }
  bar.hidden = false;
  apply();
}
