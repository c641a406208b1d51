// A picture to begin with: chosen, dropped, pasted, or one that was drawn here.
import { upload, uploaded } from "../api.js";
import { h } from "../dom.js";
import { icon } from "../icons.js";
import { told } from "../toast.js";

export class PictureInput {
  constructor(onPicture) {
    this.onPicture = onPicture;
    this.picture = null; // {name, width, height}
    this.file = h("input", { type: "file", accept: "image/*", class: "visually-hidden", "aria-label": "Choose a picture", onchange: told(() => this.file.files.length && this.take(this.file.files[0])) });
    const choose = () => this.file.click();
    this.empty = h(
      "div",
      { class: "input" },
      h("p", {}, h("strong", {}, "Choose a picture"), ", drop one here, or paste it."),
      h("button", { class: "button", type: "button", onclick: choose }, icon("file"), "Choose a file"),
      h("p", { class: "quiet small" }, "Or open a picture that was drawn here, and press “Inpaint” or “Vary”."),
    );
    this.change = h("button", { class: "button", type: "button", hidden: true, onclick: choose }, icon("file"), "Another picture");
    this.element = h("div", {}, this.file, this.empty);
    this.element.addEventListener("dragover", (event) => {
      event.preventDefault();
      event.stopPropagation();
      this.empty.classList.add("over");
    });
    this.element.addEventListener("dragleave", () => this.empty.classList.remove("over"));
    this.element.addEventListener("drop", told(async (event) => {
      event.preventDefault();
      event.stopPropagation();
      this.empty.classList.remove("over");
      document.body.classList.remove("over");
      if (event.dataTransfer.files.length) await this.take(event.dataTransfer.files[0]);
    }));
  }

  async take(blob) {
    await this.use(await upload("picture", blob));
    this.file.value = "";
  }

  // A picture that the server has already.
  async use(picture) {
    const image = new Image();
    image.src = uploaded(picture.name);
    await image.decode();
    this.picture = { name: picture.name, width: image.naturalWidth, height: image.naturalHeight };
    this.image = image;
    this.empty.hidden = true;
    this.change.hidden = false;
    await this.onPicture(this.picture, image);
  }
}
