// Curves: those that one looks at first, the others on demand.
import { h } from "../dom.js";
import { chart } from "./chart.js";

export class Charts {
  constructor() {
    this.isAll = false;
    this.grid = h("div", { class: "charts" });
    this.more = h("button", { class: "button", type: "button", "aria-expanded": false, onclick: () => this.turn() });
    this.element = h("div", {}, h("div", { class: "run-head" }, h("h2", {}, "Curves"), this.more), this.grid);
    this.shown = "";
  }

  turn() {
    this.isAll = !this.isAll;
    this.shown = "";
    this.show(this.panels);
  }

  show(panels) {
    this.panels = panels;
    const first = panels.filter((panel) => panel.is_first);
    const chosen = this.isAll || !first.length ? panels : first;
    this.more.hidden = chosen.length === panels.length && !this.isAll;
    this.more.textContent = this.isAll ? "Show fewer" : `Show all ${panels.length}`;
    this.more.setAttribute("aria-expanded", this.isAll);
    const now = JSON.stringify(chosen.map((panel) => [panel.title, panel.series.map((series) => series.points.at(-1))]));
    if (now === this.shown) return; // a pointer may rest on them
    this.shown = now;
    this.grid.replaceChildren(...chosen.map(chart));
  }
}
