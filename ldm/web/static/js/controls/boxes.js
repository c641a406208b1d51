// Boxes of classes, drawn with the pointer, or typed.
import { bytes, upload, uploaded } from "../api.js";
import { h } from "../dom.js";
import { icon } from "../icons.js";
import { BoxCanvas } from "../paint/boxes.js";
import { titleOf } from "./names.js";
import { switched } from "./switched.js";

export function boxesControl(spec, model) {
  let boxes = [];
  const chosen = h("input", { type: "number", min: 0, max: spec.count - 1, value: 0, "aria-label": "Class of the next box" });
  const list = h("div", { class: "box-list" });
  const canvas = new BoxCanvas(model.width / model.height, spec.colours, (corners) => {
    if (boxes.length < spec.most) boxes.push([Number(chosen.value), ...corners]);
    show();
  });

  function show() {
    canvas.show(boxes);
    list.replaceChildren(
      ...boxes.map((box, number) =>
        h(
          "div",
          {},
          h("span", {}, `class ${box[0]}: ${box.slice(1).map((share) => share.toFixed(2)).join(", ")}`),
          h("button", { class: "icon", "aria-label": `Remove box ${number + 1}`, onclick: () => (boxes.splice(number, 1), show()) }, icon("close")),
        ),
      ),
      h("p", { class: "quiet small" }, boxes.length ? `${boxes.length} of at most ${spec.most}` : "Drag over the picture to place a box."),
    );
  }
  show();

  const surface = h(
    "section",
    { class: "card painter", "aria-label": "Place boxes" },
    h("h2", {}, titleOf(spec.name)),
    h("div", { class: "painter-area" }, canvas.element, h("div", { class: "field" }, h("span", { class: "label" }, "Class"), chosen, list)),
  );
  const toggle = switched(spec, "Place boxes", "Say which class lies where.", surface);
  return {
    element: toggle.element,
    surface,
    read: async () => (toggle.isOn && boxes.length ? { file: (await upload("boxes", JSON.stringify(boxes))).name } : null),
    async set(name) {
      boxes = await (await bytes(uploaded(name))).json();
      toggle.turn(true);
      show();
    },
    clear: () => toggle.turn(false),
  };
}
