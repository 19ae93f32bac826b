// Renders /openapi.json for people. Fetches nothing else.
"use strict";

const make = (tag, text, name) => {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;   // text, never HTML: nothing in the schema can run
  if (name) node.className = name;
  return node;
};

// what stands between backticks is code
const prose = (tag, text) => {
  const node = make(tag);
  text.split("`").forEach((part, i) => node.append(i % 2 ? make("code", part) : part));
  return node;
};

const nameOf = schema => {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map(nameOf).join(" or ");
  if (schema.enum) return schema.enum.map(value => JSON.stringify(value)).join(" | ");
  if (schema.type === "array") return "list of " + (nameOf(schema.items) || "values");
  return schema.format === "binary" ? "file" : (schema.type || "");
};

const table = (heads, rows) => {
  const node = make("table"), head = make("tr");
  heads.forEach(text => head.append(make("th", text)));
  node.append(head);
  rows.forEach(cells => {
    const row = make("tr");
    cells.forEach((text, i) => { const td = make("td"); td.append(i ? prose("span", text) : make("code", text)); row.append(td); });
    node.append(row);
  });
  return node;
};

const fieldsOf = (schema, all) => {
  const found = schema && schema.$ref ? all[nameOf(schema)] : schema;
  return Object.entries((found && found.properties) || {})
    .map(([name, field]) => [name, nameOf(field), field.description || ""]);
};

const operation = (path, method, op, all) => {
  const node = make("section"), title = make("h2");
  title.append(make("span", method.toUpperCase(), "method"), " ", make("code", path), " ", op.summary || "");
  node.append(title);
  const shown = (name, content) => {
    if (!content || !content.example) return;
    node.append(make("h3", name), make("pre", JSON.stringify(content.example, null, 1)));
  };
  if (op.description) node.append(prose("p", op.description));
  const body = op.requestBody && op.requestBody.content;
  if (body) {
    node.append(make("h3", "Body: " + Object.keys(body).join(", or ")));
    const form = body["multipart/form-data"];
    if (form) node.append(table(["field", "type", ""], fieldsOf(form.schema, all)));
  }
  if (op.parameters && op.parameters.length) {
    node.append(make("h3", "Query string"));
    node.append(table(["name", "type", ""], op.parameters.map(p => [p.name, nameOf(p.schema), p.description || ""])));
  }
  node.append(make("h3", "Answers"));
  const answers = Object.entries(op.responses).map(([status, answer]) => {
    const json = answer.content && answer.content["application/json"];
    return [status, nameOf(json && json.schema), answer.description || ""];
  });
  node.append(table(["status", "body", ""], answers));
  shown("Example of a body", body && body["application/json"]);
  const ok = op.responses["200"] && op.responses["200"].content["application/json"];
  const fields = fieldsOf(ok && ok.schema, all);
  if (fields.length) node.append(make("h3", nameOf(ok.schema)), table(["field", "type", ""], fields));
  shown("Example of an answer", ok);
  return node;
};

fetch("openapi.json").then(answer => answer.json()).then(spec => {
  const all = (spec.components && spec.components.schemas) || {}, main = document.getElementById("operations");
  document.getElementById("title").textContent = spec.info.title + ": HTTP API";
  document.getElementById("about").replaceChildren(prose("span", spec.info.description || ""));
  for (const [path, methods] of Object.entries(spec.paths))
    for (const [method, op] of Object.entries(methods)) main.append(operation(path, method, op, all));
  main.append(make("h2", "Records"));
  for (const [name, schema] of Object.entries(all)) {
    const node = make("section");
    node.append(make("h2", name), table(["field", "type", ""], fieldsOf(schema, all)));
    main.append(node);
  }
}).catch(error => { document.getElementById("about").textContent = "openapi.json cannot be loaded: " + error; });
