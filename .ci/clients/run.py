"""Run clients and coding agents of others against our server, and print what each call answered.

    .tox/vllm/bin/python .ci/clients/run.py [FOLDER]

The clients (`python_clients.py`, `node_clients.mjs`), and LiteLLM's proxy in front of the server,
ask the bundled models. The agents ask the simulated engine, because their prompts have 10,000 to
20,000 tokens. An agent passes if it ends with exit code 0 and the server has answered its requests;
the simulated engine also calls tools, so that the agents send results of tools back. The packages
are installed into FOLDER (.tox/clients) from PyPI and npm, and Node must be there. The exit code
says whether everything passed. docs/compatibility.md has the results.
"""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent
PYTHON = (
    "anthropic==2.14.0",
    "instructor==1.17.0",
    "langchain-anthropic==1.7.10",
    "langchain-openai==1.7.4",
    "litellm[proxy]==1.106.12",
    "llm==0.32.1",
    "mcp==2.3.0",
    "openai==2.54.0",
)
NODE = (
    "@ai-sdk/openai-compatible@2.0.92",
    "@anthropic-ai/claude-code@2.1.197",
    "@anthropic-ai/sdk@1.14.0",
    "@openai/codex@0.171.0",
    "ai@6.0.326",
    "openai@6.49.0",
    "opencode-ai@1.18.33",
)
KEY = "sk-none"
# LiteLLM would fetch its list of prices.
ENVIRONMENT = os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
MODEL = "bundled"


def main() -> bool:
    folder = pathlib.Path(sys.argv[1]) if sys.argv[1:] else ROOT / ".tox/clients"
    install(folder)
    with serving() as url:
        lines = clients(folder, url, MODEL)
        with proxy(folder, url) as through:
            lines += proxied(through)
    with serving("--model", "bundled-embedding") as url:
        lines += clients(folder, url, "bundled-embedding", "embeddings")
    log = pathlib.Path(tempfile.mkdtemp(), "requests.jsonl")
    with serving("--engine", "simulated", "--engine-arg", "max_model_len=200000", "--engine-arg", "num_blocks=40000", log=log) as url:
        lines += [agent(folder, name, url, log) for name in AGENTS]
    print(*lines, sep="\n")
    return all(line.startswith("ok") for line in lines)


def install(folder: pathlib.Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", folder / "python"], check=True)
    subprocess.run([folder / "python/bin/pip", "install", "-q", *PYTHON], check=True)
    (folder / "node").mkdir(exist_ok=True)
    subprocess.run(["npm", "install", "--silent", "--prefix", folder / "node", *NODE], check=True)
    # Node looks for packages beside the program.
    (folder / "node/node_clients.mjs").write_text((HERE / "node_clients.mjs").read_text())


@contextlib.contextmanager
def serving(*options: str, log: pathlib.Path | None = None) -> Iterator[str]:
    """Run our server on port 8741, and yield its URL as soon as it is ready."""
    port = 8741
    keep = ["--request-log", str(log)] if log else []
    command = [sys.executable, "-m", "frontends.aiohttp_app", "--port", str(port), *keep, *options]
    with running(command, f"http://127.0.0.1:{port}/health/ready", cwd=ROOT) as url:
        yield url


@contextlib.contextmanager
def proxy(folder: pathlib.Path, url: str) -> Iterator[str]:
    """Run LiteLLM's proxy in front of the server."""
    settings = {
        "model_list": [
            {"model_name": provider, "litellm_params": {"model": f"{provider}/{MODEL}", "api_base": f"{url}/v1", "api_key": KEY}}
            for provider in ("openai", "hosted_vllm")
        ],
        "general_settings": {"master_key": KEY},
    }
    # JSON is YAML.
    (folder / "proxy.yaml").write_text(json.dumps(settings))
    command = [str(folder / "python/bin/litellm"), "--config", str(folder / "proxy.yaml"), "--port", "8742"]
    with running(command, "http://127.0.0.1:8742/health/liveliness", cwd=folder) as through:
        yield through


@contextlib.contextmanager
def running(command: list[str], probe: str, cwd: pathlib.Path) -> Iterator[str]:
    with subprocess.Popen(command, cwd=cwd, env=ENVIRONMENT, stdout=sys.stderr, stderr=sys.stderr) as process:
        try:
            deadline = time.monotonic() + 300
            while not answers(probe):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"{command} did not get ready")
                time.sleep(0.2)
            yield probe.removesuffix("/health/ready").removesuffix("/health/liveliness")
        finally:
            process.terminate()


def answers(probe: str) -> bool:
    try:
        with urllib.request.urlopen(probe, timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


def clients(folder: pathlib.Path, url: str, *arguments: str) -> list[str]:
    commands = (
        [str(folder / "python/bin/python"), str(HERE / "python_clients.py")],
        ["node", str(folder / "node/node_clients.mjs")],
    )
    lines = []
    for command in commands:
        done = subprocess.run([*command, url, *arguments], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, timeout=600, check=True)
        lines += [line for line in done.stdout.splitlines() if line.startswith(("ok | ", "failed | "))]
    return lines


def proxied(url: str) -> list[str]:
    """Ask through the proxy, in each of its APIs and for each way in which it calls the server."""
    question = [{"role": "user", "content": "What is the capital of France?"}]
    bodies = {
        "/v1/chat/completions": {"messages": question, "max_tokens": 12},
        "/v1/messages": {"messages": question, "max_tokens": 12},
        "/v1/responses": {"input": question, "max_output_tokens": 16},
    }
    lines = []
    for provider in ("openai", "hosted_vllm"):
        for path, body in bodies.items():
            for stream in (False, True):
                data = json.dumps({"model": provider, "stream": stream, **body}).encode()
                headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
                name = f"LiteLLM's proxy as `{provider}`, {path}{' streamed' if stream else ''}"
                try:
                    with urllib.request.urlopen(urllib.request.Request(url + path, data, headers), timeout=60) as response:
                        found = b"Paris" in response.read()
                    lines.append(f"{'ok' if found else 'failed'} | {name} |")
                except urllib.error.HTTPError as error:
                    lines.append(f"failed | {name} | {error.read()[:300]!r}")
    return lines


def codex(home: pathlib.Path, url: str) -> list[str]:
    provider = f'[model_providers.here]\nname = "here"\nbase_url = "{url}/v1"\nwire_api = "responses"\n'
    (home / "config.toml").write_text(f'model = "{MODEL}"\nmodel_provider = "here"\n{provider}')
    return ["codex", "exec", "--skip-git-repo-check", "say hello"]


def opencode(home: pathlib.Path, url: str) -> list[str]:
    model = {"name": MODEL, "limit": {"context": 200_000, "output": 4096}}
    provider = {"npm": "@ai-sdk/openai-compatible", "name": "here", "options": {"baseURL": f"{url}/v1"}, "models": {MODEL: model}}
    (home / "opencode.json").write_text(json.dumps({"provider": {"here": provider}, "model": f"here/{MODEL}"}))
    return ["opencode", "run", "say hello"]


def claude(home: pathlib.Path, url: str) -> list[str]:
    return ["claude", "-p", "say hello"]


# Each agent writes its settings and returns its command; and the route that it calls.
AGENTS = {"codex": (codex, "/v1/responses"), "opencode": (opencode, "/v1/chat/completions"), "claude": (claude, "/v1/messages")}


def agent(folder: pathlib.Path, name: str, url: str, log: pathlib.Path) -> str:
    configure, route = AGENTS[name]
    before = len(log.read_text().splitlines())
    with tempfile.TemporaryDirectory(dir=folder) as home:
        program, *arguments = configure(pathlib.Path(home), url)
        environment = {"PATH": os.environ["PATH"], "HOME": home, "CODEX_HOME": home, "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1"}
        environment |= {
            "ANTHROPIC_BASE_URL": url,
            "ANTHROPIC_AUTH_TOKEN": KEY,
            "ANTHROPIC_MODEL": MODEL,
            "ANTHROPIC_SMALL_FAST_MODEL": MODEL,
        }
        command = [str(folder / "node/node_modules/.bin" / program), *arguments]
        done = subprocess.run(
            command, cwd=home, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False
        )
    records = [json.loads(line) for line in log.read_text().splitlines()[before:]]
    asked = [record for record in records if record["route"] == route]
    good = done.returncode == 0 and asked and all(record["outcome"] == "completed" for record in asked)
    tokens = max((record["prompt_tokens"] for record in asked), default=0)
    words = f"{len(asked)} requests, the longest prompt has {tokens} tokens" if good else done.stderr[-300:]
    return f"{'ok' if good else 'failed'} | {name}, {route} | {words!r}"


if __name__ == "__main__":
    sys.exit(not main())
