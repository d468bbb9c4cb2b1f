"""Colours, styles and texts of the page.

The palette is Okabe and Ito's for colour-blind readers, without its yellow (unreadable on white)
and black (unreadable on a dark page). A series has the same colour on every chart. Figures are
transparent; the page's script paints their text for light or dark.
"""

from bokeh.models import Div

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#7A68A6")
REFERENCE = "#8A8F98"
PROMISE = "#C0392B"
INK, GRID = "#3A3F47", "#D9DCE1"
# For elements that do not follow the theme: readable on light and on dark.
MIDDLE = "#7D8694"
DASHES = {"p50": "solid", "p95": "dashed", "p99": "dotted"}
MARKERS = {"p50": "circle", "p95": "square", "p99": "triangle"}

# What a hollow mark means.
NOT_VALID = "not valid"
# The legend is a part of the page, below its plot. Bokeh gives it the width of all its entries.
LEGEND_STYLE = """
    :host { max-width: calc(100% - 8px); }
    .bk-grid { display: flex !important; flex-wrap: wrap; width: auto !important; gap: 2px 14px !important; }
    .bk-label { color: var(--ink) !important; white-space: normal !important; overflow-wrap: anywhere; }
    """
# A box may be narrower than its content, which then scrolls within itself.
NARROW = ":host { min-width: 0; }"
# Two charts beside each other; one where a chart would be too narrow.
GRID_STYLE = """
    :host { display: grid !important; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 18px 24px; align-items: start; }
    @media (max-width: 899px) { :host { grid-template-columns: minmax(0, 1fr); } }
    """
INPUT_STYLE = ":host, select, input { color: var(--ink) !important; background-color: var(--paper) !important; }"
# A string instead of an InlineStyleSheet, because a Bokeh model belongs to one document and ends
# with it.
STYLE = """
    /* Narrower than its content: a wide table scrolls within itself. */
    :host { min-width: 0; color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
    .bk-clearfix { display: block !important; width: 100%; }
    h1 { font-size: 26px; margin: 0 90px 4px 0; } h2 { font-size: 19px; margin: 18px 0 6px; } p { margin: 4px 0; }
    a { color: var(--accent); } code { background: var(--tile); border-radius: 4px; padding: 1px 5px; font-size: 13px; }
    .soft, .note { color: var(--soft); font-size: 14px; } .good { color: var(--good); } .bad { color: var(--bad); }
    .banner { border-left: 4px solid currentColor; padding: 4px 12px; margin: 10px 0; } .banner * { color: var(--ink); }
    .verdict { font-size: 18px; line-height: 1.45; border-left: 4px solid var(--accent); padding: 4px 14px; margin: 12px 0; }
    .verdict ul { font-size: 15px; color: var(--soft); margin: 6px 0 0; padding-left: 20px; }
    .tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: 12px; margin: 8px 0 14px; }
    .tile { background: var(--tile); border: 1px solid var(--line); border-radius: 8px; padding: 10px 14px; }
    .tile b { display: block; font-size: 22px; font-weight: 600; } .tile span { color: var(--soft); font-size: 13px; }
    .empty { border: 1px dashed var(--line); border-radius: 8px; color: var(--soft); padding: 28px; text-align: center; margin: 8px; }
    .scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; }
    th, td { border-bottom: 1px solid var(--line); padding: 4px 10px; text-align: right; white-space: nowrap; }
    th { color: var(--soft); font-weight: 600; } td:first-child, th:first-child, td:nth-child(2), th:nth-child(2) { text-align: left; }
    dt { color: var(--soft); } dd { margin: 0 0 6px 0; }
    dl.facts { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; font-size: 14px; margin: 6px 0; }
    dl.facts dd { margin: 0; overflow-wrap: anywhere; }
    """


def block(text: str) -> Div:
    """Return HTML as a part of the page."""
    return Div(text=text, sizing_mode="stretch_width", stylesheets=[STYLE])


def explain(text: str) -> Div:
    """Return a text instead of an empty chart: what is missing, and how to get it."""
    return Div(text=f'<div class="empty">{text}</div>', sizing_mode="stretch_width", stylesheets=[STYLE])
