// The Runs page: a list, and one run in full; both are asked for again every few seconds while they are looked at.
import { get } from "../api.js";
import { h } from "../dom.js";
import { icon } from "../icons.js";
import { told } from "../toast.js";
import { Details } from "./details.js";
import { startForm } from "./start.js";
import { duration, percent } from "./words.js";

const SECONDS = 3;

export class RunsPage {
  constructor(place, about, drawWith) {
    this.allowTraining = about.allow_training;
    this.list = h("div", { class: "run-list" });
    this.details = new Details({ about, drawWith, changed: () => this.refresh() });
    this.chosen = null;
    place.append(this.list, this.details.element);
  }

  shown(isShown) {
    clearInterval(this.timer);
    if (!isShown) return;
    told(() => this.refresh())();
    this.timer = setInterval(() => document.hidden || this.refresh().catch(() => {}), SECONDS * 1000);
  }

  async refresh() {
    const runs = await get("/api/runs");
    if (!runs.some((run) => run.name === this.chosen)) this.chosen = runs[0]?.name ?? null;
    this.showList(runs);
    if (this.starting) return;
    if (this.chosen) this.details.show(await get(`/api/runs/${encodeURIComponent(this.chosen)}`));
    else this.details.showNone();
  }

  showList(runs) {
    const focused = document.activeElement?.dataset?.run;
    const start = this.allowTraining && h("button", { class: "button", type: "button", onclick: told(() => this.start()) }, icon("plus"), "New run");
    this.list.replaceChildren(h("div", { class: "head" }, h("h2", {}, "Runs"), start), ...runs.map((run) => this.item(run)));
    if (focused) this.list.querySelector(`[data-run="${CSS.escape(focused)}"]`)?.focus();
  }

  item(run) {
    const choose = told(async () => {
      this.starting = false;
      this.chosen = run.name;
      await this.refresh();
    });
    const line = run.state === "training" ? `${percent(run)}, about ${duration(run.seconds_left)} left` : `step ${run.step.toLocaleString("en")} of ${run.steps.toLocaleString("en")}`;
    return h(
      "button",
      { class: "run-item", type: "button", "data-run": run.name, "aria-current": String(run.name === this.chosen && !this.starting), onclick: choose },
      h("span", { class: "top" }, h("span", { class: "name" }, run.name), h("span", { class: `badge ${run.state}` }, run.state)),
      h("progress", { max: Math.max(1, run.steps), value: run.step, "aria-label": "Steps done" }),
      h("span", { class: "quiet small" }, `${run.stage} · ${line}`),
    );
  }

  async start() {
    this.starting = true;
    const form = startForm(await get("/api/configs"), async (name) => {
      this.starting = false;
      this.chosen = name;
      await this.refresh();
    });
    this.details.replace(form);
    await this.refresh();
  }
}
