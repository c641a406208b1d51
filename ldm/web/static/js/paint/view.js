// The buffer on a canvas: its colours over a picture, zoomed and moved; points of the canvas as pixels of the buffer.
const LARGEST = 40; // times the size that fits

export class View {
  constructor(canvas, colourOf) {
    [this.canvas, this.colourOf] = [canvas, colourOf];
    this.backdrop = null;
    this.cursor = null; // of the keyboard
    this.zoom = 1;
    this.offset = { x: 0, y: 0 }; // of the picture's corner, in shares of the canvas
    this.context = canvas.getContext("2d");
    this.layer = document.createElement("canvas");
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  show(buffer, backdrop = null) {
    [this.buffer, this.backdrop] = [buffer, backdrop];
    [this.layer.width, this.layer.height] = [buffer.width, buffer.height];
    this.ink = this.layer.getContext("2d");
    this.canvas.parentElement.style.aspectRatio = `${buffer.width} / ${buffer.height}`;
    this.fit();
    this.changed(buffer.whole);
  }

  // Brings a rectangle of the buffer to the canvas.
  changed(area) {
    const [width, height] = [area.right - area.left, area.bottom - area.top];
    if (width > 0 && height > 0) {
      const image = this.ink.createImageData(width, height);
      let at = 0;
      for (let y = area.top; y < area.bottom; y++) {
        for (let x = area.left; x < area.right; x++) {
          const [red, green, blue, alpha = 255] = this.colourOf(this.buffer.at(x, y));
          image.data[at++] = red;
          image.data[at++] = green;
          image.data[at++] = blue;
          image.data[at++] = alpha;
        }
      }
      this.ink.putImageData(image, area.left, area.top);
    }
    this.draw();
  }

  draw() {
    if (!this.buffer) return;
    const { canvas, context } = this;
    const times = devicePixelRatio || 1;
    const [width, height] = [Math.round(canvas.clientWidth * times), Math.round(canvas.clientHeight * times)];
    if (!width || !height) return;
    if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
    const place = [this.offset.x * width, this.offset.y * height, this.zoom * width, this.zoom * height];
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, width, height);
    if (this.backdrop) {
      [context.imageSmoothingEnabled, context.imageSmoothingQuality] = [true, "high"];
      context.drawImage(this.backdrop, ...place);
    }
    context.imageSmoothingEnabled = false; // of classes nothing is blended, on the screen either
    context.drawImage(this.layer, ...place);
    if (this.cursor) this.drawCursor(place);
  }

  drawCursor([left, top, width, height]) {
    const [x, y] = [left + ((this.cursor.x + 0.5) / this.buffer.width) * width, top + ((this.cursor.y + 0.5) / this.buffer.height) * height];
    const { context } = this;
    for (const [colour, line] of [["#000", 5], ["#fff", 2]]) {
      context.strokeStyle = colour;
      context.lineWidth = line;
      context.beginPath();
      context.arc(x, y, 9, 0, 2 * Math.PI);
      context.stroke();
    }
  }

  // The pixel under a point of the screen; it may lie outside.
  pixel(clientX, clientY) {
    const box = this.canvas.getBoundingClientRect();
    const share = (at, start, length, offset) => ((at - start) / length - offset) / this.zoom;
    return {
      x: Math.floor(share(clientX, box.left, box.width, this.offset.x) * this.buffer.width),
      y: Math.floor(share(clientY, box.top, box.height, this.offset.y) * this.buffer.height),
    };
  }

  fit() {
    this.zoom = 1;
    this.offset = { x: 0, y: 0 };
  }

  // Zooms so that the point of the screen stays where it is; without one, the middle.
  zoomBy(factor, clientX, clientY) {
    const box = this.canvas.getBoundingClientRect();
    const point = { x: clientX === undefined ? 0.5 : (clientX - box.left) / box.width, y: clientY === undefined ? 0.5 : (clientY - box.top) / box.height };
    const next = Math.max(1, Math.min(LARGEST, this.zoom * factor));
    for (const axis of ["x", "y"]) this.offset[axis] = point[axis] - ((point[axis] - this.offset[axis]) / this.zoom) * next;
    this.zoom = next;
    this.keepInside();
  }

  moveBy(dx, dy) {
    this.offset.x += dx / this.canvas.clientWidth;
    this.offset.y += dy / this.canvas.clientHeight;
    this.keepInside();
  }

  keepInside() {
    for (const axis of ["x", "y"]) this.offset[axis] = Math.min(0, Math.max(1 - this.zoom, this.offset[axis]));
    this.draw();
  }
}
