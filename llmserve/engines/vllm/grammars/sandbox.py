"""Runs the program that tests grammars, and converts them for vLLM and xgrammar.

Written against vLLM 0.25.1, 0.32.0 and 0.33.0.
"""

import math
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from llmserve.admission import Refusal, Refused
from llmserve.engines.vllm.grammars import sandbox_program
from llmserve.engines.vllm.outputs import brief
from llmserve.errors import EngineError, InvalidRequest
from llmserve.structured import StructuredOutputs

# Seconds that the system may take to end a killed process.
KILLED_SECONDS = 2.0
# Longest start of the program in seconds. Beside a busy engine it takes one.
START_SECONDS = 60.0
# xgrammar begins its errors with the time and the line of its source.
_WHERE = re.compile(r"^\[[\d:]+\] \S+: ")


class GrammarSandbox:
    """The program that tests constraints, each with `threads` threads. Calls block.

    With `free_space` the engine lets a model put white space between the parts of JSON.
    """

    def __init__(self, vocabulary: Callable[[], str], *, threads: int = 1, free_space: bool = False) -> None:
        self._vocabulary = vocabulary
        self._threads = threads
        # Longest time of a test; the program reports it at its start.
        self._wall_seconds = 0.0
        self._json = "spaced_json" if free_space else "json"
        self._process: subprocess.Popen[str] | None = None
        self._control: socket.socket

    def verdict(self, constraint: StructuredOutputs) -> str | None:
        """Return what is wrong with the constraint, or None.

        Raises EngineError, and Overloaded if the machine was too busy for a verdict.
        """
        try:
            what, spec = self._told(constraint)
        except Exception as error:
            return brief(error)
        found = self._try(constraint, f"{what}\n{spec}")
        return found if isinstance(found, str) else self._vllm_refuses(constraint)

    def cost(self, constraint: StructuredOutputs, token_ids: Sequence[int]) -> float:
        """Return the CPU seconds that the constraint adds to a step after these tokens.

        The result is infinity if this exceeds a test's limits, or is about to. Raises as `verdict`
        does.
        """
        what, spec = self._told(constraint)
        found = self._try(constraint, f"{what} {' '.join(map(str, token_ids))}\n{spec}")
        return math.inf if isinstance(found, str) else found

    def _try(self, constraint: StructuredOutputs, told: str) -> str | float:
        """Return what is wrong with the constraint, or the CPU seconds of a step."""
        began = time.monotonic()
        try:
            answer = self._answer(told.encode("utf-8", "surrogatepass"))
        except Exception as error:
            raise EngineError(f"structured outputs cannot be tested: {brief(error)}") from error
        compiled, verdict = answer.startswith(sandbox_program.COMPILED), answer.removeprefix(sandbox_program.COMPILED)
        if verdict.startswith(sandbox_program.OK):
            return float(verdict.removeprefix(sandbox_program.OK))
        if not verdict and time.monotonic() - began >= self._wall_seconds:
            # Other programs had the cores, so there is no verdict.
            raise Refused.of(Refusal.GRAMMARS_BUSY).error()
        words = _WHERE.sub("", verdict.decode(errors="replace")).strip()
        if compiled:
            return words or "it is too ambiguous: xgrammar takes too long for one of its first tokens"
        return words or f"this {constraint.kind} is too complex to compile"

    def _answer(self, told: bytes) -> bytes:
        """Return the program's answer, which has no verdict if the test exceeded its limits."""
        ours, theirs = socket.socketpair()
        with ours:
            ours.settimeout(self._wall_seconds + KILLED_SECONDS)
            with theirs:
                socket.send_fds(self._control, [b"t"], [theirs.fileno()])
            ours.sendall(told)
            ours.shutdown(socket.SHUT_WR)
            answer = b""
            with suppress(TimeoutError):
                while some := ours.recv(65_536):
                    answer += some
        if not answer and not self.running:
            raise RuntimeError("the program that tests grammars has ended")
        return answer

    def _told(self, constraint: StructuredOutputs) -> tuple[str, str]:
        """Return the kind and the text for the program."""
        from vllm.v1.structured_output import utils

        match constraint.kind:
            case "json_object":
                return self._json, '{"type": "object"}'
            case "json":
                return self._json, constraint.spec
            case "choice":
                return "grammar", utils.choice_as_grammar(constraint.choices)
            case "grammar" if utils.grammar_is_likely_lark(constraint.spec):
                import xgrammar

                if not hasattr(xgrammar.GrammarCompiler, "compile_lark"):
                    raise InvalidRequest("a grammar must be written in EBNF, not in Lark's syntax")
                return "lark", constraint.spec
        return constraint.kind, constraint.spec

    @staticmethod
    def _vllm_refuses(constraint: StructuredOutputs) -> str | None:
        """Return vLLM's own objection, or None. Call it only for a constraint that compiles.

        vLLM knows of features that its compiler ignores. It validates in milliseconds what
        compiles.
        """
        from vllm import SamplingParams
        from vllm.v1.structured_output.backend_xgrammar import validate_xgrammar_grammar

        try:
            validate_xgrammar_grammar(SamplingParams(structured_outputs=params(constraint)))
        except Exception as error:
            return brief(error)
        return None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the program, also again after it was killed. Raises EngineError."""
        self.close()
        try:
            ready = self._launch(self._vocabulary())
        except Exception as error:
            raise EngineError(f"structured outputs cannot be tested: {brief(error)}") from error
        if not ready.startswith(sandbox_program.READY):
            raise EngineError("structured outputs cannot be tested: their program did not start")
        self._wall_seconds = float(ready.removeprefix(sandbox_program.READY))

    def _launch(self, vocabulary: str) -> bytes:
        self._control, theirs = socket.socketpair()
        with theirs:
            # Run it as a file, and without its folder in the path, where `vllm` would be another
            # module.
            words = [sys.executable, "-P", "-W", "ignore::DeprecationWarning", str(Path(sandbox_program.__file__)), str(theirs.fileno())]
            self._process = subprocess.Popen(  # noqa: S603 - this package's own
                [*words, str(self._threads)],
                stdin=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                text=True,
                # Each thread's arena would count towards the address space of a test.
                env={**os.environ, "MALLOC_ARENA_MAX": "2"},
            )
        assert self._process.stdin is not None
        with self._process.stdin as wants:
            wants.write(vocabulary)
        self._control.settimeout(START_SECONDS)
        return self._control.recv(64)

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            self._control.close()


def params(constraint: StructuredOutputs) -> Any:
    """Return the constraint as vLLM's parameters."""
    from vllm.sampling_params import StructuredOutputsParams

    match constraint.kind:
        case "json_object":
            return StructuredOutputsParams(json_object=True)
        case "choice":
            return StructuredOutputsParams(choice=constraint.choices)
        case kind:
            # This includes structural_tag, which has the same name in vLLM.
            return StructuredOutputsParams(**{kind: constraint.spec})


def vocabulary(config: Any, tokenizer: Any) -> str:
    """Return the tokenizer as vLLM's engine passes it to xgrammar."""
    from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend

    backend = XgrammarBackend(config, tokenizer=tokenizer, vocab_size=config.model_config.get_vocab_size())
    # From vLLM 0.33 on, `compiler` has no special tokens. Lark grammars and structural tags, which
    # may name them, have their own compiler. With its larger vocabulary the test never refuses what
    # either compiler accepts.
    compiler = getattr(backend, "full_vocab_compiler", backend.compiler)
    # The compiler does not expose its tokenizer, but compiled grammars do.
    return str(compiler.compile_grammar('root ::= "a"').tokenizer_info.serialize_json())
