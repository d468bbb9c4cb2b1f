r"""Tests grammars in forked processes: compiles each, then walks it for some hundred tokens.

The processes have limits on time and memory, and are forked from one that knows the vocabulary.
`sandbox.py` starts this module as a program; it imports xgrammar, but nothing of vLLM.

xgrammar lets other threads run while it compiles, but it cannot be stopped. `{"pattern":
"^(.*a){25}[a-z]{1,5000}(.|\\n){1,5000}$"}` took 10 s of a core (0.2.8, a vocabulary of 49,152), and
inside vLLM's engine all clients' schemas wait for it. A grammar that compiles quickly may still
take longer with each token of an answer, inside the step that the engine makes for all requests.
With `((a|b|[a-z ])*|([a-z ]*))*` the 26th token took 1.6 s, and with `root ::= root root | [ a-z]`
the eighth took 4.3 s.
"""

import importlib
import os
import random
import resource
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from math import ceil
from statistics import fmean
from time import thread_time
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

MEMORY = 2**30
# CPU seconds for each `VOCABULARY` tokens, because xgrammar looks at each token in each state of a
# grammar. With that many tokens a schema of 500 properties takes 0.3 s. One text with a `maxLength`
# above 128 takes 2.1 to 2.6 s, the most for any such text. With the 151,659 tokens of Qwen2.5 that
# text takes 7.7 s.
COMPILE_CPU_SECONDS = 3
VOCABULARY = 49_152
WALK_CPU_SECONDS = 3
# Seconds of a test's time that the system and other programs may take.
SPARE_SECONDS = 2
# Lower priority than the engine and the event loop. With the same priority, the longest gaps of a
# stream grew by a factor of 1.6.
NICE = 5
COMPILED, OK = b".", b"+"
# Followed by the longest time of a test in seconds.
READY = b"ready "
# Enough for a constraint of 65,536 characters and the tokens of a context of a quarter of a
# million.
MAX_BYTES = 2**21
WALK_TOKENS = 256
# CPU seconds of one step. Among 436 schemas of JSONSchemaBench with a vocabulary of 49,152, the
# costliest step took 11 ms. In 428 of them no step took more than 1 ms. So a machine that is four
# times slower has room.
STEP_SECONDS = 0.05
# Some steps of xgrammar do not return for 25 s. The system ends the test after this much CPU time
# in one step.
KILL_SECONDS = 3 * STEP_SECONDS
# Limit of the growth from the second to the third quarter of a walk, and from the third to the
# last, above `GROWN_SECONDS`. A cost in proportion to the length grows by factors of 1.7 and 1.4.
# One of those schemas grew like this, to less than 0.5 ms.
GROWTH = 1.2
GROWN_SECONDS = 1e-3
# A walk that its time limit ended after fewer than `MANY` tokens must exceed this higher cost in
# its last quarter. A walk of fewer than `FEWEST` tokens cost 30 ms a step and more.
MANY = 32
GROWN_SOON_SECONDS = 5e-3
FEWEST = 8
RECENT = 16

Candidates = Callable[["Walker"], list[int]]


class Bounds(NamedTuple):
    """Limits of one test. The compile time is the sum over its threads."""

    threads: int
    compile_cpu_seconds: int

    @property
    def cpu_seconds(self) -> int:
        """Limit of the CPU time of the whole test."""
        return self.compile_cpu_seconds + WALK_CPU_SECONDS

    @property
    def wall_seconds(self) -> int:
        """Limit of the test's time. Few constraints are costly both to compile and to walk."""
        return ceil(self.compile_cpu_seconds / self.threads) + SPARE_SECONDS


def bounds(vocab_size: int, threads: int) -> Bounds:
    return Bounds(threads, ceil(COMPILE_CPU_SECONDS * max(1, vocab_size / VOCABULARY)))


def serve(control: socket.socket, threads: int) -> None:
    """Serve until the other side is gone.

    Each test arrives as a socket, which contains what to compile and receives the answer.
    """
    vocabulary = import_alone().TokenizerInfo.deserialize_json(sys.stdin.read())
    # All token ids, those with the longest texts first.
    order = np.argsort([-len(text) for text in vocabulary.decoded_vocab], kind="stable")
    limits = bounds(vocabulary.vocab_size, threads)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    control.sendall(READY + str(limits.wall_seconds).encode())
    while True:
        told, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not told:
            return
        if os.fork() == 0:
            control.close()
            confine(limits)
            answer(socket.socket(fileno=descriptors[0]), vocabulary, order, limits)
            # End without the interpreter's shutdown, which must not run in a fork.
            os._exit(0)
        os.close(descriptors[0])


class Absent(ModuleType):
    """Replaces a package while xgrammar is imported, which only names the package's classes."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__init__": lambda self, *args, **keywords: None})


def import_alone() -> Any:
    """Import xgrammar without torch and transformers, in a process that has not imported torch.

    Only functions that no test calls use them. The import takes 0.3 s and 57 MiB instead of 3.8 s
    and 271 MiB (0.2.8).
    """
    try:
        # The library that binds xgrammar works without torch if there is none.
        sys.modules["torch"] = None  # type: ignore[assignment]  # None makes its import fail
        with suppress(ImportError):
            importlib.import_module("tvm_ffi")
        sys.modules.update({name: Absent(name) for name in ("torch", "transformers")})
        return importlib.import_module("xgrammar")
    except Exception:
        # Another version may need these packages.
        for name in [name for name in sys.modules if name.split(".")[0] in ("torch", "transformers", "xgrammar")]:
            del sys.modules[name]
        return importlib.import_module("xgrammar")
    finally:
        for name in ("torch", "transformers"):
            if isinstance(sys.modules.get(name), Absent | None):
                sys.modules.pop(name, None)


def confine(limits: Bounds) -> None:
    """Set the limits. A test that exceeds them is killed; its socket closes without a verdict."""
    pages = int(open("/proc/self/statm").read().split()[0])  # noqa: SIM115 - in a fork, by the shortest way
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (limits.compile_cpu_seconds, limits.cpu_seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.alarm(limits.wall_seconds)
    os.nice(NICE)


def answer(trial: socket.socket, vocabulary: Any, order: Any, limits: Bounds) -> None:
    """Send `COMPILED`, then `OK` and the CPU seconds of a step; or an error text.

    If token ids follow the kind, the walk continues after these tokens.
    """
    told = b""
    while len(told) < MAX_BYTES and (some := trial.recv(65_536)):
        told += some
    what, _, spec = told.decode().partition("\n")
    kind, *tokens = what.split()
    try:
        compiled = compile_one(kind, spec, vocabulary, limits.threads)
        trial.sendall(COMPILED)
        resource.setrlimit(resource.RLIMIT_CPU, (limits.cpu_seconds, limits.cpu_seconds))
        seconds = walk_on(compiled, vocabulary, order, [int(token) for token in tokens]) if tokens else walk(compiled, vocabulary, order)
    except MemoryError:
        pass
    except Exception as error:
        trial.sendall(str(error).encode()[:1000])
    else:
        trial.sendall(OK + f"{seconds:.6f}".encode())


def compile_one(kind: str, spec: str, vocabulary: Any, threads: int = 1) -> Any:
    """Compile as vLLM's engine does. Raises ValueError if no answer can begin.

    vLLM would end such a request at its first token.
    """
    import xgrammar

    compiler = xgrammar.GrammarCompiler(vocabulary, max_threads=threads, cache_enabled=False)
    if kind in ("json", "spaced_json"):
        compiled = compiler.compile_json_schema(spec, any_whitespace=kind == "spaced_json")
    else:
        # Regular expressions, grammars, structural tags and Lark grammars.
        compiled = getattr(compiler, f"compile_{kind}")(spec)
    matcher = xgrammar.GrammarMatcher(compiled)
    mask = new_mask(vocabulary)
    matcher.fill_next_token_bitmask(mask)
    if not mask.any():
        raise ValueError("no string can match this schema or grammar")
    return compiled


def new_mask(vocabulary: Any) -> Any:
    """Return a bit for each token, as an array of one row. xgrammar's own mask needs torch."""
    return np.full((1, -(-vocabulary.vocab_size // 32)), -1, dtype=np.int32)


def walk(compiled: Any, vocabulary: Any, order: Any) -> float:
    """Walk possible answers with the calls of vLLM's engine for each token.

    Return the mean CPU seconds of the last steps. Raises ValueError if a step costs too much.
    """
    mean = 0.0
    for number, (candidates, seconds) in enumerate(WALKS):
        walker = Walker(compiled, vocabulary, order, number)
        walker.walk(candidates, seconds)
        mean = max(mean, walker.recent())
    return mean


def walk_on(compiled: Any, vocabulary: Any, order: Any, tokens: list[int]) -> float:
    """Do what `walk` does, after the tokens of an answer so far."""
    walker = Walker(compiled, vocabulary, order, 0)
    walker.follow(tokens)
    mean = walker.recent()
    walker.walk(*WALKS[0])
    return mean


class Walker:
    """Walks one answer, token by token."""

    def __init__(self, compiled: Any, vocabulary: Any, order: Any, seed: int) -> None:
        import xgrammar

        self.random = random.Random(seed)
        self.order = order
        self.last: int | None = None
        self._matcher = xgrammar.GrammarMatcher(compiled)
        self._stops = list(vocabulary.stop_token_ids)
        self._mask = new_mask(vocabulary)
        self._words = self._mask[0].view("uint32")  # in the same memory
        self._costs: list[float] = []
        self._took = True

    def walk(self, candidates: Candidates, seconds: float) -> None:
        """Walk along the costliest candidates, which have most alternatives. Raises ValueError."""
        until, before = thread_time() + seconds, len(self._costs)
        self._fill()
        while (made := len(self._costs) - before) < WALK_TOKENS and thread_time() < until and (tokens := candidates(self)):
            self.last = tokens[0] if len(tokens) == 1 else max(tokens, key=self._probe)
            self._costs.append(self._step(self.last))
        if made < FEWEST:
            if thread_time() >= until:
                self._refuse(fmean(self._costs))
            return
        quarter = made // 4
        second, third, fourth = (fmean(self._costs[before + part * quarter :][:quarter]) for part in (1, 2, 3))
        least = GROWN_SECONDS if made >= MANY else GROWN_SOON_SECONDS
        if fourth > max(least, GROWTH * third) and third > GROWTH * second:
            self._refuse(fourth)

    def follow(self, tokens: list[int]) -> None:
        """Follow an answer. Tokens before the constrained part, such as reasoning, do not match."""
        for token in tokens:
            if self._matcher.is_terminated():
                return
            seconds = self._step(token)
            self._costs = [*self._costs[-RECENT + 1 :], seconds] if self._took else []

    def recent(self) -> float:
        """Return the mean CPU seconds of the last steps."""
        return fmean(self._costs[-RECENT:]) if self._costs else 0.0

    def allows(self, tokens: Any) -> Any:
        """Return an array of those ids that may come next."""
        return tokens[(self._words[tokens >> 5] >> (tokens & 31).astype("uint32")) & 1 == 1]

    def one(self) -> list[int]:
        """Return a random token that may come next, or none."""
        words = self._words.nonzero()[0]
        if not len(words):
            return []
        word = int(self.random.choice(words))
        return [word * 32 + self.random.choice([bit for bit in range(32) if int(self._words[word]) >> bit & 1])]

    def _fill(self) -> None:
        self._matcher.fill_next_token_bitmask(self._mask)
        for stop in self._stops:
            self._words[stop >> 5] &= ~(1 << (stop & 31)) & 0xFFFFFFFF

    def _step(self, token: int) -> float:
        """Return the CPU seconds of a step.

        This is the thread's time: Linux counts a limited process's time in whole ticks.
        """
        signal.setitimer(signal.ITIMER_PROF, KILL_SECONDS)
        began = thread_time()
        self._took = self._matcher.accept_token(token)
        if not self._took:
            self._matcher.reset()
        self._fill()
        seconds = thread_time() - began
        signal.setitimer(signal.ITIMER_PROF, 0)
        if seconds > STEP_SECONDS:
            self._refuse(seconds)
        return seconds

    def _probe(self, token: int) -> float:
        seconds = self._step(token)
        self._matcher.rollback(1)
        return seconds

    def _refuse(self, seconds: float) -> None:
        raise ValueError(
            f"it is too ambiguous: after {len(self._costs) + 1} tokens the next one takes {seconds * 1e3:.0f} ms, and the time grows; "
            "write it so that each text matches in one way only"
        )


def ambiguous(walker: Walker) -> list[int]:
    """Return candidates for the costliest step: the last token, the longest one, and two others."""
    tokens = {*longest(walker), *walker.one(), *walker.one()}
    if walker.last is not None:
        tokens |= set(walker.allows(np.array([walker.last])).tolist())
    return sorted(tokens)


def longest(walker: Walker) -> list[int]:
    """Return the allowed token with the longest text."""
    for begin in range(0, len(walker.order), 4096):
        if len(found := walker.allows(walker.order[begin : begin + 4096])):
            return [int(found[0])]
    return []


# Each with its CPU seconds. The first walk makes five steps for each token, and reaches 50 ms
# within 0.5 s if that takes five tokens.
WALKS: list[tuple[Candidates, float]] = [(ambiguous, 1.2), (longest, 0.4), (Walker.one, 0.4), (Walker.one, 0.4)]


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]))
