"""Throughput of an `EngineManager` against a bare `AsyncLLM.generate()` loop on one engine.

The difference is the cost of llmserve: admission, tokenisation of text prompts off the loop, the
stream. Both variants get the same text prompts, the same sampling and the same engine. The bare
variant does what vLLM's documentation shows.
"""

import asyncio
import random
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import msgspec

from llmserve import AdmissionConfig, EngineManager, GenerationRequest, ManagerConfig, Sampling
from llmserve.engines.vllm.engine import VLLMEngine

WORDS = [
    "time",
    "year",
    "people",
    "way",
    "day",
    "man",
    "thing",
    "woman",
    "life",
    "child",
    "world",
    "school",
    "state",
    "family",
    "student",
    "group",
    "country",
    "problem",
    "hand",
    "part",
]


@attrs.frozen(kw_only=True)
class Workload:
    """A closed loop of `requests` requests at a `concurrency`.

    Prompts have about `prompt_words` tokens, answers exactly `max_tokens`.
    """

    requests: int
    concurrency: int
    prompt_words: int
    max_tokens: int
    seed: int

    def prompts(self, trial: int) -> list[str]:
        """Return prompts that differ in every trial, so that the cache helps no variant."""
        rng = random.Random(f"{self.seed} {trial}")
        return [" ".join(rng.choice(WORDS) for _ in range(self.prompt_words)) for _ in range(self.requests)]


class Round(msgspec.Struct):
    """Tokens per second of both variants in one round, and which one began."""

    bare: float
    manager: float
    first: str

    @property
    def ratio(self) -> float:
        return self.manager / self.bare


async def closed_loop(prompts: list[str], concurrency: int, generate: Callable[[str], Awaitable[int]]) -> float:
    """Return tokens per second; `generate` returns the number of its tokens."""
    queue = iter(prompts)
    tokens = 0

    async def client() -> None:
        nonlocal tokens
        for prompt in queue:
            # In two steps: `tokens += await ...` would read `tokens` before the await and lose the
            # other clients' additions.
            count = await generate(prompt)
            tokens += count

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(concurrency)))
    return tokens / (time.perf_counter() - began)


def bare(llm: Any, workload: Workload) -> Callable[[str], Awaitable[int]]:
    from vllm import SamplingParams
    from vllm.renderers.inputs.preprocess import parse_model_prompt
    from vllm.sampling_params import RequestOutputKind

    numbers = iter(range(10**9))

    async def generate(prompt: str) -> int:
        params = SamplingParams(max_tokens=workload.max_tokens, ignore_eos=True, output_kind=RequestOutputKind.DELTA)
        renderer = llm.renderer
        (inputs,) = await renderer.render_cmpl_async([parse_model_prompt(llm.model_config, prompt)], renderer.default_cmpl_tok_params)
        tokens = 0
        async for output in llm.generate(inputs, params, f"bare-{next(numbers)}"):
            tokens += len(output.outputs[0].token_ids)
        return tokens

    return generate


def managed(manager: EngineManager, workload: Workload) -> Callable[[str], Awaitable[int]]:
    async def generate(prompt: str) -> int:
        tokens = 0
        async with manager.stream(GenerationRequest(prompt, sampling=Sampling(max_tokens=workload.max_tokens, ignore_eos=True))) as stream:
            async for delta in stream:
                tokens += len(delta.token_ids)
        return tokens

    return generate


async def measure(model: str, engine_args: dict[str, Any], workload: Workload, rounds: int, report: Callable[[str], None]) -> list[Round]:
    """Run `rounds` rounds after a warm-up round.

    A round is four trials, A B B A, and each variant is A in every other round. A steady drift of
    the machine (a third within minutes on the shared one where this was written) affects both
    alike.
    """
    engine = VLLMEngine(model, engine_args)
    config = ManagerConfig(admission=AdmissionConfig(max_running=workload.concurrency))
    results = []
    report(f"starting vLLM with {model}")
    async with EngineManager(engine, config) as manager:
        # The bare variant uses the manager's engine, because a second engine would compete for the
        # machine.
        sides = {"bare": bare(engine.running_llm, workload), "manager": managed(manager, workload)}
        for number in range(rounds + 1):
            first, second = ("bare", "manager") if number % 2 else ("manager", "bare")
            speed: dict[str, list[float]] = {"bare": [], "manager": []}
            for trial, side in enumerate((first, second, second, first)):
                speed[side].append(await closed_loop(workload.prompts(4 * number + trial), workload.concurrency, sides[side]))
            result = Round(statistics.harmonic_mean(speed["bare"]), statistics.harmonic_mean(speed["manager"]), first)
            label = f"round {number} of {rounds}" if number else "warm-up"
            report(f"{label}: bare {result.bare:.1f} tok/s, manager {result.manager:.1f} tok/s, ratio {result.ratio:.3f}")
            if number:
                results.append(result)
    return results


def conclude(results: list[Round]) -> str:
    ratios = sorted(result.ratio for result in results)
    median = statistics.median(ratios)
    return f"manager / bare throughput: median {median:.3f} (from {ratios[0]:.3f} to {ratios[-1]:.3f} over {len(ratios)} rounds)"
