// The Draw page: controls on one side, the work area and what was drawn on the other.
import { post, upload } from "../api.js";
import { controlFor } from "../controls/index.js";
import { freshId, h } from "../dom.js";
import { listen } from "../events.js";
import { recalled, remember, session } from "../session.js";
import { toast, told } from "../toast.js";
import { takeDrops } from "./drops.js";
import { Gallery } from "./gallery.js";
import { Modes } from "./modes.js";
import { Settings } from "./settings.js";
import { InpaintSurface, PictureSurface } from "./surfaces.js";

const MASKED = ["class_map", "boxes", "choice", "number", "tags"]; // kinds that only "draw" takes: the scripts of the others have no flag

export class DrawPage {
  constructor(place, chooseModel) {
    this.chooseModel = chooseModel;
    this.modes = new Modes((mode) => this.showMode(mode));
    this.settings = new Settings();
    this.own = h("div", { class: "mine" });
    this.surfaces = h("div", { class: "work" });
    const negative = freshId("negative");
    this.negative = h("textarea", { id: negative, rows: 1, maxlength: 4000, placeholder: "What should not be in it?" });
    this.negativeField = h("div", { class: "field" }, h("label", { for: negative }, "Avoid"), this.negative);
    const strength = this.settings.slider("Strength: how much of it changes", { min: 0.05, max: 1, step: 0.05 });
    strength.set(0.6);
    this.strength = strength;
    this.go = h("button", { class: "primary", type: "submit" }, "Draw");
    this.gallery = new Gallery({ reuse: told((order) => this.setOrder(order)), use: told((blob, mode) => this.useResult(blob, mode)), modes: () => this.model.modes });
    this.form = h(
      "form",
      { class: "card controls", "aria-label": "Controls" },
      h("div", { class: "scroll" }, this.modes.element, this.own, this.strength.element, this.negativeField, this.settings.first, this.settings.more),
      h("div", { class: "go" }, this.go),
    );
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      told(() => this.submit())();
    });
    this.form.addEventListener("keydown", (event) => (event.ctrlKey || event.metaKey) && event.key === "Enter" && this.form.requestSubmit());
    place.append(this.form, h("div", { class: "work" }, this.surfaces, this.gallery.element));
    takeDrops({ onFile: told((file) => this.dropped(file)), onPaste: told((file) => this.pasted(file)) });
    listen((renders) => this.gallery.update(renders));
  }

  showNoModel() {
    this.form.hidden = true;
    this.gallery.say("No model yet", "There is no trained model in the named folders. Watch a run in “Runs”: its first checkpoint appears here.");
  }

  async setModel(model) {
    const texts = (this.controls ?? []).filter(({ spec }) => spec.kind === "text").map(({ spec, control }) => [spec.name, control.read()]);
    this.model = model;
    this.controls = model.controls.map((spec) => ({ spec, control: controlFor(spec, model) })).filter(({ control }) => control);
    this.own.replaceChildren(...this.controls.map(({ control }) => control.element));
    this.inpaint = new InpaintSurface();
    this.picture = new PictureSurface("The picture to begin with");
    this.settings.setModel(model);
    this.negativeField.hidden = !model.controls.some((spec) => spec.kind === "text") || !model.modes.includes("draw");
    for (const [name, value] of texts) {
      const same = this.controls.find(({ spec }) => spec.name === name && spec.kind === "text");
      if (same && value?.cond) same.control.set(value.cond);
    }
    this.form.hidden = false;
    if (!model.modes.length) {
      this.form.hidden = true;
      toast(`this page can do nothing with ${model.name}`, true);
      return;
    }
    this.modes.offer(model.modes);
    this.gallery.welcome(model, (prompt) => this.tryPrompt(prompt));
  }

  showMode(mode) {
    for (const { spec, control } of this.controls) {
      control.element.hidden = mode === "upscale" || (mode !== "draw" && MASKED.includes(spec.kind));
    }
    this.strength.element.hidden = mode !== "img2img";
    const surface = { inpaint: this.inpaint, img2img: this.picture, upscale: this.picture }[mode];
    const own = mode === "draw" ? this.controls.map(({ control }) => control.surface).filter(Boolean) : [];
    this.surfaces.replaceChildren(...(surface ? [surface.element] : own));
    this.settings.showFor(mode);
    this.go.textContent = { draw: "Draw", inpaint: "Paint anew", img2img: "Draw from it", upscale: "Enlarge" }[mode];
  }

  async order() {
    const mode = this.modes.mode;
    const order = { mode, model: this.model.name, cond: {}, files: {}, negative_prompt: this.negative.value.trim(), ...this.settings.read(mode) };
    for (const { spec, control } of this.controls) {
      if (control.element.hidden) continue;
      const value = await control.read();
      if (value?.cond) order.cond[spec.name] = value.cond;
      if (value?.file) order.files[spec.name] = value.file;
    }
    if (mode === "img2img") order.strength = this.strength.get();
    const surface = { inpaint: this.inpaint, img2img: this.picture, upscale: this.picture }[mode];
    if (surface) Object.assign(order.files, await surface.files());
    return order;
  }

  async submit() {
    this.go.disabled = true;
    try {
      const order = await this.order();
      await post("/api/renders", order, { session });
      remember("order", order);
      this.settings.next();
      this.gallery.element.scrollIntoView({ block: "nearest", behavior: "smooth" });
    } finally {
      this.go.disabled = false;
    }
  }

  async restore() {
    const order = recalled("order");
    if (order && order.model === this.model.name) await this.setOrder(order).catch(() => {}); // its files may have gone with a restart
    if (order) this.settings.next();
  }

  // Every control as an order has it.
  async setOrder(order) {
    if (order.model !== this.model.name) await this.chooseModel(order.model);
    this.modes.choose(this.model.modes.includes(order.mode) ? order.mode : this.model.modes[0]);
    this.settings.set(order);
    this.negative.value = order.negative_prompt ?? "";
    if (order.strength) this.strength.set(order.strength);
    for (const { spec, control } of this.controls) {
      const value = order.cond?.[spec.name];
      const file = order.files?.[spec.name];
      if (value !== undefined) await control.set(value);
      else if (file !== undefined) await control.set(file);
      else control.clear();
    }
    const surface = { inpaint: this.inpaint, img2img: this.picture, upscale: this.picture }[this.modes.mode];
    if (surface) await surface.set(order.files ?? {});
  }

  tryPrompt(prompt) {
    const text = this.controls.find(({ spec }) => spec.kind === "text");
    text.control.set(prompt);
    this.form.requestSubmit();
  }

  // A result as the picture to begin with.
  async useResult(blob, mode) {
    this.modes.choose(mode);
    await (mode === "inpaint" ? this.inpaint : this.picture).input.take(blob);
    this.surfaces.scrollIntoView({ block: "start", behavior: "smooth" });
  }

  // A picture that was drawn here sets every control; any other is one to begin with.
  async dropped(file) {
    let found;
    try {
      found = await upload("recall", file);
    } catch (error) {
      if (this.modes.mode === "draw") throw error;
      await this.pasted(file);
      return;
    }
    await this.setOrder(found.order);
    this.settings.keep(true);
    toast(found.notes.length ? `Set as it was drawn, but: ${found.notes.join("; ")}` : "Every control is set as the picture was drawn");
  }

  async pasted(file) {
    if (this.modes.mode === "draw") await this.useResult(file, this.model.modes.includes("inpaint") ? "inpaint" : this.model.modes[0]);
    else await (this.modes.mode === "inpaint" ? this.inpaint : this.picture).input.take(file);
  }
}
