"use strict";
const all = selector => [...document.querySelectorAll(selector)];
const opened = node => { for (let box = node; box; box = box.parentElement) if (box.tagName === "DETAILS") box.open = true; };
document.getElementById("show").addEventListener("click", event => {
  const masks = all("details.mask"), open = masks.some(mask => !mask.open);
  masks.forEach(mask => { mask.open = open; });
  event.target.textContent = open ? "hide harmful text" : "show harmful text";
});
document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || /INPUT|TEXTAREA/.test(event.target.tagName)) return;
  const samples = all("article.sample"), here = document.activeElement.closest?.("article.sample");
  if (event.key === "Enter" && here === document.activeElement && here) { const mask = here.querySelector("details.mask"); if (mask) mask.open = !mask.open; return; }
  if (!["j", "k"].includes(event.key)) return;
  const at = samples.indexOf(here), next = samples[Math.max(0, Math.min(samples.length - 1, at + (event.key === "j" ? 1 : -1)))];
  if (!next) return;
  opened(next.parentElement);
  next.focus();
  next.scrollIntoView({ block: "nearest" });
});
// Numbers link to their traces: in the viewer where it serves this page, else to a sample below and the way to see all.
const served = location.protocol.startsWith("http");
for (const link of all("a.to")) {
  if (served) { link.href = `./#${link.dataset.where}`; continue; }
  link.addEventListener("click", event => {
    event.preventDefault();
    const wanted = new URLSearchParams(link.dataset.where), hint = document.getElementById("wanted");
    wanted.delete("trace");
    const found = all("article.sample").find(sample => { const own = new URLSearchParams(sample.dataset.where); return [...wanted].every(([key, value]) => own.get(key) === value); });
    hint.hidden = false;
    hint.textContent = `All of them: demur view RUN, then open its address with #${link.dataset.where}`;
    if (found) { opened(found.parentElement); found.focus(); }
    hint.scrollIntoView({ block: "start" });
  });
}
for (const input of all("input.filter")) {
  const section = input.closest("section"), rows = [...section.querySelectorAll("tbody tr")], texts = rows.map(row => row.textContent.toLowerCase());
  const show = () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    rows.forEach((row, i) => { row.hidden = !words.every(word => texts[i].includes(word)); count += !row.hidden; });
    section.querySelector(".count").textContent = `${count.toLocaleString("en")} of ${rows.length.toLocaleString("en")}`;
  };
  input.addEventListener("input", show);
  show();
}
const reach = () => { const target = location.hash.length > 1 && document.getElementById(location.hash.slice(1)); if (target) { opened(target.querySelector("details")); target.scrollIntoView(); } };
window.addEventListener("hashchange", reach);
reach();
