"""Remove one statement at a time and check that a test fails.

    tox run -e unit --notest && .tox/unit/bin/python .ci/removals.py

Removes every call, `await`, assignment to an attribute, early `return`, `raise` and `shield` of the
modules that manage a request's life. mutmut 3 leaves out decorated functions, and
`EngineManager.stream()` is one. Prints the removals that no test has noticed; takes some minutes.
"""

import ast
import pathlib
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODULES = [
    "manager.py",
    "cancellation.py",
    "lifecycle/recovery.py",
    "lifecycle/open_request.py",
    "lifecycle/open_requests.py",
    "lifecycle/request_state.py",
    "lifecycle/admission_driver.py",
    "lifecycle/stream.py",
    "lifecycle/tokenizer_queue.py",
    "admission/controller.py",
    "admission/tenants.py",
    "admission/pool/policy.py",
    "admission/pool/prefixes.py",
    "admission/pool/router.py",
]
TESTS = [
    "tests/llmserve/test_cancellation.py", "tests/llmserve/test_stream.py", "tests/llmserve/test_manager.py",
    "tests/llmserve/test_recovery.py",
    "tests/llmserve/test_admission.py", "tests/llmserve/test_pool_admission.py", "tests/llmserve/test_lategate.py",
    "tests/llmserve/test_metrics.py",
    "tests/cancellation/test_manager.py", "tests/cancellation/test_machine.py",
]  # fmt: skip
SECONDS = 120


def removals(source: str) -> list[tuple[int, str, str]]:
    """Return (line, what, source without it) for each removable statement."""
    tree, found = ast.parse(source), []
    lines = source.splitlines(keepends=True)
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "shield":
            line = lines[node.lineno - 1]
            found.append((node.lineno, "shield", _with(lines, node.lineno, node.lineno, line.replace("shield=True", "shield=False"))))
        if _is_removable(node):
            indent = " " * node.col_offset
            first = lines[node.lineno - 1].strip()
            found.append((node.lineno, first, _with(lines, node.lineno, node.end_lineno, f"{indent}pass\n")))
    return found


def _is_removable(node: ast.AST) -> bool:
    if isinstance(node, ast.Expr):
        return isinstance(node.value, (ast.Call, ast.Await))
    if isinstance(node, (ast.Assign, ast.AugAssign)):
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        return isinstance(target, (ast.Attribute, ast.Subscript))
    return isinstance(node, (ast.Delete, ast.Raise)) or (isinstance(node, ast.Return) and node.value is None)


def _with(lines: list[str], first: int, last: int | None, text: str) -> str:
    return "".join([*lines[: first - 1], text, *lines[last or first :]])


def is_noticed(module: str, source: str) -> bool:
    """Run the tests on a copy of the tree, so that several removals can run together."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("llmserve", "frontends", "benchmarks", "tests", "pyproject.toml"):
            path = ROOT / name
            (shutil.copytree if path.is_dir() else shutil.copy)(path, pathlib.Path(folder, name))
        pathlib.Path(folder, "llmserve", module).write_text(source)
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--show-capture=no", "--timeout", "20", *TESTS]
        try:
            run = subprocess.run(command, cwd=folder, env={"PYTHONPATH": folder}, capture_output=True, timeout=SECONDS, check=False)
        except subprocess.TimeoutExpired:
            return True
        return run.returncode != 0


def main(modules: list[str]) -> None:
    tried = noticed = 0
    with ThreadPoolExecutor(2) as pool:
        for module in modules or MODULES:
            every = removals((ROOT / "llmserve" / module).read_text())
            results = list(pool.map(lambda one, module=module: is_noticed(module, one[2]), every))
            tried, noticed = tried + len(every), noticed + sum(results)
            for (line, what, _), seen in zip(every, results, strict=True):
                if not seen:
                    print(f"llmserve/{module}:{line}: {what}", flush=True)
            print(f"{module}: {sum(results)} of {len(every)}", flush=True)
    print(f"{noticed} of {tried} removals were noticed: {noticed / tried:.1%}")


if __name__ == "__main__":
    main(sys.argv[1:])
