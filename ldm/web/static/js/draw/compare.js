// Before and after, with a slider between: by pointer, touch or arrow keys.
import { h } from "../dom.js";

export function compare(before, after) {
  const slider = h("input", { type: "range", min: 0, max: 100, step: 1, value: 50, "aria-label": "How much is shown as it was before" });
  const covering = h("div", { class: "before" }, h("img", { src: before, alt: "Before" }));
  const handle = h("div", { class: "handle" });
  const show = () => {
    covering.style.clipPath = `inset(0 ${100 - slider.value}% 0 0)`;
    handle.style.left = `${slider.value}%`;
  };
  slider.addEventListener("input", show);
  show();
  const tags = [h("span", { class: "tag left" }, "before"), h("span", { class: "tag right" }, "after")];
  return h("div", { class: "compare" }, h("img", { src: after, alt: "After" }), covering, handle, tags, slider);
}
