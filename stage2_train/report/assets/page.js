"use strict";
(function () {
  document.documentElement.classList.add("js");

  // A chart's read-out: the nearest step under the pointer, or arrow keys when the chart has the focus.
  for (const figure of document.querySelectorAll("figure.chart[data-hover]")) {
    const hover = JSON.parse(figure.dataset.hover);
    const svg = figure.querySelector("svg.plot");
    const cursor = svg.querySelector(".cursor");
    const readout = figure.querySelector(".readout");
    let index = -1;
    const show = function (next) {
      index = Math.max(0, Math.min(hover.x.length - 1, next));
      cursor.setAttribute("x1", hover.x[index]);
      cursor.setAttribute("x2", hover.x[index]);
      cursor.style.visibility = "visible";
      const parts = hover.lines
        .filter((line) => line.y[index] !== null)
        .map((line) => line.label + " " + line.y[index]);
      readout.textContent = figure.dataset.x + " " + hover.label[index] + ": " + parts.join(", ");
    };
    const hide = function () {
      cursor.style.visibility = "hidden";
      readout.textContent = "";
    };
    svg.addEventListener("pointermove", function (event) {
      const box = svg.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
      let nearest = 0;
      hover.x.forEach(function (value, at) {
        if (Math.abs(value - x) < Math.abs(hover.x[nearest] - x)) nearest = at;
      });
      show(nearest);
    });
    svg.addEventListener("pointerleave", hide);
    svg.addEventListener("blur", hide);
    svg.addEventListener("keydown", function (event) {
      const last = hover.x.length - 1;
      const next = { ArrowRight: index + 1, ArrowLeft: index < 0 ? last : index - 1, Home: 0, End: last }[event.key];
      if (next === undefined) return;
      event.preventDefault();
      show(next);
    });
  }

  // The gallery: filter by reason, split and text; sort by any number a card carries.
  const form = document.querySelector("form.filter");
  if (!form) return;
  const list = document.getElementById("cards");
  const cards = Array.from(list.querySelectorAll("article.card"));
  const output = form.querySelector("output");
  const number = (card, key) => (card.dataset[key] === "" ? -Infinity : Number(card.dataset[key]));
  const apply = function () {
    const chosen = Object.fromEntries(new FormData(form));
    const wanted = (chosen.text || "").trim().toLowerCase();
    let visible = 0;
    for (const card of cards) {
      const keep =
        (!chosen.tag || card.dataset.tags.split("|").includes(chosen.tag)) &&
        (!chosen.split || card.dataset.split === chosen.split) &&
        (!wanted || card.dataset.text.toLowerCase().includes(wanted));
      card.hidden = !keep;
      if (keep) visible += 1;
    }
    const [key, direction] = chosen.sort.split(" ");
    const sign = direction === "up" ? 1 : -1;
    const sorted = cards.slice().sort((a, b) => sign * (number(a, key) - number(b, key)) || 0);
    list.append(...sorted);
    output.textContent = visible + " of " + cards.length + " shown";
  };
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(apply));
  apply();
})();
