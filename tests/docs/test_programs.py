"""The programs of docs/examples run, and every block of Python in the README and in docs runs or is one of them."""

import attrs
import msgspec
import pytest
from support.pages import EXAMPLES, ROOT, blocks
from support.processes import free_port

# What each program prints at least.
PRINTS = {
    "aiohttp_program": "a route of this program",
    "cancel": "second ended: cancelled: the user left",
    "custom_engine": "Hello, engine",
    "custom_policy": "'prompts': ",
    "deadline": "deadline of 0.2 s",
    "first": "Usage(prompt_tokens=",
    "json_results": '"finish_reason": "length"',
    "metrics": "2 answers",
    "openai_client": " ",
    "socket_client": " ",
    "stream": "length",
    "tenants": "bob is over its own limit",
    "threads": "4 answers",
}
# Longer than a first look: a whole engine, and an application.
LONG = {"custom_engine", "fastapi_app"}
PROGRAMS = {path.stem: path.read_text() for path in sorted(EXAMPLES.glob("*.py"))}
# Other tests run these.
APPS = {"fastapi_app", "test_with_pytest_asyncio"}
OTHER = [block for block in blocks("python") if block.text not in PROGRAMS.values() and not block.reason]


def test_every_program_is_short_and_runs():
    assert PROGRAMS.keys() - APPS == PRINTS.keys()
    assert {name for name, text in PROGRAMS.items() if len(text.splitlines()) >= 40} <= LONG


@pytest.mark.parametrize("name", PRINTS)
def test_a_program_runs(shell, here, name):
    program = shell.folder / f"{name}.py"
    text = PROGRAMS[name]
    if name == "aiohttp_program":
        # It listens on the port itself.
        text = text.replace("8000", str(free_port()))
    program.write_text(here(text))
    assert PRINTS[name] in shell.run("python", str(program))


@pytest.mark.parametrize("page", sorted({block.page for block in OTHER}))
def test_blocks_of_a_page_run(shell, here, page):
    texts = [{**attrs.asdict(block), "name": block.name, "text": here(block.text)} for block in OTHER if block.page == page]
    shell.run("python", str(ROOT / "tests/support/snippets.py"), text=msgspec.json.encode(texts).decode())


def test_the_readme_has_the_programs_of_its_roles():
    shown = [block.text for block in blocks("python") if block.page == "README.md"]
    assert shown == [PROGRAMS["openai_client"], PROGRAMS["first"], PROGRAMS["socket_client"]]
