"use strict";
// Replaces the live parts of the page by those of a new one every two seconds; the page is complete without this.
const note = document.getElementById("refreshed");
let last = new Date();
// What can be focused, scrolled or opened; a new page has the same in the same order.
const boxes = (part) => [...part.querySelectorAll("[tabindex], details, summary")];
// A live region is announced whenever it is written to.
const report = (text) => { if (note.textContent !== text) note.textContent = text; };
function replace(live, now) {
  const before = boxes(live).map((box) => [box === document.activeElement, box.scrollLeft, box.open]);
  live.className = now.className;
  live.replaceChildren(...now.childNodes);
  boxes(live).forEach((box, index) => {
    const [focused, scrolled, open] = before[index] || [];
    if (open) box.open = true;
    if (focused) box.focus({ preventScroll: true });
    box.scrollLeft = scrolled || 0;
  });
}
async function refresh() {
  try {
    const response = await fetch("/", { headers: { Accept: "text/html" }, signal: AbortSignal.timeout(5000) });
    if (!response.ok) throw new Error("status " + response.status);
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    const selection = getSelection();
    let isHeld = false;
    for (const live of document.querySelectorAll("[data-live]")) {
      const now = page.getElementById(live.id);
      if (!now || live.innerHTML === now.innerHTML) continue;
      // Selected text stays, to be copied.
      if (selection.isCollapsed || !selection.containsNode(live, true)) replace(live, now);
      else isHeld = true;
    }
    document.title = page.title;
    document.body.classList.remove("stale");
    last = new Date();
    report(isHeld ? "Not refreshed where text is selected" : "Refreshed every 2 s");
  } catch (error) {
    document.title = "No answer: zvgate";
    document.body.classList.add("stale");
    report("Not refreshed since " + last.toLocaleTimeString() + ": " + error.message);
  }
}
report("Refreshed every 2 s");
document.addEventListener("visibilitychange", () => document.hidden || refresh());
(async () => {
  for (;;) {
    // In the background only the title is seen.
    await new Promise((resolve) => setTimeout(resolve, document.hidden ? 30000 : 2000));
    await refresh();
  }
})();
