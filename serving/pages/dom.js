// Builds elements. Text becomes text, never HTML: nothing that a task, a label or a file is called can run.

export const $ = id => document.getElementById(id);

/** An element with properties (`class` and `aria-…` among them) and children, which may be strings; null is left out. */
export const make = (tag, properties = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") node.className = value;
    else if (name.startsWith("aria-") || name === "role") node.setAttribute(name, value);
    else node[name] = value;
  }
  node.append(...children.filter(child => child !== null && child !== undefined));
  return node;
};

export const percent = (value, digits = 0) =>
  value > 0 && value < 0.005 && !digits ? "< 1 %" : `${(100 * value).toFixed(digits)} %`;

export const list = names => names.length < 2 ? names.join("")
  : `${names.slice(0, -1).join(", ")} and ${names[names.length - 1]}`;

/** "1 class", "3 classes". */
export const count = (number, one, many) => `${number} ${number === 1 ? one : many}`;
