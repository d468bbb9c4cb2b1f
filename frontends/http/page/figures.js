// The server's figures, once a second while the page is visible, with a line of the last two minutes.

import { call, NeedsKey } from "./api.js";

const SECONDS = 1;
const KEPT = 120;
const SVG = "http://www.w3.org/2000/svg";

const seconds = (value) => (value == null ? "–" : value < 1 ? `${(value * 1000).toFixed(value < 0.01 ? 1 : 0)} ms` : `${value.toFixed(2)} s`);
const whole = (value) => Math.round(value).toLocaleString("en");
const share = (value) => `${(value * 100).toFixed(0)} %`;

// Each figure: its label, its value from two samples, and its text.
const FIGURES = [
  ["running", (now) => now.admission?.running ?? now.open, (value, now) => whole(value) + limit(now)],
  ["waiting", (now) => now.admission?.waiting ?? 0, whole],
  ["tokens/s", (now, last) => rate(now, last, (sample) => sample.tokens.completion), whole],
  ["KV cache in use", (now) => now.engine?.kv_usage ?? 0, share],
];

const limit = (now) => (now.admission?.limit == null ? "" : ` of ${now.admission.limit}`);

function rate(now, last, of) {
  const time = now.uptime - (last?.uptime ?? now.uptime);
  // A restarted server counts from zero again.
  return time > 0 ? Math.max(0, of(now) - of(last)) / time : 0;
}

function details(now) {
  const pair = (times) => `${seconds(times.p50)} / ${seconds(times.p99)}`;
  const counts = (table) => Object.entries(table).map(([name, count]) => `${name} ${whole(count)}`).join(", ") || "none";
  return {
    "time to first token, p50 / p99": pair(now.ttft),
    "between tokens, p50 / p99": pair(now.itl),
    "queue, p50 / p99": pair(now.queue),
    completed: whole(now.requests.completed),
    cancelled: whole(now.requests.cancelled),
    "refused, by reason": counts(now.admission?.refused ?? {}),
    "queue held by": counts(now.admission?.held ?? {}),
    tenants: whole(Object.keys(now.tenants ?? {}).length),
    policy: now.admission?.policy ?? "–",
    "engine restarts": whole(now.restarts),
    "up for": uptime(now.uptime),
  };
}

function uptime(total) {
  const minutes = Math.floor(total / 60);
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export class Figures {
  #samples = [];
  #timer = null;
  #looking = false;
  #lines = FIGURES.map(([label]) => line(label));

  /** `needsKey` is called with the error of a missing key, `stateIs` with the manager's state. */
  constructor(needsKey, stateIs) {
    this.needsKey = needsKey;
    this.stateIs = stateIs;
    document.addEventListener("visibilitychange", () => this.start());
  }

  start() {
    clearTimeout(this.#timer);
    if (!document.hidden && !this.#looking) this.#look();
  }

  async #look() {
    this.#looking = true;
    try {
      const now = await (await call("metrics.json", { signal: AbortSignal.timeout(10_000) })).json();
      this.#show(now);
    } catch (error) {
      if (error instanceof NeedsKey) return this.needsKey(error);
      this.stateIs("not reachable");
      document.getElementById("age").textContent = `no figures: ${error.message}`;
    } finally {
      this.#looking = false;
    }
    this.#timer = setTimeout(() => this.start(), SECONDS * 1000);
  }

  #show(now) {
    const last = this.#samples.at(-1)?.sample;
    const values = FIGURES.map(([, value]) => value(now, last));
    if (!last || now.uptime > last.uptime) this.#samples.push({ sample: now, values });
    else this.#samples = [{ sample: now, values }];
    this.#samples.splice(0, this.#samples.length - KEPT);
    FIGURES.forEach(([, , text], index) => {
      const { figure, curve } = this.#lines[index];
      figure.textContent = text(values[index], now);
      curve.setAttribute("points", points(this.#samples.map((kept) => kept.values[index])));
    });
    const rows = Object.entries(details(now)).flatMap(([name, text]) => [cell("dt", name), cell("dd", text)]);
    document.getElementById("details").replaceChildren(...rows);
    document.getElementById("age").textContent = "";
    this.stateIs(now.state);
  }
}

function cell(tag, text) {
  const made = document.createElement(tag);
  made.textContent = text;
  return made;
}

function line(label) {
  const group = document.createElement("div");
  const figure = cell("dd", "–");
  const drawing = document.createElementNS(SVG, "svg");
  drawing.setAttribute("viewBox", `0 0 ${KEPT} 100`);
  drawing.setAttribute("preserveAspectRatio", "none");
  drawing.setAttribute("aria-hidden", "true");
  const curve = drawing.appendChild(document.createElementNS(SVG, "polyline"));
  group.append(cell("dt", label), figure, drawing);
  document.getElementById("figures").append(group);
  return { figure, curve };
}

/** The newest value is at the right; the largest value touches the top. */
function points(values) {
  const most = Math.max(...values, 1e-9);
  return values.map((value, index) => `${KEPT - values.length + index + 1},${(97 - (94 * value) / most).toFixed(1)}`).join(" ");
}
