// One run: its state, curves, samples and diagnostics.
import { post } from "../api.js";
import { h } from "../dom.js";
import { icon } from "../icons.js";
import { told } from "../toast.js";
import { bar } from "./bar.js";
import { Charts } from "./charts.js";
import { Scrubber } from "./scrubber.js";
import { bytes, duration, short } from "./words.js";

const STATES = {
  training: "training",
  finished: "finished",
  stopped: "stopped: the same command goes on",
  died: "died without giving its folder back: the same command goes on from its last state",
  elsewhere: "held by a process of another machine",
};
const KEY = /\b([a-z_]+(?:\.[a-z_]+)+(?:=\S+?)?)(?=[\s,;:.)]|$)/g; // of a config, e.g. loss.kl_weight=1e-6

export class Details {
  constructor({ about, drawWith, changed }) {
    Object.assign(this, { about, drawWith, changed });
    this.element = h("div", { class: "run" });
    this.name = null;
  }

  replace(content) {
    this.name = null;
    this.element.replaceChildren(content);
  }

  showNone() {
    const text = "Train one with scripts/train_vae.py or scripts/train_ldm.py: it appears here with its first step.";
    this.replace(h("div", { class: "card welcome" }, h("h2", {}, "No runs yet"), h("p", { class: "quiet" }, text)));
  }

  show(run) {
    if (run.name !== this.name) this.build(run);
    this.head.replaceChildren(h("h2", {}, run.name), h("span", { class: `badge ${run.state}`, title: STATES[run.state] }, run.state), ...this.actions(run));
    this.numbers.replaceChildren(...this.facts(run).map(([term, value]) => h("div", {}, h("dt", {}, term), h("dd", {}, value))));
    this.charts.show(run.curves);
    this.curves.hidden = !run.curves.length;
    this.samples.hidden = !run.samples.length;
    this.scrubber.show(run.samples);
    this.report.hidden = !run.report.length;
    const [latest, older] = byStep(run.report);
    this.lines.replaceChildren(...latest.map(line));
    this.older.hidden = !older.length;
    this.older.querySelector("ul").replaceChildren(...older.map(line));
    this.quality.hidden = !run.bar;
    if (run.bar) this.quality.replaceChildren(h("h2", {}, "Where the distance comes from"), bar(run.bar));
    this.log.hidden = !run.log.length;
    this.log.querySelector("pre").textContent = run.log.join("\n");
    this.config.querySelector("pre").textContent = run.config;
  }

  build(run) {
    this.name = run.name;
    this.head = h("div", { class: "run-head" });
    this.numbers = h("dl", { class: "numbers" });
    this.charts = new Charts();
    this.curves = h("section", { class: "card" }, this.charts.element);
    this.scrubber = new Scrubber(run.name);
    this.samples = h("section", { class: "card" }, h("h2", {}, "Samples"), this.scrubber.element);
    this.lines = h("ul", { class: "report" });
    this.older = h("details", { class: "older" }, h("summary", {}, "Earlier ones"), h("ul", { class: "report" }));
    this.report = h("section", { class: "card" }, h("h2", {}, "What the last evaluation says"), this.lines, this.older);
    this.quality = h("section", { class: "card" });
    this.log = h("section", { class: "card" }, h("h2", {}, "What it said last"), h("pre", { tabindex: 0 }));
    this.config = h("details", { class: "card" }, h("summary", {}, "Config"), h("pre", { tabindex: 0 }));
    const top = h("section", { class: "card run" }, this.head, this.numbers);
    this.element.replaceChildren(top, this.quality, this.curves, this.samples, this.report, this.log, this.config);
  }

  facts(run) {
    const rows = [["Step", `${run.step.toLocaleString("en")} of ${run.steps.toLocaleString("en")}`]];
    if (run.state === "training") rows.push(["Time left", run.seconds_left ? duration(run.seconds_left) : "not known yet"]);
    else rows.push(["Last step", `${duration(run.age)} ago`]);
    if (run.images_per_second) rows.push(["Throughput", `${short(run.images_per_second)} images/s`]);
    if (run.loss !== null && run.loss !== undefined) rows.push(["Loss", short(run.loss)]);
    if (run.held_out_loss !== null && run.held_out_loss !== undefined) rows.push(["Held-out loss", short(run.held_out_loss)]);
    if (run.memory) rows.push(["Memory", bytes(run.memory)]);
    return rows;
  }

  actions(run) {
    const found = [];
    if (run.has_model && run.stage === "stage two") {
      const model = `${this.about.runs}/${run.name}/checkpoint`;
      found.push(h("button", { class: "button", type: "button", onclick: () => this.drawWith(model) }, icon("brush"), "Draw with it"));
    }
    if (!this.about.allow_training) return found;
    const call = (what) => told(async () => {
      await post(`/api/runs/${encodeURIComponent(run.name)}/${what}`);
      await this.changed();
    });
    if (run.state === "training") found.push(h("button", { class: "button danger", type: "button", onclick: call("stop") }, icon("stop"), "Stop"));
    if (["stopped", "died"].includes(run.state)) found.push(h("button", { class: "button", type: "button", onclick: call("resume") }, icon("play"), "Resume"));
    return found;
  }
}

// The lines of the last step that the report tells of, those with a key to turn first; and the lines before, the latest first.
function byStep(report) {
  const stepOf = (text) => text.split(":")[0];
  const last = report.length ? stepOf(report.at(-1)) : "";
  const latest = report.filter((text) => stepOf(text) === last);
  const hasKey = (text) => text.match(KEY) !== null;
  const older = report.filter((text) => stepOf(text) !== last).reverse();
  return [[...latest.filter(hasKey), ...latest.filter((text) => !hasKey(text))], older];
}

// A line of the report, the keys to turn set off.
function line(text) {
  const parts = [];
  let last = 0;
  for (const found of text.matchAll(KEY)) {
    parts.push(text.slice(last, found.index), h("code", {}, found[1]));
    last = found.index + found[0].length;
  }
  parts.push(text.slice(last));
  return h("li", { class: parts.length > 1 ? "key" : "" }, parts);
}

