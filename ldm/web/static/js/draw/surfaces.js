// What the work area has in the modes that begin with a picture.
import { bytes, upload, uploaded } from "../api.js";
import { h } from "../dom.js";
import { IndexBuffer } from "../paint/buffer.js";
import { Painter } from "../paint/painter.js";
import { PictureInput } from "./picture_input.js";

const PAINTED = [240, 60, 120, 150];
const KEPT = [0, 0, 0, 0];

// A picture and a mask over it, which stays when the prompt changes.
export class InpaintSurface {
  constructor() {
    this.painter = new Painter({
      label: "Mask: paint over what is to be drawn anew",
      classes: [
        { value: 0, name: "keep", colour: KEPT },
        { value: 1, name: "paint", colour: PAINTED },
      ],
      ground: 0,
      first: 1,
      width: 64,
      height: 64,
    });
    this.painter.element.hidden = true;
    this.input = new PictureInput((picture, image) => {
      this.painter.load(this.painter.fresh(picture.width, picture.height), image);
      this.painter.element.hidden = false;
    });
    const hint = h("p", { class: "quiet small" }, "Paint over what is to be drawn anew. Every other pixel comes back as it is, to the bit.");
    this.painter.element.append(h("div", { class: "input-bar" }, this.input.change, hint));
    this.element = h("section", { class: "card", "aria-label": "Picture and mask" }, this.input.element, this.painter.element);
  }

  async files() {
    if (!this.input.picture) throw new Error("choose a picture first");
    const { width, height, data } = this.painter.buffer;
    if (!data.includes(1)) throw new Error("paint over what is to be drawn anew first");
    return { image: this.input.picture.name, mask: (await upload("mask", data, { width, height })).name };
  }

  async set(files) {
    if (files.image) await this.input.use({ name: files.image });
    if (!files.mask) return;
    const answer = await bytes(`${uploaded(files.mask)}/indices`);
    const [width, height] = [Number(answer.headers.get("x-width")), Number(answer.headers.get("x-height"))];
    const mask = new Uint16Array(await answer.arrayBuffer()).map((level) => Number(level > 127));
    this.painter.load(new IndexBuffer(width, height, mask), this.input.image);
  }
}

// A picture alone: to draw over, or to enlarge.
export class PictureSurface {
  constructor(label) {
    this.shown = h("img", { class: "shown", alt: "The picture to begin with" });
    this.input = new PictureInput((picture) => {
      this.shown.src = uploaded(picture.name);
      this.filled.hidden = false;
    });
    this.filled = h("div", { class: "painter", hidden: true }, this.shown, h("div", { class: "input-bar" }, this.input.change));
    this.element = h("section", { class: "card", "aria-label": label }, this.input.element, this.filled);
  }

  async files() {
    if (!this.input.picture) throw new Error("choose a picture first");
    return { image: this.input.picture.name };
  }

  async set(files) {
    if (files.image) await this.input.use({ name: files.image });
  }
}
