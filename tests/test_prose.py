"""The prose of the project: words that hide who acts, or that no native engineer would write."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
AREAS = ("llmserve", "frontends", "benchmarks", "reports", "tests", "docs")
MARKERS = re.compile(
    r"\b(whoever|whatever|whomever|somebody|someone|nobody|everybody|anybody|anew|meanwhile|in vain|for good|so many|so much|all the same"
    r"|of its own|of their own|(is|are|was|were) told|holds from now on|that there is no more)\b",
    re.IGNORECASE,
)
# Share of the items that may have a marker.
MAX_SHARE = 0.01


def items(path):
    """Docstrings, comments and the text that users meet; in a page, its lines."""
    text = path.read_text()
    if path.suffix == ".md":
        return [line for line in text.splitlines() if line.strip() and not line.startswith(("```", "    "))]
    found = [match[1] for match in re.finditer(r"(?m)^\s*(#(?: .*\n\s*#)* .*)", text)]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            found.append(ast.get_docstring(node) or "")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value and node.value not in found:
            found.append(node.value)
    return [item for item in found if item]


@pytest.mark.parametrize("area", AREAS)
def test_prose_names_who_acts(area):
    paths = sorted(path for path in (ROOT / area).rglob("*") if path.suffix in (".py", ".md") and path.name != "test_prose.py")
    prose = [(path, item) for path in paths for item in items(path)]
    marked = [f"{path.relative_to(ROOT)}: {found[0]}: {item[:80]}" for path, item in prose if (found := MARKERS.search(item))]
    assert len(prose) > 50
    assert len(marked) < MAX_SHARE * len(prose), "\n".join(marked)


def test_the_check_finds_a_marker(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("Whoever asks is told.\n")
    assert [match[0] for item in items(page) if (match := MARKERS.search(item))] == ["Whoever"]
