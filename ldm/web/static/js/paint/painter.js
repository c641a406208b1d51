// Painting on a buffer of classes: tools, palette, undo, zoom, by pointer, touch and keyboard.
import { freshId, h } from "../dom.js";
import { icon } from "../icons.js";
import { IndexBuffer, joined } from "./buffer.js";
import { css } from "./colours.js";
import { History } from "./history.js";
import { followPointers } from "./pointer.js";
import { View } from "./view.js";

const TOOLS = [
  ["brush", "Brush", "b"],
  ["line", "Line", "l"],
  ["fill", "Fill", "f"],
  ["erase", "Eraser", "e"],
];
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export class Painter {
  // classes: [{value, name, colour: [r, g, b, a?]}]; ground: the value of an empty picture; onFile: a map's file was chosen, or undefined.
  constructor({ label, classes, ground, first, width, height, onFile, onChange = () => {} }) {
    Object.assign(this, { classes, ground, onChange });
    this.value = first;
    this.tool = "brush";
    this.colours = new Map(classes.map((one) => [one.value, one.colour]));
    this.canvas = h("canvas", { tabindex: 0, role: "application", "aria-label": `${label}. Arrow keys move, space paints, B L F E choose a tool.` });
    this.frame = h("div", { class: "canvas-frame" }, this.canvas);
    this.view = new View(this.canvas, (value) => this.colours.get(value) ?? [255, 0, 255]);
    this.element = h("div", { class: "painter" }, this.bar(label, onFile), this.area());
    this.load(this.fresh(width, height));
    followPointers(this.canvas, this.view, {
      down: (point) => this.begin(point),
      move: (point) => this.drag(point),
      up: () => this.end(),
      cancel: () => this.abandon(),
    });
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    this.canvas.addEventListener("blur", () => this.place(null));
  }

  fresh(width, height) {
    const buffer = new IndexBuffer(width, height);
    buffer.clear(this.ground);
    return buffer;
  }

  load(buffer, backdrop = null) {
    this.buffer = buffer;
    this.history = new History(buffer);
    this.stroke = null;
    this.view.show(buffer, backdrop);
    const side = Math.min(buffer.width, buffer.height);
    this.size.max = Math.max(3, Math.round(side / 2));
    this.size.value = Math.max(2, Math.round(side / 10));
    this.sizeChanged();
    this.changed();
  }

  bar(label, onFile) {
    this.buttons = new Map(TOOLS.map(([name, title, key]) => [name, this.button(name, `${title} (${key.toUpperCase()})`, () => this.use(name))]));
    this.size = h("input", { type: "range", min: 1, max: 10, value: 4, "aria-label": "Width of the brush, in pixels", oninput: () => this.sizeChanged() });
    this.sizeShown = h("output", {});
    this.undoButton = this.button("undo", "Undo (Ctrl+Z)", () => this.undo());
    this.redoButton = this.button("redo", "Redo (Ctrl+Shift+Z)", () => this.redo());
    const file = onFile && h("input", { type: "file", accept: "image/*", hidden: true, onchange: () => file.files.length && onFile(file.files[0]).then(() => (file.value = "")) });
    const groups = [
      [...this.buttons.values()],
      [h("label", { class: "brush" }, this.size, this.sizeShown)],
      [this.undoButton, this.redoButton, this.button("clear", "Clear all", () => this.clear())],
      [this.button("minus", "Zoom out", () => this.view.zoomBy(1 / 1.5)), this.button("plus", "Zoom in", () => this.view.zoomBy(1.5)), this.button("fit", "Show all", () => (this.view.fit(), this.view.draw()))],
      file ? [h("button", { class: "button", onclick: () => file.click() }, icon("file"), "Open a map"), file] : [],
    ];
    this.use("brush");
    return h("div", { class: "painter-bar", role: "toolbar", "aria-label": label }, groups.filter((one) => one.length).map((one) => h("div", { class: "group" }, one)));
  }

  area() {
    if (this.classes.length <= 2) return h("div", { class: "painter-area plain" }, this.frame);
    const group = freshId("class");
    const swatch = (one) => {
      const square = h("i", {});
      square.style.background = css(one.colour);
      return h("label", {}, h("input", { type: "radio", name: group, value: one.value, checked: one.value === this.value, onchange: () => (this.value = one.value) }), square, one.name);
    };
    const palette = h("div", { class: "palette", role: "radiogroup", "aria-label": "Class to paint" }, this.classes.map(swatch));
    return h("div", { class: "painter-area" }, this.frame, palette);
  }

  button(name, title, action) {
    return h("button", { class: "icon", type: "button", title, "aria-label": title, onclick: action }, icon(name));
  }

  use(tool) {
    this.tool = tool;
    for (const [name, button] of this.buttons) button.setAttribute("aria-pressed", name === tool);
  }

  sizeChanged() {
    this.sizeShown.value = `${this.size.value} px`;
  }

  get radius() {
    return (Number(this.size.value) - 1) / 2;
  }

  begin(point) {
    this.canvas.focus({ preventScroll: true });
    const value = this.tool === "erase" ? this.ground : this.value;
    this.history.begin();
    this.stroke = { start: point, last: point, value, area: null };
    if (this.tool === "fill") {
      if (this.buffer.has(point.x, point.y)) this.touched(this.buffer.fill(point.x, point.y, value));
      this.end();
    } else {
      this.touched(this.buffer.stroke(point, point, this.radius, value));
    }
  }

  drag(point) {
    const { stroke } = this;
    if (!stroke || (point.x === stroke.last.x && point.y === stroke.last.y)) return;
    if (this.tool === "line") {
      this.buffer.data.set(this.history.before); // only the line to where the pointer is now
      this.view.changed(stroke.area);
      stroke.area = null;
      this.touched(this.buffer.stroke(stroke.start, point, this.radius, stroke.value));
    } else {
      this.touched(this.buffer.stroke(stroke.last, point, this.radius, stroke.value));
    }
    stroke.last = point;
  }

  touched(area) {
    this.stroke.area = joined(this.stroke.area, area);
    this.view.changed(area);
  }

  end() {
    if (!this.stroke) return;
    this.history.end(this.stroke.area);
    this.stroke = null;
    this.changed();
  }

  // A second finger came: it was no stroke.
  abandon() {
    if (!this.stroke) return;
    this.buffer.data.set(this.history.before);
    this.view.changed(this.buffer.whole);
    this.stroke = null;
  }

  clear() {
    this.history.begin();
    this.buffer.clear(this.ground);
    this.history.end(this.buffer.whole);
    this.view.changed(this.buffer.whole);
    this.changed();
  }

  undo() {
    this.moved(this.history.undo());
  }

  redo() {
    this.moved(this.history.redo());
  }

  moved(area) {
    if (area) this.view.changed(area);
    this.changed();
  }

  changed() {
    this.undoButton.disabled = !this.history.done.length;
    this.redoButton.disabled = !this.history.undone.length;
    this.onChange();
  }

  place(cursor) {
    this.view.cursor = cursor;
    this.view.draw();
  }

  key(event) {
    const key = event.key.toLowerCase();
    if (event.ctrlKey || event.metaKey) {
      if (key === "z") event.shiftKey ? this.redo() : this.undo();
      else if (key === "y") this.redo();
      else return;
      event.preventDefault();
      return;
    }
    const tool = TOOLS.find(([, , letter]) => letter === key);
    const { width, height } = this.buffer;
    const cursor = this.view.cursor ?? { x: width >> 1, y: height >> 1 };
    if (tool) this.use(tool[0]);
    else if (key === "[" || key === "]") {
      this.size.value = Number(this.size.value) + (key === "]" ? 1 : -1);
      this.sizeChanged();
    } else if (key === " ") {
      this.place(cursor);
      this.begin(cursor);
      this.end();
    } else if (ARROWS[event.key]) {
      const far = event.shiftKey ? Math.max(1, Math.round(width / 16)) : 1;
      const [dx, dy] = ARROWS[event.key];
      this.place({ x: Math.max(0, Math.min(width - 1, cursor.x + far * dx)), y: Math.max(0, Math.min(height - 1, cursor.y + far * dy)) });
    } else return;
    event.preventDefault();
  }
}
