"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  // Tooltip for the point nearest to the pointer. Without scripts, the SVG titles are shown instead.
  const readout = document.getElementById("readout");
  for (const svg of all("svg.figure")) {
    const points = all(".point", svg);
    for (const point of points) {
      const title = point.querySelector("title");
      point.dataset.text = title.textContent;
      title.remove();
    }
    const hide = () => { readout.hidden = true; };
    const show = (event) => {
      let nearest = null, least = 20; // pixels
      for (const point of points) {
        const box = point.getBoundingClientRect();
        if (box.width === 0) continue;
        const distance = Math.hypot(box.x + box.width / 2 - event.clientX, box.y + box.height / 2 - event.clientY);
        if (distance < least) [nearest, least] = [point, distance];
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
    svg.addEventListener("pointermove", show);
    svg.addEventListener("pointerdown", show);
    svg.addEventListener("pointerleave", hide);
    window.addEventListener("scroll", hide, { passive: true });
  }

  // An arm's button hides and shows the arm everywhere; hovering over the button highlights it.
  for (const button of all(".legend button")) {
    const parts = all(`[data-arm="${button.dataset.for}"]`);
    const figures = all("svg.figure");
    button.title = "hide or show this arm";
    button.addEventListener("click", () => {
      const shown = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(shown));
      for (const part of parts) part.classList.toggle("off", !shown);
    });
    const highlight = (on) => () => {
      for (const part of parts) part.classList.toggle("picked", on);
      for (const figure of figures) figure.classList.toggle("picked", on);
    };
    button.addEventListener("pointerenter", highlight(true));
    button.addEventListener("pointerleave", highlight(false));
  }

  // Clicking a heading sorts by its column, clicking again reverses the order. Cells without a value stay last.
  for (const table of all("table.sortable")) {
    const body = table.tBodies[0];
    all("thead th", table).forEach((heading, column) => {
      const sort = () => {
        const down = heading.getAttribute("aria-sort") === "ascending";
        all("thead th", table).forEach((other) => other.removeAttribute("aria-sort"));
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
