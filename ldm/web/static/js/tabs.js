// The pages of the bar, with arrow keys as the pattern for tabs has them; the address keeps which is open.
export function tabs(onOpen) {
  const buttons = [...document.querySelectorAll('.tabs [role="tab"]')];
  const open = (button) => {
    for (const one of buttons) {
      const isOpen = one === button;
      one.setAttribute("aria-selected", isOpen);
      one.tabIndex = isOpen ? 0 : -1;
      document.getElementById(one.getAttribute("aria-controls")).hidden = !isOpen;
    }
    const name = button.getAttribute("aria-controls");
    history.replaceState(null, "", name === "draw" ? location.pathname : `#${name}`);
    onOpen(name);
  };
  for (const [number, button] of buttons.entries()) {
    button.addEventListener("click", () => open(button));
    button.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const next = buttons[(number + step + buttons.length) % buttons.length];
      next.focus();
      open(next);
    });
  }
  const show = (name) => open(document.getElementById(`tab-${name}`));
  show(location.hash === "#runs" ? "runs" : "draw");
  return show;
}
