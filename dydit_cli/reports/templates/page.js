"use strict";
// A heading of a table sorts its rows: first from large to small for numbers, from a to z for names, then the other way.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, place) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const before = heading.getAttribute("aria-sort");
      const first = heading.className === "number" ? "descending" : "ascending";
      const other = { ascending: "descending", descending: "ascending" };
      headings.forEach((one) => one.removeAttribute("aria-sort"));
      const order = before ? other[before] : first;
      heading.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const value = (row) => row.cells[place].dataset.value;
      const rows = [...body.rows];
      rows.sort((one, two) => {
        const a = value(one), b = value(two);
        if (a === undefined || b === undefined) return (a === undefined) - (b === undefined); // nothing is always last
        const numbers = !Number.isNaN(Number(a)) && !Number.isNaN(Number(b)) && a !== "" && b !== "";
        return sign * (numbers ? Number(a) - Number(b) : a.localeCompare(b, "en", { numeric: true }));
      });
      body.append(...rows);
    });
  });
}
// Of what was taken at several settings one is shown, and a slider chooses which.
for (const slider of document.querySelectorAll(".slider")) {
  const frames = [...slider.querySelectorAll(".frame")];
  const row = document.createElement("label");
  const input = document.createElement("input");
  const value = document.createElement("output");
  Object.assign(input, { type: "range", min: 0, max: frames.length - 1, step: 1, value: frames.length - 1 });
  row.append(slider.dataset.dial, input, value);
  slider.querySelector("h3").after(row);
  slider.classList.add("live");
  const move = () => {
    frames.forEach((frame, i) => { frame.hidden = i !== Number(input.value); });
    value.textContent = frames[input.value].dataset.stop;
    input.setAttribute("aria-valuetext", value.textContent);
  };
  input.addEventListener("input", move);
  move();
}
// A sampling run step by step: the dial, or the pointer on the map, moves all of its pictures.
for (const film of document.querySelectorAll(".film")) {
  const texts = JSON.parse(film.dataset.texts);
  const strip = film.querySelector(".strip");
  const row = document.createElement("label");
  const input = document.createElement("input");
  const value = document.createElement("output");
  Object.assign(input, { type: "range", min: 0, max: texts.length - 1, step: 1, value: texts.length - 1 });
  input.setAttribute("aria-label", film.dataset.dial);
  row.append(input, value);
  strip.after(row);
  const move = () => {
    film.style.setProperty("--step", input.value);
    value.textContent = texts[input.value];
    input.setAttribute("aria-valuetext", value.textContent);
  };
  const point = (event) => {
    const box = strip.getBoundingClientRect();
    input.value = Math.floor((texts.length * (event.clientX - box.left)) / box.width);
    move();
  };
  input.addEventListener("input", move);
  strip.addEventListener("pointermove", point);
  strip.addEventListener("pointerdown", point);
  move();
}
// Values of points and bars beside the pointer, at once and on a touch too.
const tip = document.createElement("div");
tip.id = "tip";
tip.hidden = true;
document.body.append(tip);
for (const title of document.querySelectorAll(".plate svg title")) {
  const mark = title.parentNode;
  mark.dataset.tip = title.textContent;
  mark.setAttribute("aria-label", title.textContent);
  title.remove();
}
const show = (event) => {
  const mark = event.target instanceof Element ? event.target.closest("[data-tip]") : null;
  tip.hidden = !mark;
  if (!mark) return;
  tip.textContent = mark.dataset.tip;
  const box = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(event.clientX + 12, innerWidth - box.width - 4))}px`;
  tip.style.top = `${event.clientY + 16 + box.height > innerHeight ? event.clientY - box.height - 10 : event.clientY + 16}px`;
};
document.addEventListener("pointermove", show);
document.addEventListener("pointerdown", show);
