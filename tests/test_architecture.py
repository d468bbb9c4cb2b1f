"""The directions in which modules may import, and what an import may cost."""

import ast
import json
import pathlib
import pydoc
import subprocess
import sys
import textwrap

import pytest

import llmserve

ROOT = pathlib.Path(__file__).parent.parent
PACKAGES = ("llmserve", "frontends", "benchmarks", "reports")

# For each module or package of ours: what of ours it may import at its top. The longest name that fits counts.
ALLOWED = {
    "llmserve.errors": set(),
    "llmserve.structured": {"llmserve.errors"},
    "llmserve.patterns": set(),
    "llmserve.derivations": set(),
    "llmserve.one_of": set(),
    "llmserve.json_schema": {"llmserve.derivations", "llmserve.one_of", "llmserve.patterns"},
    "llmserve.held": {"llmserve.errors", "llmserve.json_schema", "llmserve.patterns", "llmserve.structured"},
    "llmserve.results": set(),
    "llmserve.tools": {"llmserve.errors", "llmserve.json_schema", "llmserve.results", "llmserve.structured"},
    "llmserve.bounds": {"llmserve.errors"},
    "llmserve.template": {"llmserve.errors"},
    "llmserve.inputs": {"llmserve.bounds"},
    "llmserve.request": {
        "llmserve.bounds",
        "llmserve.errors",
        "llmserve.inputs",
        "llmserve.results",
        "llmserve.structured",
        "llmserve.template",
        "llmserve.tools",
    },
    "llmserve.config": {"llmserve.errors"},
    "llmserve.logprobs": {"llmserve.request"},
    "llmserve.backlog": {"llmserve.logprobs", "llmserve.request"},
    "llmserve.cancellation": set(),
    "llmserve.cpus": set(),
    "llmserve.engine": {"llmserve.errors", "llmserve.request", "llmserve.structured", "llmserve.tools"},
    "llmserve.fitting": {"llmserve.errors", "llmserve.request", "llmserve.engine"},
    "llmserve.metrics": {"llmserve.config", "llmserve.request"},
    "llmserve.model_folder": {"llmserve.errors"},
    "llmserve.models": {"llmserve.errors"},
    "llmserve.starting": set(),
    "llmserve.loops": set(),
    "llmserve.lifespan": {"llmserve.loops"},
    "llmserve.wakeup": {"llmserve.loops"},
    "llmserve.stream": {
        "llmserve.backlog",
        "llmserve.engine",
        "llmserve.errors",
        "llmserve.metrics",
        "llmserve.request",
        "llmserve.tools",
        "llmserve.wakeup",
    },
    "llmserve.admission": {"llmserve.admission", "llmserve.errors", "llmserve.config"},
    "llmserve.engines": {
        "llmserve.admission",
        "llmserve.cpus",
        "llmserve.engines",
        "llmserve.engine",
        "llmserve.errors",
        "llmserve.heap",
        "llmserve.held",
        "llmserve.json_schema",
        "llmserve.model_folder",
        "llmserve.models",
        "llmserve.patterns",
        "llmserve.request",
        "llmserve.starting",
        "llmserve.structured",
        "llmserve.tools",
    },
    "llmserve.tracing": {"llmserve.request"},
    "llmserve.exporters": {
        "llmserve.errors",
        "llmserve.exporters",
        "llmserve.metrics",
        "llmserve.request",
        "llmserve.tracing",
    },
    "llmserve": {"llmserve"},
    "frontends": {"frontends", "llmserve"},
    "benchmarks": {"benchmarks", "llmserve"},
    # The largest request that our servers take, and the first bytes of the raw socket's wire.
    "benchmarks.attacks.inputs": {"frontends"},
    # Serves our own HTTP over the manager that is measured in process, so that both targets share one engine.
    "benchmarks.targets.here": {"benchmarks", "llmserve", "frontends"},
    "benchmarks.targets.cluster": {"benchmarks", "frontends"},
    "benchmarks.targets.joined": {"frontends", "llmserve"},
    "benchmarks.soak_clients": {"benchmarks", "llmserve", "frontends.socket_client"},
    "benchmarks.targets.socket": {"benchmarks", "llmserve", "frontends"},
    "reports": {"reports", "benchmarks"},
}
# The core speaks anyio, admission does not even know that there is time, and only the adapter knows vLLM.
FORBIDDEN = {
    "llmserve.admission": {"anyio", "asyncio", "time", "random", "threading"},
    "llmserve.cancellation": {"anyio", "asyncio"},
    "llmserve.metrics": {"anyio", "asyncio", "time", "prometheus_client"},
    "llmserve": {"aiohttp", "bokeh", "vllm", "torch", "ray"},
    "frontends": {"vllm", "torch", "bokeh"},
    "reports": {"vllm", "torch", "aiohttp"},
}


def _modules():
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"), path


MODULES = list(_modules())


def imports(path, *, top_only):
    """Names of imported modules; inside `if TYPE_CHECKING` nothing is imported when the program runs."""
    tree = ast.parse(path.read_text())
    guarded = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in tree.body if top_only else ast.walk(tree):
        if id(node) in guarded:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def longest(table, name):
    fitting = [key for key in table if name == key or name.startswith(f"{key}.")]
    return table[max(fitting, key=len)] if fitting else None


@pytest.mark.parametrize(("name", "path"), MODULES, ids=lambda value: value if isinstance(value, str) else "")
def test_imports_go_the_way_the_architecture_says(name, path):
    allowed = longest(ALLOWED, name)
    for imported in imports(path, top_only=True):
        if imported.split(".")[0] in PACKAGES:
            assert any(imported == one or imported.startswith(f"{one}.") for one in allowed), f"{name} may not import {imported}"


@pytest.mark.parametrize(("name", "path"), MODULES, ids=lambda value: value if isinstance(value, str) else "")
def test_what_a_layer_refuses_to_know_it_does_not_import(name, path):
    for key, forbidden in FORBIDDEN.items():
        if name == key or name.startswith(f"{key}."):
            only_at_top = name in (
                "llmserve.engines.vllm",
                "llmserve.engines.vllm_adapters",
                "llmserve.engines.vllm_args",
                "llmserve.engines.vllm_core",
                "llmserve.engines.vllm_end",
                "llmserve.engines.vllm_fast_path",
                "llmserve.engines.vllm_grammars",
                "llmserve.engines.vllm_metrics",
                "llmserve.engines.vllm_outputs",
                "llmserve.engines.vllm_params",
                "llmserve.engines.vllm_prompts",
                "llmserve.engines.vllm_reports",
                "llmserve.engines.vllm_tools",
                "llmserve.engines.vllm_trials",
                "llmserve.models",
            )
            for imported in imports(path, top_only=only_at_top):
                assert imported.split(".")[0] not in forbidden, f"{name} may not import {imported}"


def test_the_manager_meets_no_engine_before_it_is_opened():
    assert not any(name.startswith("llmserve.engines") for name in imports(ROOT / "llmserve/manager.py", top_only=True))


def test_importing_llmserve_is_light():
    """In a fresh interpreter, with warnings as errors."""
    program = "import sys, llmserve; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not {"vllm", "torch", "transformers", "aiohttp", "numpy", "bokeh", "prometheus_client"} & set(loaded.stdout.split())


# Imports what is not ours once, then forks a child for each name that it reads. The child answers with a line: its traceback, or nothing.
IMPORTER = """
import gc, importlib, json, os, sys, traceback
import aiohttp.web, bokeh.plotting, bokeh.server.server, numpy, opentelemetry.sdk.trace, prometheus_client
gc.freeze()
for line in sys.stdin:
    if not (child := os.fork()):
        problem = ""
        try:
            importlib.import_module(line.strip())
        except BaseException:
            problem = traceback.format_exc()
        print(json.dumps(problem), flush=True)
        os._exit(0)
    if status := os.waitpid(child, 0)[1]:
        print(json.dumps(f"the interpreter ended with status {status}"), flush=True)
"""


# Ray and vLLM import these by name, and are not installed here.
NEED_OTHERS = ("frontends.cluster.router", "benchmarks.null_executor")


@pytest.fixture(scope="module")
def importer():
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", IMPORTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, cwd=ROOT
    ) as process:
        yield process
        process.stdin.close()


@pytest.mark.parametrize("name", [name for name, _ in MODULES if name not in NEED_OTHERS])
def test_every_module_imports_by_itself(importer, name):
    """No module leans on another having been imported before it."""
    importer.stdin.write(f"{name}\n")
    assert json.loads(importer.stdout.readline()) == ""


def test_the_package_s_page_lists_exactly_the_public_names():
    exported = {name for name, value in vars(llmserve).items() if not name.startswith("_") and not isinstance(value, type(ast))}
    groups = llmserve.__doc__.split("The names")[1].split("Importing this")[0].splitlines()[1:]
    listed = [name for line in groups for name in line[17:].replace(",", "").split()]
    assert listed[0] == "EngineManager"
    assert sorted(listed) == sorted(exported)


def test_the_package_s_help_is_a_page():
    page = pydoc.plain(pydoc.render_doc(llmserve))
    assert "EngineManager.open(" in page[:600]
    assert len(page.splitlines()) < 150


def test_the_package_s_example_runs(capsys):
    lines = llmserve.__doc__.split("without a model:")[1].split("The names")[0]
    exec(textwrap.dedent(lines), {"__name__": "__main__"})
    assert "Usage(prompt_tokens=" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "path"), MODULES, ids=lambda value: value if isinstance(value, str) else "")
def test_every_module_says_what_it_is(name, path):
    assert ast.get_docstring(ast.parse(path.read_text())), f"{name} has no docstring"
