// What was asked for since the page was opened, the newest first: waiting, being drawn, or done.
import { remove } from "../api.js";
import { h } from "../dom.js";
import { icon } from "../icons.js";
import { told } from "../toast.js";
import { fileOf, inWords, said } from "./render.js";
import { Viewer } from "./viewer.js";

const EXAMPLES = ["a red heart", "a smiling yellow face", "dog face", "a green tree"];

export class Gallery {
  // actions: reuse(order); use(blob, mode), a result as the picture to begin with; modes(), those of the model.
  constructor(actions) {
    this.actions = actions;
    this.cards = new Map();
    this.viewer = new Viewer(this.actions);
    this.list = h("div", { class: "work" });
    this.first = h("div", { class: "card welcome" });
    this.element = h("section", { class: "work", "aria-label": "What was drawn" }, this.first, this.list);
  }

  say(title, text) {
    this.first.replaceChildren(h("h2", {}, title), h("p", { class: "quiet" }, text));
  }

  welcome(model, tryPrompt) {
    this.say("Nothing drawn yet", `Say what to draw, and press Draw. ${model.title} makes ${model.width}×${model.height} pictures.`);
    if (!model.controls.some((spec) => spec.kind === "text") || !model.modes.includes("draw")) return;
    const buttons = EXAMPLES.map((prompt) => h("button", { class: "button", type: "button", onclick: () => tryPrompt(prompt) }, prompt));
    this.first.append(h("div", { class: "examples" }, buttons));
  }

  update(renders) {
    for (const render of renders) {
      const card = this.cards.get(render.id) ?? this.add(render.id);
      card.show(render);
    }
    this.first.hidden = this.cards.size > 0;
  }

  add(id) {
    const card = new Card(this.viewer, this.actions);
    this.cards.set(id, card);
    this.list.prepend(card.element);
    return card;
  }
}

class Card {
  constructor(viewer, actions) {
    Object.assign(this, { viewer, actions });
    this.element = h("article", { class: "card render" });
  }

  show(render) {
    this.render = render;
    this.element.dataset.state = render.state;
    this.element.dataset.id = render.id;
    const isOver = ["done", "failed", "cancelled"].includes(render.state);
    const header = h(
      "header",
      {},
      h("div", {}, h("p", { class: "what" }, said(render.order)), h("p", { class: "how" }, inWords(render))),
      h("div", { class: "actions" }, this.buttons(isOver)),
    );
    this.element.replaceChildren(header, ...this.body(isOver));
  }

  buttons(isOver) {
    const { render } = this;
    if (!isOver) {
      return h("button", { class: "button", type: "button", disabled: render.is_cancelled, onclick: told(() => remove(`/api/renders/${render.id}`)) }, icon("close"), render.is_cancelled ? "Stopping" : "Cancel");
    }
    return h("button", { class: "button", type: "button", title: "Set every control as for this", onclick: () => this.actions.reuse(render.order) }, icon("reuse"), "Reuse");
  }

  body(isOver) {
    const { render } = this;
    if (render.state === "failed") return [h("p", { class: "failed" }, render.error)];
    if (render.state === "cancelled") return [h("p", { class: "quiet small" }, "Cancelled.")];
    if (isOver) return [row(render.pictures.map((name, number) => this.picture(name, number)))];
    const share = render.steps ? render.done / render.steps : 0;
    const bar = h("progress", { max: 1, value: share, "aria-label": "Progress" });
    const drafts = [...Array(Math.min(4, render.order.num_images)).keys()].map((number) => this.draft(number));
    return [row(drafts), h("div", { class: "status" }, bar, h("span", {}, progress(render)))];
  }

  draft(number) {
    const { render } = this;
    if (number >= render.previews) return h("div", { class: "picture empty draft" });
    const source = `/api/renders/${render.id}/previews/${number}?n=${render.preview_number}`;
    return h("div", { class: "picture draft" }, h("img", { src: source, alt: "The picture so far" }));
  }

  picture(name, number) {
    const { render } = this;
    const image = h("img", { src: fileOf(render, name), alt: `${said(render.order)}, picture ${number + 1}`, loading: "lazy" });
    const open = () => this.viewer.open(render, number);
    return h("div", { class: "picture" }, h("button", { type: "button", "aria-label": `Look at picture ${number + 1}`, onclick: open }, image));
  }
}

function row(pictures) {
  const element = h("div", { class: "pictures" }, pictures);
  element.style.setProperty("--columns", Math.min(4, pictures.length));
  return element;
}

function progress(render) {
  if (render.state === "waiting") return render.place === 1 ? "next in the queue" : `number ${render.place} in the queue`;
  if (render.state === "loading") return "opening the model";
  const left = render.seconds_left >= 1 ? `, about ${Math.ceil(render.seconds_left)} s left` : "";
  return `step ${render.done} of ${render.steps}${left}`;
}
