// The images to ask about: picked, dropped, pasted, or a sample.

import { $, make } from "./dom.js";

let files = [], urls = [], changed = () => {};

export const chosen = () => ({ files, urls });

export const choose = (found, sample = null) => {
  const images = found.filter(file => file.type.startsWith("image/") || !file.type);
  if (!images.length) return false;
  urls.forEach(url => URL.revokeObjectURL(url));
  files = images;
  urls = files.map(file => URL.createObjectURL(file));
  $("chosen").replaceChildren(...files.map((file, index) => {
    const picture = make("img", { src: urls[index], alt: file.name, title: file.name });
    picture.addEventListener("error", () => picture.replaceWith(make("span", {}, file.name)));
    return make("li", {}, picture);
  }));
  document.querySelectorAll("#samples button").forEach(button =>
    button.setAttribute("aria-pressed", String(button === sample)));
  changed();
  return true;
};

/** Listen at the file input, the drop zone and the clipboard. `callback`: there are new images. */
export const listen = callback => {
  changed = callback;
  const input = $("files"), drop = $("drop");
  input.addEventListener("change", () => { choose([...input.files]); input.value = ""; });
  const over = on => event => { event.preventDefault(); drop.classList.toggle("over", on); };
  drop.addEventListener("dragenter", over(true));
  drop.addEventListener("dragover", over(true));
  drop.addEventListener("dragleave", over(false));
  drop.addEventListener("drop", event => { over(false)(event); choose([...event.dataTransfer.files]); });
  document.addEventListener("paste", event => {
    if (choose([...(event.clipboardData ? event.clipboardData.files : [])])) event.preventDefault();
  });
};
