// Undo and redo: of each stroke, the rectangle that it changed, before and after.
const MOST_PIXELS = 32 << 20; // that are remembered

export class History {
  constructor(buffer) {
    this.buffer = buffer;
    this.done = [];
    this.undone = [];
    this.before = null;
  }

  // A stroke begins: what was there is kept until it ends.
  begin() {
    this.before = this.buffer.data.slice();
  }

  end(area) {
    const before = this.before;
    this.before = null;
    if (!before || !area || area.right <= area.left || area.bottom <= area.top) return;
    const old = new this.buffer.constructor(this.buffer.width, this.buffer.height, before).cut(area);
    const now = this.buffer.cut(area);
    if (old.every((value, i) => value === now[i])) return;
    this.done.push({ area, old, now });
    this.undone = [];
    while (this.done.length > 1 && this.done.reduce((sum, one) => sum + one.old.length, 0) > MOST_PIXELS) this.done.shift();
  }

  undo() {
    return this.move(this.done, this.undone, "old");
  }

  redo() {
    return this.move(this.undone, this.done, "now");
  }

  move(from, to, which) {
    const step = from.pop();
    if (!step) return null;
    this.buffer.paste(step.area, step[which]);
    to.push(step);
    return step.area;
  }
}
