// Any number of names at once.
import { h } from "../dom.js";
import { titleOf } from "./names.js";

export function tagsControl(spec) {
  const tile = (name) => h("label", {}, h("input", { type: "checkbox", value: name }), h("span", {}, name));
  const row = h("div", { class: "tiles" }, spec.names.map(tile));
  const inputs = () => [...row.querySelectorAll("input")];
  return {
    element: h("fieldset", { class: "field wide", "data-control": spec.name }, h("legend", {}, titleOf(spec.name)), row),
    surface: null,
    read() {
      const chosen = inputs().filter((input) => input.checked).map((input) => input.value);
      return chosen.length ? { cond: chosen.join(";") } : null;
    },
    set(value) {
      const chosen = value.split(";").map((name) => name.trim());
      for (const input of inputs()) input.checked = chosen.includes(input.value);
    },
    clear: () => inputs().forEach((input) => (input.checked = false)),
  };
}
