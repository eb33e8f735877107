// Keeps the first wrong step in sight when the zoom changes; the figure itself needs no script.
const pane = document.querySelector(".pane");
function show() {
  const at = Number(pane.dataset.wrong) / 100;
  pane.scrollLeft = at * pane.scrollWidth - 0.7 * pane.clientWidth;
}
for (const zoom of document.querySelectorAll("input[name=zoom]")) zoom.addEventListener("change", show);
show();
