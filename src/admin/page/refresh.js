"use strict";
// Replaces the live parts of the page by those of a new one every two seconds; the page is complete without this.
const note = document.getElementById("refreshed");
async function refresh() {
  if (document.hidden) return;
  try {
    const response = await fetch("/", { headers: { Accept: "text/html" } });
    if (!response.ok) throw new Error("status " + response.status);
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    for (const live of document.querySelectorAll("[data-live]")) {
      const now = page.getElementById(live.id);
      // What somebody has focused, selected or opened stays as it is.
      if (!now || live.innerHTML === now.innerHTML || live.contains(document.activeElement)) continue;
      const opened = [...live.querySelectorAll("details")].map((details) => details.open);
      live.className = now.className;
      live.replaceChildren(...now.childNodes);
      live.querySelectorAll("details").forEach((details, index) => { details.open = opened[index] || false; });
    }
    note.textContent = "Refreshed every 2 s";
  } catch (error) {
    note.textContent = "Not refreshed: " + error.message;
  }
}
(async () => {
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, 2000));
    await refresh();
  }
})();
