// What can be done with a model, as a row of buttons.
import { h } from "../dom.js";

const TITLES = { draw: "Draw", inpaint: "Inpaint", img2img: "From a picture", upscale: "Enlarge" };

export class Modes {
  constructor(onMode) {
    this.onMode = onMode;
    this.element = h("div", { class: "segments wide", role: "group", "aria-label": "What to do" });
    this.mode = null;
  }

  offer(modes) {
    this.buttons = new Map(modes.map((mode) => [mode, h("button", { type: "button", "data-mode": mode, onclick: () => this.choose(mode) }, TITLES[mode])]));
    this.element.replaceChildren(...this.buttons.values());
    this.element.hidden = modes.length < 2;
    this.choose(modes.includes(this.mode) ? this.mode : modes[0]);
  }

  choose(mode) {
    this.mode = mode;
    for (const [name, button] of this.buttons) button.setAttribute("aria-pressed", name === mode);
    this.onMode(mode);
  }
}
