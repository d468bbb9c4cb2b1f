"""Writes one self-contained file: scripts, styles and data are all inside."""

from pathlib import Path

from bokeh.document import Document
from bokeh.embed import file_html
from bokeh.resources import INLINE

from reports.page import add_to, template
from reports.page_data import Content


def build(content: Content, out: Path) -> int:
    """Write the page; returns its size in bytes."""
    document = Document()
    title = f"{', '.join(dict.fromkeys(run.analysis.model for run in content.runs))} under load"
    add_to(document, content, title)
    return write(document, title, out)


def write(document: Document, title: str, out: Path) -> int:
    """Write a document with the page's template; returns its size in bytes."""
    text = file_html(document, INLINE, title, template=template(), template_variables={"title": title})
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text)
    return len(text.encode())
