"""Panels that are drawn only when a reader opens them.

Bokeh lays out everything in the page, hidden or not, before it shows anything: the 59 charts of two
runs took 11 s, the six of the first tab take one (2 cores, no GPU). A chart that is only a script's
argument is in the page but not drawn.
"""

from collections.abc import Mapping

from bokeh.models import Column, CustomJS, Select, Spacer, TabPanel, Tabs, UIElement

from reports.theme import NARROW

FILL = "boxes[cb_obj.active].children = [contents[cb_obj.active]]"
SWAP = "box.children = [contents[names.indexOf(cb_obj.value)]]"


def tabs(pages: Mapping[str, UIElement], opened: int = 0, **options: object) -> Tabs:
    """Return one tab per page; `opened` is the number of the tab shown, limited to the last tab."""
    boxes = [Column(children=[Spacer()], sizing_mode="stretch_width", stylesheets=[NARROW]) for _ in pages]
    contents = list(pages.values())
    panels = [TabPanel(title=title, child=box) for title, box in zip(pages, boxes, strict=True)]
    opened = min(opened, len(panels) - 1)
    boxes[opened].children = [contents[opened]]
    found = Tabs(tabs=panels, active=opened, sizing_mode="stretch_width", **options)
    found.js_on_change("active", CustomJS(args={"boxes": boxes, "contents": contents}, code=FILL))
    return found


def choice(title: str, choices: Mapping[str, UIElement], **options: object) -> tuple[Select, UIElement]:
    """Return a list of names and a box that shows the chosen content, initially the first."""
    names, contents = list(choices), list(choices.values())
    box = Column(children=contents[:1], sizing_mode="stretch_width", stylesheets=[NARROW])
    select = Select(title=title, value=names[0], options=names, **options)
    select.js_on_change("value", CustomJS(args={"box": box, "names": names, "contents": contents}, code=SWAP))
    return select, box
