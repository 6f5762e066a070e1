"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  // The figure of the point nearest to the pointer; the titles serve where there is no script.
  const readout = document.getElementById("readout");
  for (const svg of all("svg.figure")) {
    const points = all(".point", svg);
    for (const point of points) {
      const title = point.querySelector("title");
      point.dataset.text = title.textContent;
      title.remove();
    }
    const leave = () => { readout.hidden = true; };
    const look = (event) => {
      let nearest = null, least = 20;
      for (const point of points) {
        const box = point.getBoundingClientRect();
        if (box.width === 0) continue;
        const away = Math.hypot(box.x + box.width / 2 - event.clientX, box.y + box.height / 2 - event.clientY);
        if (away < least) [nearest, least] = [point, away];
      }
      readout.hidden = nearest === null;
      if (nearest === null) return;
      readout.textContent = nearest.dataset.text;
      const box = readout.getBoundingClientRect();
      const x = Math.min(event.clientX + 14, document.documentElement.clientWidth - box.width - 8);
      const above = event.clientY - box.height - 12;
      readout.style.left = `${Math.max(8, x)}px`;
      readout.style.top = `${above > 8 ? above : event.clientY + 18}px`;
    };
    svg.addEventListener("pointermove", look);
    svg.addEventListener("pointerdown", look);
    svg.addEventListener("pointerleave", leave);
    window.addEventListener("scroll", leave, { passive: true });
  }

  // An arm's button hides and shows it everywhere; a pointer over the button sets it off.
  for (const button of all(".legend button")) {
    const parts = all(`[data-arm="${button.dataset.for}"]`);
    const figures = all("svg.figure");
    button.title = "hide or show this arm";
    button.addEventListener("click", () => {
      const shown = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(shown));
      for (const part of parts) part.classList.toggle("off", !shown);
    });
    const pick = (on) => () => {
      for (const part of parts) part.classList.toggle("picked", on);
      for (const figure of figures) figure.classList.toggle("picked", on);
    };
    button.addEventListener("pointerenter", pick(true));
    button.addEventListener("pointerleave", pick(false));
  }

  // A click on a heading sorts by its column, a second one the other way; what has no figure stays last.
  for (const table of all("table.sortable")) {
    const body = table.tBodies[0];
    all("thead th", table).forEach((heading, column) => {
      const sort = () => {
        const down = heading.getAttribute("aria-sort") === "ascending";
        all("thead th", table).forEach((one) => one.removeAttribute("aria-sort"));
        heading.setAttribute("aria-sort", down ? "descending" : "ascending");
        const key = (row) => row.cells[column].dataset.sort;
        const compare = (a, b) => {
          if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
          const numbers = Number(a) - Number(b);
          const order = Number.isNaN(numbers) ? a.localeCompare(b, "en") : numbers;
          return down ? -order : order;
        };
        body.append(...[...body.rows].sort((a, b) => compare(key(a), key(b))));
      };
      heading.classList.add("sortable");
      heading.tabIndex = 0;
      heading.title = "sort by this column";
      heading.addEventListener("click", sort);
      heading.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        sort();
      });
    });
  }
})();
