// Light or dark, before anything is shown: the one that was chosen here, else the system's.
(() => {
  const chosen = localStorage.getItem("ldm-theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const show = (theme) => (document.documentElement.dataset.theme = theme);
  show(chosen || (dark.matches ? "dark" : "light"));
  dark.addEventListener("change", () => localStorage.getItem("ldm-theme") || show(dark.matches ? "dark" : "light"));
})();
