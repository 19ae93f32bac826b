"""The page at `/docs`: renders `/openapi.json` readably, and fetches nothing from anywhere else."""

DOCS_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>condu: HTTP API</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
 :root { color-scheme: light dark; --line: #8884; --soft: #8881; --accent: #2a6fdb; }
 body { font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem; }
 code, pre { font: 14px/1.45 ui-monospace, monospace; }
 pre { background: var(--soft); padding: .75rem; overflow: auto; border-radius: .4rem; }
 section { border: 1px solid var(--line); border-radius: .6rem; margin: 1rem 0; padding: .25rem 1rem 1rem; }
 h2 { font-size: 1.1rem; } h3 { font-size: .95rem; margin: 1rem 0 .25rem; }
 .method { color: #fff; background: var(--accent); border-radius: .3rem; padding: .1rem .5rem; font-size: .85rem; }
 table { border-collapse: collapse; width: 100%; }
 td, th { text-align: left; vertical-align: top; padding: .3rem .6rem .3rem 0; border-top: 1px solid var(--line); }
 th { font-weight: 600; border: 0; } .soft { opacity: .7; }
</style></head><body>
<h1 id="title">condu</h1><p id="about" class="soft">Reading <a href="openapi.json">openapi.json</a> …</p>
<main id="operations"></main>
<p class="soft">The same as a machine reads it: <a href="openapi.json">openapi.json</a></p>
<script>
"use strict";
const make = (tag, text, name) => {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;   // text, never HTML: nothing in the schema can run
  if (name) node.className = name;
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
    cells.forEach((text, i) => { const td = make("td"); td.append(i ? text : make("code", text)); row.append(td); });
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
  if (op.description) node.append(make("p", op.description));
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
  const ok = op.responses["200"] && op.responses["200"].content["application/json"];
  const fields = fieldsOf(ok && ok.schema, all);
  if (fields.length) node.append(make("h3", nameOf(ok.schema)), table(["field", "type", ""], fields));
  return node;
};
fetch("openapi.json").then(answer => answer.json()).then(spec => {
  const all = (spec.components && spec.components.schemas) || {}, main = document.getElementById("operations");
  document.getElementById("title").textContent = spec.info.title + ": HTTP API";
  document.getElementById("about").textContent = spec.info.description || "";
  for (const [path, methods] of Object.entries(spec.paths))
    for (const [method, op] of Object.entries(methods)) main.append(operation(path, method, op, all));
  main.append(make("h2", "Records"));
  for (const [name, schema] of Object.entries(all)) {
    const node = make("section");
    node.append(make("h2", name), table(["field", "type", ""], fieldsOf(schema, all)));
    main.append(node);
  }
}).catch(error => { document.getElementById("about").textContent = "openapi.json can't be read: " + error; });
</script></body></html>
"""
