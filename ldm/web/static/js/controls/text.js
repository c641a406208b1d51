import { freshId, h } from "../dom.js";
import { titleOf } from "./names.js";

export function textControl(spec, model) {
  const isOnly = model.controls.filter((one) => one.kind === "text").length === 1;
  const id = freshId("text");
  const area = h("textarea", { id, rows: 3, maxlength: 4000, placeholder: "What should be in the picture?", "data-control": spec.name });
  return {
    element: h("div", { class: "field wide" }, h("label", { for: id }, isOnly ? "Prompt" : titleOf(spec.name)), area),
    surface: null,
    read: () => (area.value.trim() ? { cond: area.value.trim() } : null),
    set: (value) => (area.value = value),
    clear: () => (area.value = ""),
    focus: () => area.focus(),
  };
}
