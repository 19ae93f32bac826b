// One card per image: what it is, the candidates as bars, and why.

import { count, list, make, percent } from "./dom.js";

const bar = candidate => {
  const fill = make("span", { class: "fill" });
  fill.style.width = `${100 * candidate.probability}%`;
  return make("li", {},
    fill,
    make("span", { class: "name" }, candidate.label,
      candidate.task ? make("span", { class: "of" }, candidate.task) : null),
    make("span", { class: "percent" }, percent(candidate.probability)));
};

const asked = (prediction, answer, task) => {
  const experts = prediction.experts;
  if (answer.label_space === "task") {
    return experts.length ? `You named ${task}: its expert alone answered.`
      : `You named ${task}: it needs no expert, the base answers with what it kept of the task's images.`;
  }
  const whose = experts.length === 1 ? `the expert of ${experts[0]}` : `the experts of ${list(experts)}`;
  if (answer.label_space === "labels") {
    const matched = Object.entries(answer.matched)
      .map(([name, labels]) => `${list(Object.keys(labels))} (${name})`);
    if (!matched.length) return "No task was taught these labels: the base alone answered.";
    return `Taught before: ${matched.join("; ")}. ` + (experts.length
      ? `The base answered together with ${whose}.`
      : "The image does not look like that: the base alone answered.");
  }
  if (prediction.rule === "mean") return `The base answered together with ${whose}, the nearest to the image.`;
  return experts.length ? `It looks most like the images of ${list(experts)}: ${whose} answered.`
    : "No expert was needed: the base answers with what it kept of the tasks' images.";
};

const usual = prediction => {
  if (prediction.familiarity === null) return null;
  const share = percent(prediction.familiarity, prediction.familiarity < 0.1 ? 1 : 0);
  return `Familiarity ${share}: ${prediction.familiarity < 0.05 ? "unlike" : "as usual as"} what was learned.`;
};

const headline = (prediction, task) => {
  if (prediction.unknown) {
    return [make("p", { class: "said unknown" }, "unknown"),
      make("p", { class: "soft" }, "It is unlike everything that was learned. The nearest classes:")];
  }
  const of = prediction.task || task;
  return [make("p", { class: "said" }, prediction.label),
    make("p", { class: "soft" }, [percent(prediction.probability), of ? `task ${of}` : null].filter(Boolean).join(" · "))];
};

/** `pictures`: URLs of the images, in their order; `task`: as it was named. */
export const answerCards = ({ body, id, seconds }, pictures, task) => body.predictions.map((prediction, index) => {
  const picture = make("img", { src: pictures[index], alt: prediction.image });
  picture.addEventListener("error", () => { picture.hidden = true; });  // a format that only the service can open
  return make("article", { class: "answer", "aria-label": prediction.image },
    make("div", { class: "headline" }, picture, make("div", {}, ...headline(prediction, task))),
    make("ol", { class: "bars" }, ...prediction.top.map(bar)),
    make("p", { class: "why" }, [asked(prediction, body, task), usual(prediction)].filter(Boolean).join(" ")),
    ...body.warnings.map(text => make("p", { class: "error" }, text)),
    make("p", { class: "soft" },
      `${count(prediction.experts.length, "expert", "experts")} asked · version ${body.version} · `
      + `${Math.round(1000 * body.seconds)} ms in the service, ${Math.round(1000 * seconds)} ms in all · request ${id}`));
});
