// How to draw: solver, steps, guidance, size, number, seed. What is as the model says is not sent.
import { freshId, h } from "../dom.js";
import { icon } from "../icons.js";

const LARGEST_SEED = 2 ** 32;

export class Settings {
  constructor() {
    this.number = this.slider("Images", { min: 1, max: 16, step: 1 });
    this.sampler = h("select", { id: freshId("sampler") });
    this.steps = this.slider("Steps", { min: 1, max: 100, step: 1 }, 1000);
    this.guidance = this.slider("Guidance", { min: 1, max: 12, step: 0.1 }, 100);
    this.width = h("input", { type: "number", "aria-label": "Width in pixels" });
    this.height = h("input", { type: "number", "aria-label": "Height in pixels" });
    this.seed = h("input", { id: freshId("seed"), type: "number", min: 0, max: Number.MAX_SAFE_INTEGER, value: 0 });
    this.lock = h("button", { class: "icon", type: "button", "aria-pressed": false, title: "Keep the seed", "aria-label": "Keep the seed for the next picture", onclick: () => this.keep(!this.isKept) });
    const dice = h("button", { class: "icon", type: "button", title: "Another seed", "aria-label": "Another seed", onclick: () => this.roll() }, icon("dice"));
    this.sizes = h("div", { class: "field" }, h("span", { class: "label" }, "Width and height"), h("div", { class: "pair" }, this.width, this.height));
    this.first = h(
      "div",
      { class: "mine" },
      this.number.element,
      h("div", { class: "field" }, h("label", { for: this.seed.id }, "Seed"), h("div", { class: "with-buttons" }, this.seed, dice, this.lock)),
    );
    this.more = h(
      "details",
      { class: "more" },
      h("summary", {}, "Steps, guidance, size"),
      h("div", {}, this.steps.element, this.guidance.element, h("div", { class: "field" }, h("label", { for: this.sampler.id }, "Solver"), this.sampler), this.sizes),
    );
    this.keep(false);
    this.roll();
  }

  slider(label, range, most = range.max) {
    const id = freshId("setting");
    const slider = h("input", { id, type: "range", ...range });
    const field = h("input", { type: "number", ...range, max: most, "aria-label": label });
    slider.addEventListener("input", () => (field.value = slider.value));
    field.addEventListener("input", () => (slider.value = field.value));
    const element = h("div", { class: "field" }, h("label", { for: id }, label), h("div", { class: "slider" }, slider, field));
    return { element, get: () => Number(field.value), set: (value) => ((field.value = value), (slider.value = value)) };
  }

  get isKept() {
    return this.lock.getAttribute("aria-pressed") === "true";
  }

  keep(isKept) {
    this.lock.setAttribute("aria-pressed", isKept);
    this.lock.replaceChildren(icon(isKept ? "lock" : "open"));
  }

  roll() {
    this.seed.value = Math.floor(Math.random() * LARGEST_SEED);
  }

  // A new seed for each picture, unless it is kept.
  next() {
    if (!this.isKept) this.roll();
  }

  setModel(model) {
    this.model = model;
    this.sampler.replaceChildren(...model.samplers.map((name) => new Option(name, name)));
    for (const [input, side] of [[this.width, model.width], [this.height, model.height]]) {
      Object.assign(input, { min: model.size_multiple, max: 2048, step: model.size_multiple, value: side });
    }
    this.set({ num_images: this.number.get() || 4 });
  }

  // Settings of an order; what it leaves out is as the model says.
  set(order) {
    const { model } = this;
    this.number.set(order.num_images ?? 4);
    this.steps.set(order.steps ?? model.steps);
    this.guidance.set(order.guidance ?? model.guidance);
    const sampler = order.sampler ?? (typeof model.sampler === "string" ? model.sampler : model.sampler.kind);
    if (![...this.sampler.options].some((option) => option.value === sampler)) this.sampler.add(new Option(sampler, sampler)); // with settings
    this.sampler.value = sampler;
    this.width.value = order.width ?? model.width;
    this.height.value = order.height ?? model.height;
    if (order.seed !== undefined && order.seed !== null) this.seed.value = order.seed;
  }

  showFor(mode) {
    this.sizes.hidden = mode === "upscale";
  }

  get size() {
    return { width: Number(this.width.value), height: Number(this.height.value) };
  }

  read(mode) {
    const { model } = this;
    const found = { num_images: this.number.get(), seed: Number(this.seed.value) };
    const own = typeof model.sampler === "string" ? model.sampler : null;
    if (this.steps.get() !== model.steps) found.steps = this.steps.get();
    if (this.guidance.get() !== model.guidance) found.guidance = this.guidance.get();
    if (this.sampler.value !== own) found.sampler = this.sampler.value;
    if (mode !== "upscale" && (this.size.width !== model.width || this.size.height !== model.height)) Object.assign(found, this.size);
    return found;
  }
}
