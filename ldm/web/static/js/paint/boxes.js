// Rectangles dragged over an empty picture, as shares of its sides.
import { h } from "../dom.js";

const SIDE = 640; // of the canvas's own pixels

export class BoxCanvas {
  constructor(ratio, colours, onBox) {
    this.colours = colours;
    this.canvas = h("canvas", { width: SIDE, height: Math.round(SIDE / ratio), "aria-label": "Drag to place a box", tabindex: 0 });
    this.element = h("div", { class: "canvas-frame" }, this.canvas);
    this.element.style.aspectRatio = String(ratio);
    this.boxes = [];
    let start = null;
    this.canvas.addEventListener("pointerdown", (event) => {
      this.canvas.setPointerCapture(event.pointerId);
      start = this.share(event);
    });
    this.canvas.addEventListener("pointermove", (event) => start && this.show(this.boxes, corners(start, this.share(event))));
    this.canvas.addEventListener("pointerup", (event) => {
      if (!start) return;
      const found = corners(start, this.share(event));
      start = null;
      if (found[2] - found[0] > 0.01 && found[3] - found[1] > 0.01) onBox(found);
      else this.show(this.boxes);
    });
  }

  share(event) {
    const box = this.canvas.getBoundingClientRect();
    const clipped = (value) => Math.max(0, Math.min(1, value));
    return [clipped((event.clientX - box.left) / box.width), clipped((event.clientY - box.top) / box.height)];
  }

  show(boxes, open = null) {
    this.boxes = boxes;
    const { width, height } = this.canvas;
    const context = this.canvas.getContext("2d");
    context.clearRect(0, 0, width, height);
    for (const [index, left, top, right, bottom] of open ? [...boxes, [0, ...open]] : boxes) {
      context.strokeStyle = this.colours[index] ?? "#888888";
      context.lineWidth = 5;
      context.strokeRect(left * width, top * height, (right - left) * width, (bottom - top) * height);
      context.font = "600 22px system-ui";
      context.fillStyle = context.strokeStyle;
      context.fillText(String(index), left * width + 9, top * height + 27);
    }
  }
}

const corners = ([x, y], [x2, y2]) => [Math.min(x, x2), Math.min(y, y2), Math.max(x, x2), Math.max(y, y2)];
