// The page: its parts are made and tied together here.
import { get } from "./api.js";
import { DrawPage } from "./draw/page.js";
import { icon } from "./icons.js";
import { RunsPage } from "./runs/page.js";
import { recalled, remember } from "./session.js";
import { tabs } from "./tabs.js";
import { toast, told } from "./toast.js";

const theme = document.getElementById("theme");
const showTheme = () => theme.replaceChildren(icon(document.documentElement.dataset.theme === "dark" ? "sun" : "moon"));
theme.addEventListener("click", () => {
  const next = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = next;
  localStorage.setItem("ldm-theme", next);
  showTheme();
});
showTheme();

const choice = document.getElementById("model");

async function start() {
  const about = await get("/api/page");
  const draw = new DrawPage(document.getElementById("draw"), chooseModel);
  const runs = new RunsPage(document.getElementById("runs"), about, (model) => told(chooseModel)(model).then(() => show("draw")));
  const show = tabs((name) => runs.shown(name === "runs"));

  function offer(names) {
    choice.replaceChildren(...names.map((name) => new Option(name, name)));
  }

  async function chooseModel(name) {
    if (![...choice.options].some((option) => option.value === name)) offer((await get("/api/page")).models);
    const model = await get("/api/model", { name });
    choice.value = name;
    remember("model", name);
    await draw.setModel(model);
  }

  offer(about.models);
  choice.addEventListener("change", () => told(chooseModel)(choice.value));
  choice.addEventListener("focus", told(async () => {
    const { models } = await get("/api/page"); // a run may have written its first checkpoint
    const now = choice.value;
    if (models.length !== choice.options.length) {
      offer(models);
      choice.value = now;
    }
  }));
  const before = recalled("model");
  if (!about.models.length) {
    draw.showNoModel();
    return;
  }
  await chooseModel(about.models.includes(before) ? before : about.models[0]);
  await draw.restore();
  document.body.dataset.ready = "true";
}

start().catch((error) => toast(error.message, true));
