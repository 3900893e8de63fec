"use strict";

// Tables: a click on a heading sorts by its column, a second one the other way round.
function valueOf(row, column) {
  const cell = row.cells[column];
  const text = cell.textContent.trim();
  if ("v" in cell.dataset) return Number(cell.dataset.v);
  return text === "–" || text === "" ? null : text;
}

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  if (typeof a === "number") return -1;
  if (typeof b === "number") return 1;
  return a.localeCompare(b, undefined, { numeric: true });
}

function sortBy(heading) {
  const table = heading.closest("table");
  const body = table.tBodies[0];
  const column = heading.cellIndex;
  // Numbers are wanted largest first, words from A on.
  const first = heading.classList.contains("num") ? "descending" : "ascending";
  const other = first === "ascending" ? "descending" : "ascending";
  const order = heading.getAttribute("aria-sort") === first ? other : first;
  const sign = order === "ascending" ? 1 : -1;
  const rows = Array.from(body.rows, (row) => [valueOf(row, column), row]);
  rows.sort(([a], [b]) => {
    if (a === null || b === null) return (a === null) - (b === null);
    return sign * compare(a, b);
  });
  body.append(...rows.map(([, row]) => row));
  for (const each of table.tHead.rows[0].cells) {
    each.setAttribute("aria-sort", each === heading ? order : "none");
  }
}

for (const button of document.querySelectorAll(".sortable thead button")) {
  button.addEventListener("click", () => sortBy(button.closest("th")));
}

// A table that goes on to the right shows it.
function fade(box) {
  const rest = box.scrollWidth - box.clientWidth - box.scrollLeft;
  box.classList.toggle("goes-on", rest > 1);
}

for (const box of document.querySelectorAll(".scroll")) {
  box.addEventListener("scroll", () => fade(box), { passive: true });
  new ResizeObserver(() => fade(box)).observe(box);
}

// Players: one at a time. Within a clip the next one goes on where the last one was.
let playing = null;

function clipOf(player) {
  return player.closest(".versions");
}

function headOf(player) {
  return player.closest(".version").querySelector(".head");
}

function show(player) {
  const head = headOf(player);
  const seconds = Number(clipOf(player).dataset.seconds);
  head.hidden = false;
  head.style.left = `${Math.min(100, (100 * player.currentTime) / seconds)}%`;
}

function follow(player) {
  show(player);
  if (!player.paused) requestAnimationFrame(() => follow(player));
}

function started(player) {
  if (playing && playing !== player && !playing.paused) {
    const place = playing.currentTime;
    playing.pause();
    if (clipOf(playing) === clipOf(player)) player.currentTime = place;
  }
  playing = player;
  follow(player);
}

for (const player of document.querySelectorAll("audio")) {
  player.addEventListener("play", () => started(player));
  player.addEventListener("seeking", () => show(player));
  player.addEventListener("ended", () => { headOf(player).hidden = true; });
}

for (const picture of document.querySelectorAll(".spectrogram")) {
  picture.addEventListener("click", (event) => {
    const player = picture.closest(".version").querySelector("audio");
    const box = picture.getBoundingClientRect();
    const seconds = Number(clipOf(player).dataset.seconds);
    player.currentTime = (seconds * (event.clientX - box.left)) / box.width;
    player.play();
  });
}
