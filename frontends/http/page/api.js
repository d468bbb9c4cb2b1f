// Calls to the server that sent this page, with the API key if the server requires one.

const KEY = "llmserve-key";
// The folder of the page, which differs behind a proxy that adds a path prefix.
export const root = new URL(".", location.href);

export const keyRequired = "needsKey" in document.body.dataset;

export class NeedsKey extends Error {}

/** Fetch a path of the server. Throws NeedsKey for 401, and Error with the server's message. */
export async function call(path, options = {}) {
  const headers = new Headers(options.headers);
  const key = sessionStorage.getItem(KEY);
  if (keyRequired && !key) throw new NeedsKey("");
  try {
    if (key) headers.set("Authorization", `Bearer ${key}`);
  } catch {
    throw new NeedsKey("An API key cannot have these characters.");
  }
  const response = await fetch(new URL(path, root), { ...options, headers });
  if (response.status === 401) throw new NeedsKey(key ? "The server does not accept this key." : "");
  if (!response.ok) throw new Error(await reason(response));
  return response;
}

async function reason(response) {
  let message = `the server answered with status ${response.status}`;
  try {
    message = (await response.json()).error.message;
  } catch {
    // A proxy's own error page is not JSON.
  }
  const wait = response.headers.get("Retry-After");
  return wait ? `${message} (retry in ${wait} s)` : message;
}

/** Yield the data of each server-sent event as parsed JSON, until `[DONE]`. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    buffer += value;
    let end;
    while ((end = buffer.indexOf("\n\n")) >= 0) {
      const event = buffer.slice(0, end);
      buffer = buffer.slice(end + 2);
      for (const line of event.split("\n")) {
        if (!line.startsWith("data: ")) continue;
        if (line === "data: [DONE]") return;
        yield JSON.parse(line.slice(6));
      }
    }
  }
}

// The browser sends no key when the user follows a link.
for (const link of document.querySelectorAll(".needs-key")) link.hidden = keyRequired;

const FORM = `
  <form id="key-form" class="notice" hidden>
    <label for="key">This server requires an API key.</label>
    <div class="row">
      <input id="key" type="password" autocomplete="off" spellcheck="false" required>
      <button>Use this key</button>
    </div>
    <p class="hint">The page keeps the key until you close this tab.</p>
    <p id="key-error" role="alert" class="error"></p>
  </form>`;
document.querySelector("main").insertAdjacentHTML("afterbegin", FORM);

/** Show the form for the API key, and call `retry` with a new key in use. */
export function askForKey(error, retry) {
  const form = document.getElementById("key-form");
  document.getElementById("key-error").textContent = error.message;
  form.hidden = false;
  form.onsubmit = (event) => {
    event.preventDefault();
    const input = document.getElementById("key");
    sessionStorage.setItem(KEY, input.value.trim());
    input.value = "";
    form.hidden = true;
    retry();
  };
}
