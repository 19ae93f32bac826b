// Talks to the service this page came from. The token, where one is needed, lives as long as the tab.

const KEY = "condu-token";
let onTokenNeeded = () => {};

export const whenTokenIsNeeded = callback => { onTokenNeeded = callback; };
export const useToken = token => sessionStorage.setItem(KEY, token);

export class Problem extends Error {}

const request = async (path, options = {}) => {
  const token = sessionStorage.getItem(KEY);
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch {
    throw new Problem("The service does not answer. Is it still running?");
  }
  if (answer.ok) return answer;
  if (answer.status === 401) onTokenNeeded();
  const problem = await answer.json().catch(() => ({}));
  throw new Problem(problem.detail || `The service answered with status ${answer.status}.`);
};

export const json = async path => (await request(path)).json();

/** The URL of an image behind the token: `<img src>` alone could not send it. */
export const imageFile = async (path, name) => {
  const blob = await (await request(path)).blob();
  return new File([blob], name, { type: blob.type });
};

/** Answer, the request's id, and the seconds from here to there and back. */
export const predict = async (files, fields) => {
  const form = new FormData();
  files.forEach(file => form.append("image", file, file.name || "pasted"));
  Object.entries(fields).forEach(([name, value]) => form.append(name, value));
  const started = performance.now();
  const answer = await request("v1/predict", { method: "POST", body: form });
  const body = await answer.json();
  return { body, id: answer.headers.get("X-Request-Id"), seconds: (performance.now() - started) / 1000 };
};

/** Ready or not, `/readyz` answers with the same record. */
export const ready = async () => {
  const answer = await fetch("readyz");
  return answer.json();
};
