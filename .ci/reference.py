"""Write docs/reference.md, the public names of `llmserve` with their docstrings: `python .ci/reference.py`."""

import inspect
import re
import textwrap
from pathlib import Path

import attrs
import msgspec

import llmserve

PAGE = Path(__file__).parent.parent / "docs" / "reference.md"
HEAD = """# Reference

Every public name of `llmserve`, made from the docstrings by `python .ci/reference.py`.
[Embedding](embedding.md) shows how the names work together.
"""
# The headings of a docstring's lists, and one of their items.
LIST = re.compile(r"(Args|Attributes|Returns|Raises[^:]*):$")
ITEM = re.compile(r"([\w*]+(?:, [\w*]+)*): (.*)")


def groups() -> dict[str, list[str]]:
    """Return the public names by the groups in which the package's docstring lists them."""
    found: dict[str, list[str]] = {}
    listed = (llmserve.__doc__ or "").split("The names")[1].split("Importing this")[0].splitlines()[1:]
    group = ""
    for line in filter(str.strip, listed):
        group = line[:17].strip() or group
        found.setdefault(group, []).extend(line[17:].replace(",", " ").split())
    return found


def prose(documented: object) -> str:
    """Return a docstring as Markdown: its lists as bullets, its examples as code."""
    paragraphs = []
    for paragraph in (inspect.getdoc(documented) or "").split("\n\n"):
        lines = paragraph.splitlines()
        if LIST.match(lines[0] if lines else ""):
            items = bullets(textwrap.dedent("\n".join(lines[1:])))
            paragraphs.append(f"{lines[0]}\n\n{items}")
        elif paragraph.startswith("    "):
            paragraphs.append(f"```text\n{textwrap.dedent(paragraph)}\n```")
        else:
            paragraphs.append(sentences(paragraph))
    return "\n\n".join(paragraphs)


def bullets(text: str) -> str:
    items: list[str] = []
    for line in text.splitlines():
        if line.startswith(" ") and items:
            items[-1] += f" {line.strip()}"
        else:
            match = ITEM.match(line)
            items.append(f"- `{match[1]}`: {match[2]}" if match else line)
    return "\n".join(items)


def sentences(text: str) -> str:
    """Return the text with one sentence per line."""
    return re.sub(r"(?<=[.!?]) (?=[A-Z`])", "\n", " ".join(text.split()))


def call(documented: object) -> str:
    """Return the parameters of a call, with their defaults if those are plain values; "" if it has none."""
    try:
        parameters = inspect.signature(documented).parameters.values()  # type: ignore[arg-type]  # it raises TypeError
    except (TypeError, ValueError):
        return ""
    return f"({', '.join(_parameter(parameter) for parameter in parameters if parameter.name != 'self')})"


def _parameter(parameter: inspect.Parameter) -> str:
    default = parameter.default
    star = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    if default is parameter.empty:
        return star + parameter.name
    return f"{parameter.name}={default!r}" if isinstance(default, (int, float, str, tuple, type(None))) else f"{parameter.name}=..."


def members(kind: type) -> list[str]:
    """Return the documented methods and properties that the class, or a base in llmserve, defines."""
    entries = []
    for name, _ in inspect.getmembers_static(kind):
        defining = next((base for base in kind.__mro__ if name in vars(base)), object)
        value = vars(defining).get(name)
        if name.startswith("_") or not defining.__module__.startswith("llmserve"):
            continue
        function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        if (inspect.isfunction(function) or isinstance(value, property)) and inspect.getdoc(function):
            called = "" if isinstance(value, property) else f"\n`{name}{call(value.__get__(None, kind))}`\n"
            entries.append(f"#### {kind.__name__}.{name}\n{called}\n{prose(function)}\n")
    return entries


def entry(name: str) -> str:
    value = getattr(llmserve, name)
    made = (
        f"`{name}{call(value)}`\n\n"
        if attrs.has(value)
        or hasattr(value, "_fields")  # a named tuple
        or issubclass(value, (msgspec.Struct, llmserve.EngineManager, llmserve.CancellationToken))
        else ""
    )
    return "\n".join([f"### {name}\n", f"{made}{prose(value)}\n", *members(value)])


def reference() -> str:
    parts = [HEAD]
    for group, names in groups().items():
        parts += [f"## {group.capitalize()}\n", *(entry(name) for name in names)]
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(reference())
