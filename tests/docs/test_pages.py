"""The pages of docs: links lead somewhere, every page is listed, and the README's first readings are short."""

import importlib.util
import re

import pytest
from support.pages import PAGES, ROOT

from frontends.http.settings import HTTPServerSettings
from frontends.options.definitions import name_of, options_of

INDEXES = [ROOT / "docs" / "README.md", ROOT / "docs" / "llms.txt"]
LINK = re.compile(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"")
# Words that a role reads before its first success, besides code.
MAX_WORDS = 150


def targets(path):
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [link or picture for link, picture in LINK.findall(text) if not re.match(r"https?://", link)]


def anchors(path):
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"(?m)^#+ (.+)$", path.read_text())
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, INDEXES[1]], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in targets(page):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("index", INDEXES, ids=lambda index: index.name)
def test_every_page_is_in_the_index(index):
    listed = {(index.parent / target.partition("#")[0]).resolve() for target in targets(index)}
    missing = {page for page in PAGES if page.parent != ROOT and page != INDEXES[0]} - listed
    assert not missing


@pytest.mark.parametrize("role", ["Serve", "Call", "Embed", "Measure"])
def test_a_role_reads_few_words_before_its_first_success(role):
    text = (ROOT / "README.md").read_text()
    first, *sections = re.split(r"(?m)^## ", re.sub(r"(?s)^```.*?^```$|<!--.*?-->|<p>.*?</p>", "", text, flags=re.MULTILINE))
    by_name = {section.split("\n")[0]: section for section in sections}
    read = [first, *(by_name[name] for name in dict.fromkeys(["Serve", role]))]
    assert sum(len(section.split()) for section in read) <= MAX_WORDS


def test_the_page_on_migrating_names_options_that_exist():
    text = (ROOT / "docs" / "migrating.md").read_text()
    ours = {option for row in re.findall(r"(?m)^\|[^|]*\|(.*)\|$", text) for option in re.findall(r"(?<![\w-])--([a-z][a-z-]+)", row)}
    known = {name_of(*described).replace("_", "-") for described in options_of(HTTPServerSettings)}
    # `keys add` has that one.
    assert ours - known == {"concurrency"}
    assert len(ours) > 20


def test_the_reference_is_up_to_date():
    """`python .ci/reference.py` writes it."""
    spec = importlib.util.spec_from_file_location("reference", ROOT / ".ci" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text() == module.reference()
