// Sample grids as a film: a slider over the steps at which they were drawn.
import { h } from "../dom.js";
import { icon } from "../icons.js";

const PACE = 350; // milliseconds a grid

export class Scrubber {
  constructor(name) {
    this.base = `/api/runs/${encodeURIComponent(name)}/samples`;
    this.steps = [];
    this.image = h("img", { alt: "" });
    this.slider = h("input", { type: "range", min: 0, step: 1, value: 0, "aria-label": "Step of the samples", oninput: () => this.at(Number(this.slider.value)) });
    this.label = h("output", {});
    this.play = h("button", { class: "icon", type: "button", "aria-label": "Play from the first step", title: "Play", onclick: () => this.run() }, icon("play"));
    this.words = h("p", { class: "quiet small" });
    this.element = h("div", { class: "scrubber" }, h("div", { class: "row" }, this.play, this.slider, this.label), this.image, this.words);
  }

  show(steps) {
    if (steps.join() === this.steps.join()) return;
    const wasLast = !this.steps.length || Number(this.slider.value) === this.steps.length - 1;
    this.steps = steps;
    this.slider.max = Math.max(0, steps.length - 1);
    if (steps.length) this.at(wasLast ? steps.length - 1 : Math.min(Number(this.slider.value), steps.length - 1));
    this.play.disabled = steps.length < 2;
  }

  async at(number) {
    const step = this.steps[number];
    this.slider.value = number;
    this.label.value = `step ${step.toLocaleString("en")}`;
    this.image.src = `${this.base}/${step}.png`;
    this.image.alt = `Samples at step ${step}`;
    const answer = await fetch(`${this.base}/${step}.txt`);
    if (this.steps[Number(this.slider.value)] === step) this.words.textContent = answer.ok ? await answer.text() : "";
  }

  run() {
    clearInterval(this.timer);
    let number = 0;
    this.at(0);
    this.timer = setInterval(() => {
      if (++number >= this.steps.length || !this.element.isConnected) clearInterval(this.timer);
      else this.at(number);
    }, PACE);
  }
}
