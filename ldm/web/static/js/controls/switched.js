// A control with a surface in the work area, switched on and off.
import { h } from "../dom.js";

export function switched(spec, label, hint, surface) {
  const box = h("input", { type: "checkbox", role: "switch", "data-control": spec.name });
  const show = () => (surface.hidden = !box.checked);
  box.addEventListener("change", () => {
    show();
    if (box.checked) surface.scrollIntoView({ block: "nearest", behavior: "smooth" });
  });
  show();
  return {
    element: h("div", { class: "field wide" }, h("label", { class: "switch" }, box, label), h("p", { class: "hint" }, hint)),
    get isOn() {
      return box.checked;
    },
    turn(isOn) {
      box.checked = isOn;
      show();
    },
  };
}
