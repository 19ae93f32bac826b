// The versions of the store, newest first, a page at a time.

import { json } from "./api.js";
import { $, count, make } from "./dom.js";

let before = null;

const row = (version, serving) => {
  const mode = version.mode ? version.mode.name : null;
  const tasks = version.num_tasks === null ? null : count(version.num_tasks, "task", "tasks");
  const when = version.created ? make("time", { dateTime: version.created }, new Date(version.created).toLocaleString())
    : null;
  return make("li", {},
    make("span", { class: "number" }, String(version.version)),
    make("span", { class: "what" }, version.problem ? make("span", { class: "error" }, version.problem)
      : make("span", {}, version.why || "published", make("span", { class: "of" }, [tasks, mode].filter(Boolean).join(", "))),
    version.version === serving ? make("span", { class: "badge" }, "being served") : null),
    make("span", { class: "when" }, when));
};

/** Show the newest versions, or with `older` those below the ones that are there. */
export const showHistory = async ({ older = false } = {}) => {
  const page = await json(older && before ? `v1/versions?before=${before}` : "v1/versions");
  const rows = page.versions.map(version => row(version, page.serving));
  if (older) $("history").append(...rows);
  else $("history").replaceChildren(...rows);
  before = page.before;
  $("older").hidden = before === null;
};
