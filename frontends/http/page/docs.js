// The page at `/docs`: the OpenAPI document as tables.

import { askForKey, call, NeedsKey } from "./api.js";

let schemas = {};

function make(tag, text = "", name = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = name;
  return made;
}

const named = (schema) => schema?.$ref?.split("/").at(-1);
const resolved = (schema) => (named(schema) ? schemas[named(schema)] : schema);

/** A short name of a schema's type, such as `string or null` or `list of Message`. */
function type(schema) {
  if (!schema) return "any";
  if (named(schema)) return schemas[named(schema)]?.properties ? named(schema) : type(schemas[named(schema)]);
  if (schema.anyOf) return [...new Set(schema.anyOf.map(type))].join(" or ");
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" or ");
  if (schema.type === "array") return `list of ${type(schema.items)}`;
  return [schema.type ?? "any"].flat().join(" or ");
}

/** The text with a link at each name of a type that has a table of its own. */
function linked(text) {
  return text.split(/(\w+)/).map((part) => {
    if (!schemas[part]?.properties) return part;
    const link = make("a", part);
    link.href = `#${part}`;
    return link;
  });
}

function openTarget() {
  const target = document.getElementById(location.hash.slice(1));
  if (target) target.open = true;
  target?.scrollIntoView();
}

function bounds(schema) {
  const names = { minimum: "≥", maximum: "≤", exclusiveMinimum: ">", exclusiveMaximum: "<", minLength: "length ≥", maxLength: "length ≤" };
  return Object.entries(names).filter(([key]) => schema[key] != null).map(([key, sign]) => `${sign} ${schema[key].toLocaleString("en")}`).join(", ");
}

function fields(schema) {
  const table = make("table");
  const head = table.createTHead().insertRow();
  for (const title of ["field", "type", "default"]) head.append(make("th", title));
  const body = table.createTBody();
  const required = new Set(schema.required);
  const sorted = Object.entries(schema.properties ?? {}).sort(([one], [other]) => required.has(other) - required.has(one));
  for (const [name, field] of sorted) {
    const row = body.insertRow();
    row.insertCell().append(make("code", name));
    row.insertCell().append(...linked([type(field), bounds(field), field.description].filter(Boolean).join("; ")));
    row.insertCell().textContent = required.has(name) ? "required" : "default" in field ? JSON.stringify(field.default) : "";
  }
  const frame = make("div", "", "scroll");
  frame.append(table);
  return frame;
}

function body(title, content) {
  return Object.entries(content ?? {}).flatMap(([kind, { schema }]) => {
    const target = resolved(schema);
    const heading = make("h3", `${title}: ${kind}${named(schema) ? `, ${named(schema)}` : ""}`);
    return target?.properties ? [heading, fields(target)] : [heading];
  });
}

function operation(path, method, description) {
  const box = make("details", "", "operation");
  const summary = make("summary");
  summary.append(make("span", method.toUpperCase(), `method ${method}`), " ", make("code", path), ` ${description.summary}`);
  box.append(summary, ...body("Request", description.requestBody?.content));
  for (const parameter of description.parameters ?? []) {
    const line = make("p", "", "hint");
    line.append(make("code", parameter.name), ` (${parameter.in}, ${type(parameter.schema)}) ${parameter.description ?? ""}`);
    box.append(line);
  }
  box.append(...body("Answer", description.responses["200"]?.content));
  return box;
}

function errors(description) {
  const box = make("details", "", "operation");
  box.append(make("summary", "Errors of all routes"));
  for (const [status, { description: meaning }] of Object.entries(description.responses)) {
    if (status !== "200") box.append(make("p", `${status}: ${meaning}`, "hint"));
  }
  return box;
}

function types() {
  return Object.entries(schemas).filter(([, schema]) => schema.properties).map(([name, schema]) => {
    const box = make("details", "", "operation");
    box.id = name;
    box.append(make("summary", name), make("p", schema.description ?? "", "hint"), fields(schema));
    return box;
  });
}

async function start() {
  try {
    const document_ = await (await call("openapi.json")).json();
    schemas = document_.components.schemas;
    document.getElementById("version").textContent = `version ${document_.info.version}`;
    const operations = Object.entries(document_.paths).flatMap(([path, methods]) =>
      Object.entries(methods).map(([method, description]) => operation(path, method, description)),
    );
    const some = document_.paths["/v1/chat/completions"].post;
    document.getElementById("operations").replaceChildren(...operations, errors(some), make("h2", "Types"), ...types());
    openTarget();
  } catch (error) {
    if (error instanceof NeedsKey) return askForKey(error, start);
    document.getElementById("failure").textContent = error.message;
  }
}

addEventListener("hashchange", openTarget);
start();
