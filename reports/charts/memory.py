"""Memory: the estimate from the model's files beside the measurement."""

import numpy as np
from bokeh.models import GlyphRenderer, UIElement

from benchmarks.analysis.report import View
from benchmarks.recording.results import Memory
from reports.charts.axes import legend
from reports.charts.curves import load_chart
from reports.charts.figures import bars, facts, hollow_key, hover, marks
from reports.charts.stacks import stack
from reports.page_data import CONCURRENCY, Content, Named
from reports.theme import PALETTE, explain

GIB = 2**30
PARTS = {"weights": PALETTE[0], "activations": PALETTE[4], "KV cache (set aside)": PALETTE[2]}
MEASURED = "#B5B9C0"
NO_MEMORY = "There is no memory estimate: the engine ran on a remote server, or the model's files were not found."


def vram_usage(content: Content) -> UIElement:
    """Draw each engine's stacked estimate beside the measured total, with the error."""
    known = [(run, memory) for run in content.runs if (memory := run.analysis.recording.run.memory) and memory.weights and memory.loaded]
    if not known:
        return explain(NO_MEMORY)
    lengths: dict[str, dict[str, float]] = {part: {} for part in PARTS}
    colours, rows = dict(PARTS), []
    for run, memory in known:
        name = f"{run.name}: " if len(known) > 1 else ""
        sizes, measured = _parts(memory), _measured(memory)
        error = sum(sizes.values()) / measured - 1 if measured else np.nan
        rows += [f"{name}estimated", f"{name}measured {measured / GIB:.2f} GiB (estimate {error:+.1%})"]
        for part, size in sizes.items():
            lengths[part][rows[-2]] = size / GIB
        lengths.setdefault(_what(memory), {})[rows[-1]] = measured / GIB
        colours[_what(memory)] = MEASURED
    found = bars("Memory: estimated and measured", "GiB", rows)
    stack(found, {part: (colours[part], sizes) for part, sizes in lengths.items()}, {}, [("part", "@part"), ("GiB", "@length{0.00}")])
    legend(found)
    return found


def _parts(memory: Memory) -> dict[str, int]:
    parts = {"weights": memory.weights or 0, "activations": memory.activations or 0}
    return parts | {"KV cache (set aside)": memory.kv_budget or 0}


def _measured(memory: Memory) -> int:
    """Return the bytes that the engine added to what was in use before it."""
    return max(memory.peak or 0, memory.loaded or 0) - (memory.before or 0)


def _what(memory: Memory) -> str:
    return "resident memory, engine and host process" if memory.device.lower() == "cpu" else "GPU memory by NVML"


def kv_vs_concurrency(content: Content) -> UIElement:
    """Draw the KV cache at each load: the estimate, the measured peak, and the budget."""
    curves = content.curves(CONCURRENCY)
    known = [(series, memory) for series in curves if (memory := series.run.analysis.recording.run.memory) and memory.kv_budget]
    if not known:
        return explain(NO_MEMORY)
    found = load_chart("KV cache by concurrency", "GiB", CONCURRENCY, [series for series, _ in known])
    points: list[GlyphRenderer] = []
    for series, memory in known:
        views, levels = series.views, np.array(series.levels)
        needed = np.array([_needed(series.run, view, memory) for view in views]) / GIB
        held = np.array([(view.evidence.kv_usage or np.nan) * (memory.kv_budget or 0) for view in views]) / GIB
        columns = {"x": levels, "y": held, "needed": needed} | facts(series.label, views)
        found.line(levels, needed, color=series.colour, line_dash="dashed", legend_label=f"{series.label}: estimated")
        points += marks(found, columns, views, series.colour, f"{series.label}: measured peak", size=8)
    ends = [min(min(series.levels) for series, _ in known), max(max(series.levels) for series, _ in known)]
    for name, budget in {series.run.name: memory.kv_budget or 0 for series, memory in known}.items():
        found.line(ends, [budget / GIB] * 2, color=PALETTE[1], line_width=2, legend_label=f"{name}: cache size")
    hollow_key(found, [view for series, _ in known for view in series.views])
    tips = [("series", "@name"), ("load", "@load"), ("estimated", "@needed{0.000} GiB"), ("measured", "@y{0.000} GiB"), ("valid", "@valid")]
    hover(found, points, tips)
    legend(found)
    return found


def _needed(run: Named, view: View, memory: Memory) -> float:
    """Return the cache of all concurrent sequences at full length, bounded by the batch."""
    engine = run.analysis.recording.run.provenance.get("engine") or {}
    at_once = min(view.point.concurrency or 0, engine.get("max_num_seqs") or 10**9)
    return at_once * (view.summary.prompt_tokens + view.summary.output_tokens) * (memory.kv_bytes_per_token or 0)
