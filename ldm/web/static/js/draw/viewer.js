// One picture, large: download, before and after, as command, as Python, as the next picture to begin with.
import { h } from "../dom.js";
import { icon } from "../icons.js";
import { copy, told } from "../toast.js";
import { compare } from "./compare.js";
import { facts, fileOf, said } from "./render.js";

export class Viewer {
  constructor(actions) {
    this.actions = actions;
    this.dialog = h("dialog", { "aria-label": "Picture" });
    this.dialog.addEventListener("click", (event) => event.target === this.dialog && this.dialog.close());
    this.dialog.addEventListener("keydown", (event) => {
      if (event.target.matches("input")) return;
      if (event.key === "ArrowLeft") this.step(-1);
      if (event.key === "ArrowRight") this.step(1);
    });
    document.body.append(this.dialog);
  }

  open(render, number) {
    [this.render, this.number, this.isCompared] = [render, number, Boolean(render.inputs.image)];
    this.show();
    if (!this.dialog.open) this.dialog.showModal();
  }

  step(by) {
    const count = this.render.pictures.length;
    this.number = (this.number + by + count) % count;
    this.show();
  }

  show() {
    const { render, number } = this;
    const name = render.pictures[number];
    const source = fileOf(render, name);
    const image = h("img", { src: source, alt: `${said(render.order)}, picture ${number + 1}` });
    const before = render.inputs.image && fileOf(render, render.inputs.image);
    const picture = h("div", { class: "viewer-picture" }, this.isCompared ? compare(before, source) : image);
    const several = render.pictures.length > 1;
    const side = h(
      "div",
      { class: "viewer-side" },
      h(
        "header",
        {},
        h("h2", {}, several ? `Picture ${number + 1} of ${render.pictures.length}` : "Picture"),
        several && this.button("left", "The one before", () => this.step(-1)),
        several && this.button("right", "The next one", () => this.step(1)),
        this.button("close", "Close", () => this.dialog.close()),
      ),
      h("div", { class: "viewer-actions" }, this.uses(source), before && this.compareButton()),
      h("dl", { class: "facts" }, facts(render).flatMap(([term, value]) => [h("dt", {}, term), h("dd", {}, value)])),
      h(
        "div",
        { class: "viewer-actions" },
        h("button", { class: "button", type: "button", onclick: () => copy(render.command, "Command") }, icon("copy"), "Command"),
        h("button", { class: "button", type: "button", onclick: () => copy(render.python, "Python") }, icon("copy"), "Python"),
      ),
      h("p", { class: "quiet small" }, several ? `Copied as command or as Python, it draws exactly these ${render.pictures.length} pictures; this is number ${number}.` : "Copied as command or as Python, it draws exactly this picture."),
    );
    this.dialog.replaceChildren(h("div", { class: "viewer" }, picture, side));
  }

  uses(source) {
    const { render, number } = this;
    const taken = (mode) =>
      told(async () => {
        const blob = await (await fetch(source)).blob();
        this.dialog.close();
        await this.actions.use(blob, mode);
      });
    const modes = this.actions.modes();
    const other = ["img2img", "upscale"].find((mode) => modes.includes(mode));
    const file = `${render.id}-${render.pictures[number]}`;
    return [
      h("a", { class: "button", href: source, download: file }, icon("download"), "Download"),
      h("button", { class: "button", type: "button", onclick: () => (this.dialog.close(), this.actions.reuse(render.order)) }, icon("reuse"), "Reuse"),
      modes.includes("inpaint") && h("button", { class: "button", type: "button", "data-use": "inpaint", onclick: taken("inpaint") }, icon("brush"), "Inpaint"),
      other && h("button", { class: "button", type: "button", "data-use": other, onclick: taken(other) }, icon("file"), other === "upscale" ? "Enlarge" : "Vary"),
    ];
  }

  compareButton() {
    const turn = () => {
      this.isCompared = !this.isCompared;
      this.show();
    };
    return h("button", { class: "button", type: "button", "aria-pressed": this.isCompared, onclick: turn }, "Before / after");
  }

  button(name, title, action) {
    return h("button", { class: "icon", type: "button", title, "aria-label": title, onclick: action }, icon(name));
  }
}
