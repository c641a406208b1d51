// A new run from a config, with changes to it that the server checks before anything starts.
import { post } from "../api.js";
import { freshId, h } from "../dom.js";
import { told } from "../toast.js";

export function startForm(configs, started) {
  const [nameId, configId, changesId] = [freshId("name"), freshId("config"), freshId("changes")];
  const name = h("input", { id: nameId, required: true, pattern: "[A-Za-z0-9_][A-Za-z0-9_.\\-]*", maxlength: 100, placeholder: "my-run" });
  const config = h("select", { id: configId }, configs.map((one) => new Option(one, one)));
  const changes = h("textarea", { id: changesId, rows: 5, placeholder: "train.steps=2000\ndata.train=data/mine", spellcheck: "false" });
  const form = h(
    "form",
    { class: "card start" },
    h("h2", {}, "New run"),
    h("div", { class: "field" }, h("label", { for: nameId }, "Name"), name),
    h("div", { class: "field" }, h("label", { for: configId }, "Config"), config),
    h("div", { class: "field" }, h("label", { for: changesId }, "Changes to it, a line each"), changes, h("p", { class: "hint" }, "As on the command line: key=value.")),
    h("button", { class: "primary" }, "Start training"),
  );
  form.addEventListener(
    "submit",
    told(async (event) => {
      event.preventDefault();
      const overrides = changes.value.split("\n").map((line) => line.trim()).filter(Boolean);
      await post("/api/runs", { name: name.value.trim(), config: config.value, overrides });
      await started(name.value.trim());
    }),
  );
  return form;
}
