"""`predict`: throughput at other loads, with the model's errors on held-out loads."""

from collections.abc import Sequence

from benchmarks.analysis.capacity import MAX_ERROR, MIN_LOADS, Capacity, Load
from benchmarks.analysis.report import Analysis


def predict(analysis: Analysis, concurrency: Sequence[int], prompt: float | None, output: float | None) -> str:
    """Return Markdown for each target, or the reason why the run has no model."""
    if not analysis.capacity:
        return f"A prediction needs at least {MIN_LOADS} valid closed loops on one target; this run has fewer."
    return "\n\n".join(_target(target, found, concurrency, prompt, output) for target, found in analysis.capacity.items())


def _target(target: str, found: Capacity, concurrency: Sequence[int], prompt: float | None, output: float | None) -> str:
    model, shape = found.model, found.held_out[0].load
    terms = f"{model.base * 1e3:.3f} ms plus {model.per_sequence * 1e6:.1f} us per sequence, "
    terms += f"{model.per_prefill_token * 1e6:.2f} us per prompt token, {model.per_kv_token * 1e9:.1f} ns per cached token"
    lines = [f"{target}: a step takes {terms}.", "", "| load | measured | predicted without it | error | interpolated | error |"]
    lines.append("|---|---|---|---|---|---|")
    for one in found.held_out:
        naive = "- | -" if one.naive is None else f"{one.naive:,.0f} | {one.naive_error:+.1%}"
        lines.append(f"| {_words(one.load)} | {one.measured:,.0f} tok/s | {one.predicted:,.0f} | {one.error:+.1%} | {naive} |")
    beside = "" if found.naive_error is None else f"; of the straight line between neighbours: {found.naive_error:.1%}"
    lines += ["", f"Mean absolute error on held-out loads, of the step-time model: {found.error:.1%}{beside}."]
    return "\n".join(
        [*lines, *_predictions(found, [Load(number, prompt or shape.prompt, output or shape.output) for number in concurrency])]
    )


def _predictions(found: Capacity, loads: Sequence[Load]) -> list[str]:
    if found.trusted is None:
        who = "the step-time model is" if found.naive_error is None else "the step-time model and the straight line are"
        return [f"Nothing is predicted: {who} off by more than {MAX_ERROR:.0%} on loads of this run."] if loads else []
    lines = []
    for load in loads:
        rate = found.model.tokens_per_second(load) if found.trusted == "model" else found.interpolate(load)
        name, error = ("step-time model", found.error) if found.trusted == "model" else ("straight line", found.naive_error or 0.0)
        if rate is None:
            lines.append(f"Not predicted for {_words(load)}: the straight line predicts better here, but no line of the run leads there.")
        else:
            lines.append(
                f"Predicted for {_words(load)}: {rate:,.0f} tokens/s ± {error:.0%}, by the {name}, which predicts this run better."
            )
    return lines


def _words(load: Load) -> str:
    return f"concurrency {load.concurrency}, {load.prompt:.0f} + {load.output:.0f} tokens"
