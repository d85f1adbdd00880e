"use strict";

// Keeps the page up to date: fetches it again and puts its new content in place of the old, while
// nobody is reading closely. Without this script the page is a page.

(() => {
  const EVERY = 1000 * document.body.dataset.every;
  const PATIENCE = 5000;
  const TRIES_FOR_PROCESS = 6;
  const button = document.getElementById("pause");
  const state = document.getElementById("state");
  let isPaused = false;
  let isFetching = false;

  const fetchPage = async () => {
    let page;
    // Where several processes answer, one that has another's numbers is asked again.
    for (let tries = 0; tries < TRIES_FOR_PROCESS; tries++) {
      const response = await fetch(location.href, {
        cache: "no-store",
        credentials: "same-origin",
        signal: AbortSignal.timeout(PATIENCE),
      });
      if (!response.ok) throw new Error(`It answers ${response.status}.`);
      page = new DOMParser().parseFromString(await response.text(), "text/html");
      if (page.body.dataset.process === document.body.dataset.process) break;
    }
    return page;
  };

  const replaceContent = (page) => {
    const before = document.querySelector("main");
    const after = page.querySelector("main");
    const open = [...before.querySelectorAll("details[open][id]")].map((each) => each.id);
    for (const id of open) after.querySelector(`#${CSS.escape(id)}`)?.setAttribute("open", "");
    const focused = before.contains(document.activeElement) ? document.activeElement : null;
    const key = focused?.id || focused?.getAttribute("href");
    const scrolled = new Map(
      [...before.querySelectorAll("[data-scroll]")].map((each) => [each.dataset.scroll, each.scrollLeft]),
    );
    before.replaceChildren(...after.childNodes);
    for (const each of before.querySelectorAll("[data-scroll]")) {
      each.scrollLeft = scrolled.get(each.dataset.scroll) ?? 0;
    }
    if (key) {
      const again = [...before.querySelectorAll("a, button, summary")].find(
        (each) => (each.id || each.getAttribute("href")) === key,
      );
      again?.focus({ preventScroll: true });
    }
    document.body.dataset.process = page.body.dataset.process;
    document.getElementById("process").textContent = page.getElementById("process").textContent;
  };

  const isBeingRead = () => {
    const selection = getSelection();
    return !selection.isCollapsed && document.querySelector("main").contains(selection.anchorNode);
  };

  const refresh = async () => {
    if (isPaused || isFetching || document.hidden || isBeingRead()) return;
    isFetching = true;
    try {
      const page = await fetchPage();
      if (!isPaused && !isBeingRead()) replaceContent(page);
      document.body.classList.remove("lost");
      state.textContent = "Live";
    } catch (error) {
      document.body.classList.add("lost");
      state.textContent = "The app does not answer. Trying again…";
    } finally {
      isFetching = false;
    }
  };

  if (!button) return;
  button.hidden = false;
  state.textContent = "Live";
  button.addEventListener("click", () => {
    isPaused = !isPaused;
    button.setAttribute("aria-pressed", String(isPaused));
    document.body.classList.toggle("paused", isPaused);
    state.textContent = isPaused ? "Paused" : "Live";
    refresh();
  });
  document.addEventListener("visibilitychange", refresh);
  setInterval(refresh, EVERY);
})();
