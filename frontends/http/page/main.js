// The page at `/`: the model and its state, a chat, the load, and examples of calls.

import { askForKey, call, keyRequired, NeedsKey, root } from "./api.js";
import { Chat } from "./chat.js";
import { Figures } from "./figures.js";

const element = (id) => document.getElementById(id);
let model = "";

const needsKey = (error) => askForKey(error, start);
const chat = new Chat(() => model, needsKey);
const figures = new Figures(needsKey, showState);

function showState(state) {
  const badge = element("state");
  badge.textContent = state;
  badge.className = `badge ${state === "ready" ? "good" : ["failed", "not reachable"].includes(state) ? "bad" : ""}`;
  if (state === "ready" && !element("model").dataset.context) showModel().catch(() => {});
}

async function showModel() {
  const card = (await (await call("v1/models")).json()).data[0];
  model = card.id;
  element("model").textContent = card.max_model_len ? `${model}, context of ${card.max_model_len.toLocaleString("en")} tokens` : model;
  element("model").dataset.context = card.max_model_len ?? "";
  const most = element("max-tokens");
  if (card.max_model_len) most.value = Math.min(most.valueAsNumber || 512, Math.floor(card.max_model_len / 2));
  document.title = `${model} – llmserve`;
  showCalls();
}

function showCalls() {
  const base = new URL("v1", root).href;
  const authorization = keyRequired ? ` \\\n  -H "Authorization: Bearer $LLMSERVE_API_KEY"` : "";
  const key = keyRequired ? `os.environ["LLMSERVE_API_KEY"]` : `"none"`;
  const body = JSON.stringify({ model, messages: [{ role: "user", content: "Hello" }] });
  element("curl").textContent = `curl ${base}/chat/completions${authorization} \\\n  -H "Content-Type: application/json" \\\n  -d ${quoted(body)}`;
  element("python").textContent = [
    ...(keyRequired ? ["import os", ""] : []),
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${JSON.stringify(base)}, api_key=${key})`,
    "stream = client.chat.completions.create(",
    `    model=${JSON.stringify(model)},`,
    '    messages=[{"role": "user", "content": "Hello"}],',
    "    stream=True,",
    ")",
    "for chunk in stream:",
    '    print(chunk.choices[0].delta.content or "", end="", flush=True)',
  ].join("\n");
}

const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

for (const button of document.querySelectorAll(".copy")) {
  // Browsers offer the clipboard only to pages from localhost or over HTTPS.
  button.hidden = !navigator.clipboard;
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(element(button.dataset.of).textContent);
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
}

async function start() {
  try {
    await showModel();
  } catch (error) {
    if (error instanceof NeedsKey) return needsKey(error);
    showState("not reachable");
  }
  figures.start();
}

start();
export { chat };
