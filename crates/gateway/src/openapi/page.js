"use strict";
const origin = location.origin;
for (const place of document.querySelectorAll(".origin")) place.textContent = origin;

const search = document.getElementById("search");
const rows = [...document.querySelectorAll("nav li")];
const groups = [...document.querySelectorAll("nav section")];
search.hidden = false;
search.addEventListener("input", () => {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
  }
  for (const group of groups) group.hidden = !group.querySelector("li:not([hidden])");
});
search.addEventListener("keydown", (event) => {
  const first = rows.find((row) => !row.hidden);
  if (event.key === "Enter" && first) location.hash = first.querySelector("a").hash;
});
