// The chat: one conversation, streamed. Stop closes the stream, which frees the engine.

import { call, events, NeedsKey } from "./api.js";

const element = (id) => document.getElementById(id);

export class Chat {
  #history = [];
  #abort = null;

  /** `model` returns the served model's name; `needsKey` is called with the error of a missing key. */
  constructor(model, needsKey) {
    this.model = model;
    this.needsKey = needsKey;
    element("ask").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#ask();
    });
    element("text").addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      element("ask").requestSubmit();
    });
    element("stop").addEventListener("click", () => this.#abort?.abort());
    element("clear").addEventListener("click", () => this.#clear());
  }

  #clear() {
    this.#abort?.abort();
    this.#history = [];
    element("messages").replaceChildren();
    element("text").focus();
  }

  async #ask() {
    const text = element("text").value.trim();
    if (!text || this.#abort) return;
    const history = this.#history;
    const question = show("user", text);
    const answer = show("assistant", "");
    element("text").value = "";
    this.#busy(new AbortController());
    try {
      const content = await this.#stream([...history, { role: "user", content: text }], answer);
      history.push({ role: "user", content: text }, { role: "assistant", content });
    } catch (error) {
      // The failed turn leaves the conversation, and its text returns to the input.
      question.remove();
      element("text").value = text;
      if (error instanceof NeedsKey) {
        answer.remove();
        this.needsKey(error);
      } else {
        note(answer, error.message, "error");
      }
    } finally {
      this.#busy(null);
    }
  }

  /** Stream an answer into its element. Return its text, also when the user stops it. */
  async #stream(messages, answer) {
    const started = performance.now();
    const signal = this.#abort.signal;
    const body = {
      model: this.model(),
      messages,
      max_tokens: element("max-tokens").valueAsNumber || 512,
      temperature: element("temperature").valueAsNumber || 0,
      stream: true,
      stream_options: { include_usage: true },
    };
    let first = null;
    let text = "";
    const node = answer.appendChild(document.createTextNode(""));
    // Once per frame: a layout per token would make long answers slow.
    let pending = "";
    const flush = () => {
      node.appendData(pending);
      pending = "";
      follow();
    };
    try {
      const headers = { "Content-Type": "application/json" };
      const response = await call("v1/chat/completions", { method: "POST", headers, body: JSON.stringify(body), signal });
      let usage = null;
      for await (const event of events(response)) {
        if (event.error) throw new Error(event.error.message);
        usage = event.usage ?? usage;
        const delta = event.choices?.[0]?.delta ?? {};
        const more = (delta.reasoning ?? delta.reasoning_content ?? "") + (delta.content ?? "");
        if (!more) continue;
        first ??= performance.now() - started;
        text += delta.content ?? "";
        if (!pending) requestAnimationFrame(flush);
        pending += more;
      }
      flush();
      note(answer, summary(usage, first, performance.now() - started));
    } catch (error) {
      flush();
      if (!signal.aborted) throw error;
      note(answer, "stopped");
    }
    return text;
  }

  #busy(abort) {
    this.#abort = abort;
    element("send").disabled = abort !== null;
    element("stop").hidden = abort === null;
  }
}

function show(role, text) {
  const message = document.createElement("div");
  message.className = `message ${role}`;
  message.textContent = text;
  element("messages").append(message);
  follow(true);
  return message;
}

function note(message, text, kind = "hint") {
  const line = document.createElement("span");
  line.className = kind;
  line.textContent = text;
  message.append(line);
  follow();
}

function summary(usage, first, total) {
  if (!usage || first === null) return "no text";
  return `${usage.completion_tokens} tokens, first after ${first.toFixed(0)} ms, ${(total / 1000).toFixed(1)} s in total`;
}

/** Keep the end of the conversation in view, unless the reader has scrolled up. */
function follow(always = false) {
  const log = element("messages");
  if (always || log.scrollHeight - log.scrollTop - log.clientHeight < 80) log.scrollTop = log.scrollHeight;
}
