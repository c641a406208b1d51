// A map of classes, painted: what is sent is the buffer of indices itself.
import { bytes, get, upload, uploaded } from "../api.js";
import { h } from "../dom.js";
import { icon } from "../icons.js";
import { IndexBuffer } from "../paint/buffer.js";
import { rgb } from "../paint/colours.js";
import { Painter } from "../paint/painter.js";
import { told } from "../toast.js";
import { titleOf } from "./names.js";
import { switched } from "./switched.js";

export function mapControl(spec, model) {
  const nameOf = (index) => spec.names[index] ?? `class ${index}`;
  const classes = [...Array(spec.count).keys()].map((index) => ({ value: index, name: nameOf(index), colour: rgb(spec.colours[index]) }));
  classes.push({ value: spec.count, name: "unknown: the model decides", colour: [150, 150, 150] });
  const painter = new Painter({
    label: `${titleOf(spec.name)}: paint the classes`,
    classes,
    ground: 0,
    first: Math.min(5, spec.count - 1),
    width: model.width,
    height: model.height,
    onFile: told(async (file) => take((await upload("map", file, { model: model.name, control: spec.name })).name)),
  });
  const examples = h("div", { class: "examples-row", hidden: true });
  const more = h("button", { class: "button", type: "button", "aria-expanded": false, onclick: told(() => showExamples()) }, icon("brush"), "Begin with a picture's map");
  painter.element.append(h("div", { class: "input-bar" }, more), examples);
  const surface = h("section", { class: "card", "aria-label": `Paint the ${spec.name}` }, painter.element);
  const toggle = switched(spec, "Paint a map", "Say with classes what lies where. It is sent as whole numbers: no colour can blend.", surface);

  async function take(name) {
    const answer = await bytes(`${uploaded(name)}/indices`);
    const [width, height] = [Number(answer.headers.get("x-width")), Number(answer.headers.get("x-height"))];
    painter.load(new IndexBuffer(width, height, new Uint16Array(await answer.arrayBuffer())));
  }

  async function showExamples() {
    if (!examples.children.length) {
      const found = await get("/api/uploads/examples", { model: model.name, control: spec.name });
      if (!found.length) throw new Error("there are no pictures with maps of these classes at hand: open a map file instead");
      const tile = (one) =>
        h("button", { type: "button", title: one.caption, "aria-label": `The map of ${one.caption || "a picture"}`, onclick: told(() => take(one.map)) }, h("img", { src: uploaded(one.picture), alt: "" }));
      examples.append(...found.map(tile));
      examples.hidden = true;
    }
    examples.hidden = !examples.hidden;
    more.setAttribute("aria-expanded", !examples.hidden);
  }

  return {
    element: toggle.element,
    surface,
    async read() {
      if (!toggle.isOn) return null;
      const { width, height, data } = painter.buffer;
      return { file: (await upload("indices", data, { model: model.name, control: spec.name, width, height })).name };
    },
    async set(name) {
      await take(name);
      toggle.turn(true);
    },
    clear: () => toggle.turn(false),
  };
}
