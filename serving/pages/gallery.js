// The tasks: what each tells apart, how well, and images to try.

import { imageFile } from "./api.js";
import { choose } from "./chosen.js";
import { $, count, make } from "./dom.js";

const PAGE = 24, SAMPLES = 48;
let tasks = [], shown = {}, ask = () => {}, limit = PAGE;

const figures = found => found && make("p", { class: "figures" },
  make("b", {}, `${found.answered.toFixed(1)} %`), ` of ${count(found.images, "test image", "test images")} right`,
  make("span", { class: "before" }, `${found.base.toFixed(1)} % before it was learned`));

const card = task => {
  const button = make("button", { type: "button", "aria-label": `Ask as ${task.name}` }, "Ask as this task");
  button.addEventListener("click", () => ask(task.name));
  return make("li", { class: "card" },
    make("h3", {}, task.name),
    figures(shown[task.name]),
    make("p", { class: "soft" }, task.has_expert ? `fused in session ${task.session}` : "no expert: the base answers",
      task.routable ? null : ", never chosen by itself"),
    make("details", {}, make("summary", {}, count(task.classes.length, "class", "classes")),
      make("p", { class: "classes" }, task.classes.join(", "))),
    task.classes.length ? button : null);
};

const found = () => {
  const wanted = $("filter").value.trim().toLowerCase();
  return tasks.filter(task => !wanted || [task.name, ...task.classes].some(text => text.toLowerCase().includes(wanted)));
};

const draw = () => {
  const matching = found();
  $("gallery").replaceChildren(...matching.slice(0, limit).map(card));
  if (!matching.length) $("gallery").append(make("li", { class: "soft" }, "No task or class is called that."));
  $("more-tasks").hidden = matching.length <= limit;
};

/** One sample of each task, then another of each, so that few tasks do not fill the strip. */
const sampleStrip = async () => {
  const all = Object.entries(shown).map(([task, found]) => found.samples.map(sample => ({ ...sample, task })));
  const most = Math.max(0, ...all.map(samples => samples.length));
  const strip = Array.from({ length: most }, (_, place) => all.map(samples => samples[place])).flat()
    .filter(Boolean).slice(0, SAMPLES);
  $("samples-part").hidden = !strip.length;
  const buttons = await Promise.all(strip.map(async sample => {
    const file = await imageFile(sample.path, `${sample.task} sample`).catch(() => null);
    if (!file) return null;
    const button = make("button", { type: "button", title: sample.task, "aria-pressed": "false" },
      make("img", { src: URL.createObjectURL(file), alt: `a sample of ${sample.task}` }));
    button.addEventListener("click", () => choose([file], button));
    return make("li", {}, button);
  }));
  $("samples").replaceChildren(...buttons.filter(Boolean));
};

/** Show the tasks. `askAs(name)` is called where one is to be asked. */
export const showGallery = (found, showcase, askAs) => {
  tasks = found;
  shown = showcase.tasks;
  ask = askAs;
  draw();
  return sampleStrip();
};

$("filter").addEventListener("input", () => { limit = PAGE; draw(); });
$("more-tasks").addEventListener("click", () => { limit += PAGE; draw(); });
