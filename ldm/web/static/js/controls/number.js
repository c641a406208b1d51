// A number in its range, or left open.
import { freshId, h } from "../dom.js";
import { titleOf } from "./names.js";

export function numberControl(spec) {
  const id = freshId("number");
  const step = (spec.high - spec.low) / 200 >= 1 ? 1 : "any";
  const slider = h("input", { id, type: "range", min: spec.low, max: spec.high, step: step === 1 ? 1 : (spec.high - spec.low) / 200 });
  const field = h("input", { type: "number", min: spec.low, max: spec.high, step, placeholder: "any", "aria-label": titleOf(spec.name), "data-control": spec.name });
  slider.addEventListener("input", () => (field.value = Number(Number(slider.value).toPrecision(6))));
  field.addEventListener("input", () => field.value && (slider.value = field.value));
  return {
    element: h("div", { class: "field" }, h("label", { for: id }, titleOf(spec.name)), h("div", { class: "slider" }, slider, field)),
    surface: null,
    read: () => (field.value === "" ? null : { cond: field.value }),
    set(value) {
      field.value = value;
      slider.value = value;
    },
    clear: () => (field.value = ""),
  };
}
