"""Memory: what the model's files say it needs beside what was measured."""

import numpy as np
from bokeh.models import ColumnDataSource, UIElement

from benchmarks.analysis.report import View
from benchmarks.recording.results import Memory
from reports.page_data import Content, Named
from reports.theme import INK, PALETTE, chart, concurrency_chart, explain, hover, legend, plain_numbers

GIB = 2**30
PARTS = {"weights": PALETTE[0], "activations": PALETTE[4], "KV cache (set aside)": PALETTE[2], "not explained": "#B5B9C0"}
NO_MEMORY = "The engine ran elsewhere, or the model has no files to look at: memory is measured for targets in this process."


def vram_usage(content: Content) -> UIElement:
    """Each run's engine: the estimate stacked, and the measured total beside it, with the error of the estimate."""
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
    """What the engine added to what was in use before it."""
    return max(memory.peak or 0, memory.loaded or 0) - (memory.before or 0)


def _what(memory: Memory) -> str:
    return "resident memory, engine and host process" if memory.device.lower() == "cpu" else "GPU memory by NVML"


def kv_vs_concurrency(content: Content) -> UIElement:
    """Tokens' keys and values at each load: needed by the lengths, held at the measured peak, and what there is."""
    told = [series for series in content.sweeps if (memory := series.run.analysis.recording.run.memory) and memory.kv_budget]
    if not told:
        return explain(NO_MEMORY)
    found = concurrency_chart(
        "KV cache against concurrency", "GiB", [level for series in told for level in series.levels], y_axis_type="log"
    )
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
        budget = (run.analysis.recording.run.memory.kv_budget or 0) / GIB  # type: ignore[union-attr]
        found.line([min(levels), max(levels)], [budget, budget], color=PALETTE[1], line_width=2, legend_label=f"{run.name}: all there is")
    hover(found, points, [("series", "@name"), ("at once", "@x"), ("estimated", "@needed{0.000} GiB"), ("measured", "@held{0.000} GiB")])
    legend(found)
    return found


def _needed(run: Named, view: View, memory: Memory) -> float:
    """All sequences that can run at once at their full length, bounded by the batch."""
    engine = run.analysis.recording.run.provenance.get("engine") or {}
    at_once = min(view.point.concurrency or 0, engine.get("max_num_seqs") or 10**9)
    return at_once * (view.summary.prompt_tokens + view.summary.output_tokens) * (memory.kv_bytes_per_token or 0)
