// A picture of whole numbers. Every tool writes one value or leaves a pixel alone: nothing between two classes can arise.
export class IndexBuffer {
  constructor(width, height, data = new Uint16Array(width * height)) {
    [this.width, this.height, this.data] = [width, height, data];
  }

  has(x, y) {
    return x >= 0 && y >= 0 && x < this.width && y < this.height;
  }

  at(x, y) {
    return this.data[y * this.width + x];
  }

  // All pixels within `radius` of the line from one point to another; returns the rectangle that may have changed.
  stroke(from, to, radius, value) {
    const area = this.clipped(Math.min(from.x, to.x) - radius, Math.min(from.y, to.y) - radius, Math.max(from.x, to.x) + radius, Math.max(from.y, to.y) + radius);
    const [dx, dy] = [to.x - from.x, to.y - from.y];
    const length = dx * dx + dy * dy;
    const reach = (radius + 0.25) ** 2;
    for (let y = area.top; y < area.bottom; y++) {
      for (let x = area.left; x < area.right; x++) {
        const share = length ? Math.max(0, Math.min(1, ((x - from.x) * dx + (y - from.y) * dy) / length)) : 0;
        const distance = (x - from.x - share * dx) ** 2 + (y - from.y - share * dy) ** 2;
        if (distance <= reach) this.data[y * this.width + x] = value;
      }
    }
    return area;
  }

  // The connected pixels of one value about a point, row by row.
  fill(x, y, value) {
    const old = this.at(x, y);
    if (old === value) return this.clipped(x, y, x - 1, y - 1);
    const { width, height, data } = this;
    const area = { left: x, top: y, right: x + 1, bottom: y + 1 };
    const waiting = [[x, y]];
    while (waiting.length) {
      const [startX, row] = waiting.pop();
      const base = row * width;
      if (data[base + startX] !== old) continue;
      let [left, right] = [startX, startX];
      while (left > 0 && data[base + left - 1] === old) left--;
      while (right < width - 1 && data[base + right + 1] === old) right++;
      data.fill(value, base + left, base + right + 1);
      area.left = Math.min(area.left, left);
      area.right = Math.max(area.right, right + 1);
      area.top = Math.min(area.top, row);
      area.bottom = Math.max(area.bottom, row + 1);
      for (const next of [row - 1, row + 1]) {
        if (next < 0 || next >= height) continue;
        for (let i = left; i <= right; i++) {
          const isStart = data[next * width + i] === old && (i === left || data[next * width + i - 1] !== old);
          if (isStart) waiting.push([i, next]);
        }
      }
    }
    return area;
  }

  clear(value) {
    this.data.fill(value);
    return this.whole;
  }

  get whole() {
    return { left: 0, top: 0, right: this.width, bottom: this.height };
  }

  clipped(left, top, right, bottom) {
    return {
      left: Math.max(0, Math.floor(left)),
      top: Math.max(0, Math.floor(top)),
      right: Math.min(this.width, Math.ceil(right) + 1),
      bottom: Math.min(this.height, Math.ceil(bottom) + 1),
    };
  }

  cut(area) {
    const width = Math.max(0, area.right - area.left);
    const part = new Uint16Array(width * Math.max(0, area.bottom - area.top));
    for (let y = area.top, to = 0; y < area.bottom; y++, to += width) {
      const start = y * this.width + area.left;
      part.set(this.data.subarray(start, start + width), to);
    }
    return part;
  }

  paste(area, part) {
    const width = area.right - area.left;
    for (let y = area.top, from = 0; y < area.bottom; y++, from += width) {
      this.data.set(part.subarray(from, from + width), y * this.width + area.left);
    }
  }
}

export function joined(one, other) {
  if (!one) return other;
  return {
    left: Math.min(one.left, other.left),
    top: Math.min(one.top, other.top),
    right: Math.max(one.right, other.right),
    bottom: Math.max(one.bottom, other.bottom),
  };
}
