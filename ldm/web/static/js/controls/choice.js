// One of several classes: tiles; a number field where there are too many, or they have no names.
import { freshId, h } from "../dom.js";
import { titleOf } from "./names.js";

const MOST_TILES = 200;

export function choiceControl(spec) {
  return spec.names.length && spec.names.length <= MOST_TILES ? tiles(spec) : typed(spec);
}

function tiles(spec) {
  const group = freshId("choice");
  const tile = (value, label) =>
    h("label", {}, h("input", { type: "radio", name: group, value, checked: value === "" }), h("span", {}, label));
  const row = h("div", { class: "tiles" }, tile("", "Any"), spec.names.map((name) => tile(name, name)));
  const chosen = () => row.querySelector("input:checked");
  return {
    element: h("fieldset", { class: "field wide", "data-control": spec.name }, h("legend", {}, titleOf(spec.name)), row),
    surface: null,
    read: () => (chosen() && chosen().value ? { cond: chosen().value } : null),
    set(value) {
      const name = spec.names.includes(value) ? value : spec.names[Number(value)] ?? "";
      for (const input of row.querySelectorAll("input")) input.checked = input.value === name;
    },
    clear: () => (row.querySelector("input").checked = true),
  };
}

function typed(spec) {
  const id = freshId("choice");
  const list = freshId("names");
  const input = h("input", { id, list, placeholder: `Any, or 0 to ${spec.count - 1}`, "data-control": spec.name });
  return {
    element: h(
      "div",
      { class: "field" },
      h("label", { for: id }, titleOf(spec.name)),
      input,
      h("datalist", { id: list }, spec.names.map((name) => h("option", { value: name }))),
    ),
    surface: null,
    read: () => (input.value.trim() ? { cond: input.value.trim() } : null),
    set: (value) => (input.value = value),
    clear: () => (input.value = ""),
  };
}
