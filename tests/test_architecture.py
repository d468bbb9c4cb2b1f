"""Checks the directions of imports, and the cost of an import."""

import ast
import functools
import graphlib
import json
import pathlib
import pydoc
import re
import subprocess
import sys
import textwrap

import pytest

import llmserve

ROOT = pathlib.Path(__file__).parent.parent
PACKAGES = ("llmserve", "frontends", "benchmarks", "reports")

# The components (folders, or files at a package's top) that each component may import, at any
# depth. Lower layers come first.
ALLOWED = {
    "llmserve.cancellation": set(),
    "llmserve.errors": set(),
    "llmserve.runtime": set(),
    "llmserve.config": {"llmserve.errors"},
    "llmserve.models": {"llmserve.errors"},
    "llmserve.structured": {"llmserve.errors"},
    "llmserve.validation": {"llmserve.errors"},
    "llmserve.admission": {"llmserve.config", "llmserve.errors"},
    "llmserve.images": {"llmserve.errors", "llmserve.runtime", "llmserve.validation"},
    "llmserve.json_schema": {"llmserve.errors", "llmserve.structured"},
    "llmserve.tools": {"llmserve.errors", "llmserve.json_schema", "llmserve.structured", "llmserve.validation"},
    "llmserve.request": {"llmserve.errors", "llmserve.images", "llmserve.structured", "llmserve.tools", "llmserve.validation"},
    "llmserve.pooling": {"llmserve.errors", "llmserve.request", "llmserve.validation"},
    "llmserve.engine": {"llmserve.pooling", "llmserve.request", "llmserve.structured", "llmserve.tools"},
    "llmserve.tracing": {"llmserve.request"},
    "llmserve.state": {"llmserve.admission", "llmserve.engine", "llmserve.errors"},
    "llmserve.engines": {
        "llmserve.admission",
        "llmserve.engine",
        "llmserve.errors",
        "llmserve.images",
        "llmserve.json_schema",
        "llmserve.models",
        "llmserve.pooling",
        "llmserve.request",
        "llmserve.runtime",
        "llmserve.structured",
        "llmserve.tools",
    },
    "llmserve.observability": {
        "llmserve.admission",
        "llmserve.config",
        "llmserve.engine",
        "llmserve.errors",
        "llmserve.request",
        "llmserve.runtime",
        "llmserve.state",
        "llmserve.tracing",
    },
    "llmserve.lifecycle": {
        "llmserve.admission",
        "llmserve.cancellation",
        "llmserve.config",
        "llmserve.engine",
        "llmserve.errors",
        "llmserve.images",
        "llmserve.observability",
        "llmserve.pooling",
        "llmserve.request",
        "llmserve.runtime",
        "llmserve.state",
        "llmserve.structured",
        "llmserve.tools",
        "llmserve.tracing",
        "llmserve.validation",
    },
    "llmserve": {"llmserve"},
    "frontends.options": {"llmserve"},
    "frontends.logs": {"frontends.options"},
    "frontends.net": {"frontends.logs", "frontends.options", "llmserve"},
    "frontends.access": {"frontends.net", "frontends.options", "llmserve"},
    "frontends.openai": {"frontends.access", "frontends.net", "llmserve"},
    "frontends.anthropic": {"frontends.access", "frontends.net", "frontends.openai", "llmserve"},
    "frontends.responses": {"frontends.access", "frontends.net", "frontends.openai", "llmserve"},
    "frontends.pooling": {"frontends.access", "frontends.net", "frontends.openai", "llmserve"},
    "frontends.answers": {
        "frontends.access",
        "frontends.anthropic",
        "frontends.net",
        "frontends.openai",
        "frontends.pooling",
        "frontends.responses",
        "llmserve",
    },
    "frontends.program": {"frontends.access", "frontends.logs", "frontends.net", "frontends.options", "llmserve"},
    "frontends.batch": {
        "frontends.access",
        "frontends.answers",
        "frontends.logs",
        "frontends.net",
        "frontends.openai",
        "frontends.options",
        "frontends.program",
        "llmserve",
    },
    "frontends.http": {
        "frontends.anthropic",
        "frontends.answers",
        "frontends.access",
        "frontends.batch",
        "frontends.logs",
        "frontends.net",
        "frontends.openai",
        "frontends.options",
        "frontends.pooling",
        "frontends.program",
        "frontends.responses",
        "llmserve",
    },
    "frontends.rawsocket": {"frontends.access", "frontends.net", "frontends.openai", "llmserve"},
    "frontends": {"frontends", "llmserve"},
    "benchmarks.workload": set(),
    "benchmarks.stand_ins": {"llmserve"},
    "benchmarks.recording": {"benchmarks.workload", "llmserve"},
    "benchmarks.analysis": {"benchmarks.recording"},
    "benchmarks.targets": {"benchmarks.recording", "benchmarks.workload", "frontends", "llmserve"},
    "benchmarks.generator": {"benchmarks.recording", "benchmarks.targets", "benchmarks.workload"},
    "benchmarks": {"benchmarks", "llmserve"},
    # It names the option that was meant, and ends with the reader of its output, as every program.
    "benchmarks.__main__": {"benchmarks", "frontends.options.output", "frontends.options.suggestions", "llmserve"},
    # The largest request that our servers accept, and the first bytes of the raw-socket protocol.
    "benchmarks.robustness.attacks.inputs": {"frontends"},
    "benchmarks.robustness.soak_clients": {"benchmarks", "frontends.rawsocket.client", "llmserve"},
    "reports": {"reports", "benchmarks.analysis", "benchmarks.recording", "benchmarks.search.result"},
    "reports.__main__": {"reports", "benchmarks.analysis", "benchmarks.recording", "frontends.options.suggestions"},
}
# Maximum number of modules in a folder, and at a package's top, which holds only public names and
# programs.
MAX_MODULES, MAX_AT_TOP = 20, 12
# Maximum number of modules that name argparse.Namespace.
MAX_NAMING_NAMESPACE = 3
# Maximum number of lines in a module, and in a function without its docstring.
MAX_LINES, MAX_FUNCTION_LINES = 350, 40
# Maximum number of methods, properties included, that EngineManager's own class statement defines,
# and of attributes that these methods assign.
MAX_METHODS, MAX_ATTRIBUTES = 25, 12
# The core uses anyio, admission has no notion of time, and only the adapter knows vLLM.
FORBIDDEN = {
    "llmserve.admission": {"anyio", "asyncio", "time", "random", "threading"},
    "llmserve.cancellation": {"anyio", "asyncio"},
    "llmserve.observability.metrics": {"anyio", "asyncio", "time", "prometheus_client"},
    "llmserve": {"aiohttp", "bokeh", "vllm", "torch", "ray"},
    "frontends": {"vllm", "torch", "bokeh"},
    "reports": {"vllm", "torch", "aiohttp"},
}


def _modules():
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"), path


MODULES = tuple(_modules())


@functools.cache
def imports(path, *, top_only):
    """Yield the names of imported modules and of the objects imported from them.

    Imports inside `if TYPE_CHECKING` are left out, because they do not run.
    """
    tree = ast.parse(path.read_text())
    guarded = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = []
    for node in tree.body if top_only else ast.walk(tree):
        if id(node) in guarded:
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


@functools.cache
def graph(modules):
    """Return for each module the modules that it imports, at any depth."""
    names = {name for name, _ in modules}
    return {
        name: {found if found in names else found.rpartition(".")[0] for found in imports(path, top_only=False)} & names - {name}
        for name, path in modules
    }


def among_siblings(modules, folder):
    """Return the same graph for the direct children of a folder: its files, and its subfolders."""

    def child(name):
        return ".".join(name.split(".")[: folder.count(".") + 2]) if name != folder else f"{folder}.__init__"

    inside = {name: found for name, found in graph(modules).items() if name == folder or name.startswith(f"{folder}.")}
    return {
        child(name): {
            child(one)
            for other in inside
            if child(other) == child(name)
            for one in inside[other] & inside.keys()
            if child(one) != child(name)
        }
        for name in inside
    }


def cycle(edges):
    """Return one cycle of the graph, or None."""
    try:
        list(graphlib.TopologicalSorter(edges).static_order())
    except graphlib.CycleError as error:
        return error.args[1]
    return None


def longest(table, name):
    fitting = [key for key in table if name == key or name.startswith(f"{key}.")]
    return table[max(fitting, key=len)] if fitting else None


FOLDERS = sorted(name for name, path in MODULES if path.name == "__init__.py")


def test_no_files_import_each_other():
    assert cycle(graph(MODULES)) is None


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_folders_import_each_other(folder):
    assert cycle(among_siblings(MODULES, folder)) is None


@pytest.mark.parametrize("where", ["top", "function"])
def test_a_planted_cycle_is_found(tmp_path, where):
    """Only the folders form a cycle: a/one imports b/one, and b/two imports a/two."""
    files = {"p": "", "p.a": "", "p.b": "", "p.a.one": "from p.b import one", "p.a.two": "", "p.b.one": "", "p.b.two": "import p.a.two"}
    planted = []
    for name, text in files.items():
        path = tmp_path / f"{name}.py"
        path.write_text(text if where == "top" or not text else f"def later():\n    {text}\n")
        planted.append((name, path))
    modules = tuple(planted)
    assert cycle(graph(modules)) is None
    assert set(cycle(among_siblings(modules, "p"))) == {"p.a", "p.b"}
    modules[-2][1].write_text("from p.a.one import later")
    imports.cache_clear()
    graph.cache_clear()
    assert set(cycle(graph(modules))) == {"p.a.one", "p.b.one"}


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_can_be_seen_at_a_glance(folder):
    files = [name for name, path in MODULES if path.name != "__init__.py" and name.rpartition(".")[0] == folder]
    assert len(files) <= (MAX_MODULES if "." in folder else MAX_AT_TOP)


@pytest.mark.parametrize(("name", "path"), MODULES, ids=lambda value: value if isinstance(value, str) else "")
def test_a_module_and_its_functions_are_short(name, path):
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            documented = first.end_lineno - first.lineno + 1 if ast.get_docstring(node) else 0
            assert node.end_lineno - node.lineno - documented < MAX_FUNCTION_LINES, f"{name}: {node.name} is too long"


def test_the_manager_s_class_is_small():
    tree = ast.parse((ROOT / "llmserve/manager.py").read_text())
    (manager,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "EngineManager"]
    methods = [node for node in manager.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    own = [node for node in ast.walk(manager) if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self"]
    attributes = {node.attr for node in own if isinstance(node.ctx, ast.Store)}
    assert "engine" in attributes
    assert len(methods) <= MAX_METHODS
    assert len(attributes) <= MAX_ATTRIBUTES


@pytest.mark.parametrize(("name", "path"), MODULES, ids=lambda value: value if isinstance(value, str) else "")
def test_imports_go_the_way_the_architecture_says(name, path):
    allowed = longest(ALLOWED, name) | {".".join(name.split(".")[:2])}
    for imported in imports(path, top_only=False):
        if imported.split(".")[0] in PACKAGES:
            assert any(imported == one or imported.startswith(f"{one}.") for one in allowed), f"{name} may not import {imported}"


@pytest.mark.parametrize(("name", "path"), MODULES, ids=lambda value: value if isinstance(value, str) else "")
def test_no_layer_imports_a_forbidden_package(name, path):
    """The adapter of vLLM and the bundled model import vLLM and torch inside functions."""
    for key, forbidden in FORBIDDEN.items():
        if name == key or name.startswith(f"{key}."):
            only_at_top = name.startswith("llmserve.engines.vllm.") or name == "llmserve.models"
            for imported in imports(path, top_only=only_at_top):
                assert imported.split(".")[0] not in forbidden, f"{name} may not import {imported}"


def test_the_manager_imports_no_engine_before_it_is_opened():
    assert not any(name.startswith("llmserve.engines") for name in imports(ROOT / "llmserve/manager.py", top_only=True))


def test_importing_llmserve_is_light():
    """Import in a fresh interpreter, with warnings as errors."""
    program = "import sys, llmserve; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not {"vllm", "torch", "transformers", "aiohttp", "numpy", "bokeh", "prometheus_client"} & set(loaded.stdout.split())


# Imports the dependencies once, then forks a child for each name that it reads. Each child answers
# with a line: a traceback, or an empty text.
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


# Ray and vLLM import these modules by name, and are not installed here.
NEED_OTHERS = ("benchmarks.stand_ins.null_executor",)


@pytest.fixture(scope="module")
def importer():
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", IMPORTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, cwd=ROOT
    ) as process:
        yield process
        process.stdin.close()


@pytest.mark.parametrize("name", [name for name, _ in MODULES if name not in NEED_OTHERS])
def test_every_module_imports_by_itself(importer, name):
    """No module relies on an earlier import of another one."""
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


def test_few_modules_know_the_untyped_result_of_argparse():
    """Settings and explicit parameters have types; a Namespace has any attribute."""
    naming = [name for name, path in MODULES if re.search(r"\bNamespace\b", path.read_text())]
    assert len(naming) <= MAX_NAMING_NAMESPACE, naming


@pytest.mark.parametrize(("name", "path"), MODULES, ids=lambda value: value if isinstance(value, str) else "")
def test_every_module_says_what_it_is(name, path):
    assert ast.get_docstring(ast.parse(path.read_text())), f"{name} has no docstring"
