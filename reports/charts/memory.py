"""Memory: the estimate from the model's files beside the measurement."""

import numpy as np
from bokeh.models import ColumnDataSource, UIElement

from benchmarks.analysis.report import View
from benchmarks.recording.results import Memory
from reports.page_data import Content, Named
from reports.theme import INK, PALETTE, chart, concurrency_chart, explain, hover, legend, plain_numbers

GIB = 2**30
PARTS = {"weights": PALETTE[0], "activations": PALETTE[4], "KV cache (set aside)": PALETTE[2], "not explained": "#B5B9C0"}
NO_MEMORY = "There is no memory estimate: the engine ran on a remote server, or the model's files were not found."


def vram_usage(content: Content) -> UIElement:
    """Draw each engine's stacked estimate beside the measured total, with the error."""
    told = [(run, memory) for run in content.runs if (memory := run.analysis.recording.run.memory) and memory.weights and memory.loaded]
    if not told:
        return explain(NO_MEMORY)
    labels = [name for run, _ in told for name in (f"{run.name}: estimated", f"{run.name}: measured")]
    found = chart("Memory: estimated and measured", "GiB", "", y_range=labels[::-1])
    found.height = 80 + 50 * len(labels)
    for run, memory in told:
        left = 0.0
        for part, size in _parts(memory).items():
            found.hbar(y=[f"{run.name}: estimated"], left=left, right=left + size / GIB, height=0.6, color=PARTS[part], legend_label=part)
            left += size / GIB
        right = _measured(memory) / GIB
        found.hbar(y=[f"{run.name}: measured"], left=0, right=right, height=0.6, color=PARTS["not explained"], legend_label=_what(memory))
        text = f"{right:.2f} GiB; the estimate is {left / right - 1:+.1%} off"
        found.text(
            [right],
            [f"{run.name}: measured"],
            text=[text],
            text_color=INK,
            text_font_size="12px",
            text_align="right",
            x_offset=-6,
            text_baseline="middle",
        )
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
    told = [series for series in content.sweeps if (memory := series.run.analysis.recording.run.memory) and memory.kv_budget]
    if not told:
        return explain(NO_MEMORY)
    found = concurrency_chart("KV cache by concurrency", "GiB", [level for series in told for level in series.levels], y_axis_type="log")
    plain_numbers(found.yaxis[0])
    points = []
    for series in told:
        memory = series.run.analysis.recording.run.memory
        assert memory is not None
        views = series.sweep.views
        needed = np.array([_needed(series.run, view, memory) for view in views]) / GIB
        held = np.array([(view.evidence.kv_usage or np.nan) * (memory.kv_budget or 0) for view in views]) / GIB
        source = ColumnDataSource(
            {"x": np.array(series.levels, dtype=float), "needed": needed, "held": held, "name": [series.label] * len(views)}
        )
        found.line("x", "needed", source=source, color=series.colour, line_dash="dashed", legend_label=f"{series.label}: estimated")
        points.append(found.scatter("x", "held", source=source, color=series.colour, size=8, legend_label=f"{series.label}: measured peak"))
    levels = [float(level) for series in told for level in series.levels]
    for run in {series.run.name: series.run for series in told}.values():
        # `told` has only runs with memory figures.
        budget = (run.analysis.recording.run.memory.kv_budget or 0) / GIB  # type: ignore[union-attr]
        found.line([min(levels), max(levels)], [budget, budget], color=PALETTE[1], line_width=2, legend_label=f"{run.name}: cache size")
    hover(
        found, points, [("series", "@name"), ("concurrency", "@x"), ("estimated", "@needed{0.000} GiB"), ("measured", "@held{0.000} GiB")]
    )
    legend(found)
    return found


def _needed(run: Named, view: View, memory: Memory) -> float:
    """Return the cache of all concurrent sequences at full length, bounded by the batch."""
    engine = run.analysis.recording.run.provenance.get("engine") or {}
    at_once = min(view.point.concurrency or 0, engine.get("max_num_seqs") or 10**9)
    return at_once * (view.summary.prompt_tokens + view.summary.output_tokens) * (memory.kv_bytes_per_token or 0)
