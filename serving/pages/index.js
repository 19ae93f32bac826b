// The page at /: asks the service about images, and shows what it has learned.

import { Problem, json, predict, ready, useToken, whenTokenIsNeeded } from "./api.js";
import { answerCards } from "./answers.js";
import { chosen, listen } from "./chosen.js";
import { $, count, make } from "./dom.js";
import { showGallery } from "./gallery.js";
import { showHistory } from "./history.js";

const POLL_MS = 10000;
let version = null, asking = 0;

const space = () => document.querySelector("input[name=space]:checked").value;

const say = text => $("answers").replaceChildren(make("p", { class: "error", role: "alert" }, text));

const problem = error => {
  if (!(error instanceof Problem)) throw error;
  say(error.message);
};

const fieldsOf = () => {
  const fields = { label_space: space() };
  if (fields.label_space === "seen" && $("abstain").value) fields.abstain = $("abstain").value;
  if (fields.label_space === "task") fields.task = $("task").value;
  if (fields.label_space === "labels") {
    const labels = [...new Set($("labels").value.split(/[\n,]/).map(label => label.trim()).filter(Boolean))];
    if (labels.length < 2) throw new Problem("Give two labels or more: the answer is one of them.");
    fields.labels = JSON.stringify(labels);
  }
  return fields;
};

const askNow = async () => {
  const { files, urls } = chosen();
  const number = ++asking;
  $("answers").setAttribute("aria-busy", "true");
  $("ask-form").querySelector(".primary").disabled = true;
  try {
    if (!files.length) throw new Problem("Choose an image first, drop one, or paste one.");
    const fields = fieldsOf(), answer = await predict(files, fields);
    if (number === asking) $("answers").replaceChildren(...answerCards(answer, urls, fields.task));
  } catch (error) {
    if (number === asking) problem(error);
  } finally {
    if (number === asking) {
      $("answers").setAttribute("aria-busy", "false");
      $("ask-form").querySelector(".primary").disabled = false;
    }
  }
};

const chooseSpace = () => ["seen", "labels", "task"].forEach(name => { $(`for-${name}`).hidden = name !== space(); });

/** Whether the question is complete, so that it may be asked without pressing the button. */
const complete = () => chosen().files.length && (space() !== "labels" || /[\n,]\s*\S/.test($("labels").value.trim()));

const askIfComplete = () => { chooseSpace(); if (complete()) askNow(); };

const askAs = task => {
  document.querySelector("input[name=space][value=task]").checked = true;
  $("task").value = task;
  askIfComplete();
  $("ask").scrollIntoView();
  $("files").focus({ preventScroll: true });
};

const showVersion = async () => {
  const [{ tasks }, showcase] = await Promise.all([json("v1/tasks"), json("v1/showcase")]);
  const named = $("task").value;
  const options = tasks.filter(task => task.classes.length)
    .map(task => make("option", { value: task.name }, `${task.name} (${count(task.classes.length, "class", "classes")})`));
  $("task").replaceChildren(...options);
  if (tasks.some(task => task.name === named)) $("task").value = named;
  await Promise.all([showGallery(tasks, showcase, askAs), showHistory()]);
};

const refresh = async () => {
  try {
    const state = await ready();
    $("serving").textContent = state.version === null ? "no version published yet"
      : `version ${state.version} · ${count(state.tasks, "task", "tasks")}`
        + (state.ready ? "" : " · not ready") + (state.problem ? ` · ${state.problem}` : "");
    if (state.version !== version && state.version !== null) {
      await showVersion();
      version = state.version;
    }
  } catch (error) {
    $("serving").textContent = error instanceof Problem ? error.message : "the service does not answer";
  }
};

whenTokenIsNeeded(() => { $("token-form").hidden = false; });
$("token-form").addEventListener("submit", event => {
  event.preventDefault();
  useToken($("token").value.trim());
  $("token-form").hidden = true;
  version = null;
  refresh();
});
$("ask-form").addEventListener("submit", event => { event.preventDefault(); askNow(); });
document.querySelectorAll("input[name=space], #task, #abstain").forEach(node =>
  node.addEventListener("change", askIfComplete));
$("older").addEventListener("click", () => showHistory({ older: true }).catch(problem));
listen(askIfComplete);
chooseSpace();
refresh();
setInterval(() => document.hidden || refresh(), POLL_MS);
document.addEventListener("visibilitychange", () => document.hidden || refresh());
