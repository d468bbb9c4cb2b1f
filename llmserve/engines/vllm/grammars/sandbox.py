"""Grammars tried out by a program beside this one, and what vLLM and xgrammar want to be told of them (vLLM 0.25.1, 0.32.0 and 0.33.0)."""

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

# The system takes a while to take down what it has killed.
KILLED_SECONDS = 2.0
# The program is ready after a second beside a busy engine.
START_SECONDS = 60.0
# xgrammar begins its errors with the time and the line of its source.
_WHERE = re.compile(r"^\[[\d:]+\] \S+: ")


class GrammarSandbox:
    """The program that tries them, each with `threads`. Blocks.

    With `free_space` the engine lets a model put white space between the parts of JSON.
    """

    def __init__(self, vocabulary: Callable[[], str], *, threads: int = 1, free_space: bool = False) -> None:
        self._vocabulary = vocabulary
        self._threads = threads
        # Of a trial; its program knows.
        self._wall_seconds = 0.0
        self._json = "spaced_json" if free_space else "json"
        self._process: subprocess.Popen[str] | None = None
        self._control: socket.socket

    def verdict(self, constraint: StructuredOutputs) -> str | None:
        """What is wrong with it; None if nothing is. Raises EngineError; Overloaded where the machine was too busy to tell."""
        try:
            what, spec = self._told(constraint)
        except Exception as error:
            return brief(error)
        found = self._try(constraint, f"{what}\n{spec}")
        return found if isinstance(found, str) else self._vllm_refuses(constraint)

    def cost(self, constraint: StructuredOutputs, token_ids: Sequence[int]) -> float:
        """CPU seconds that it adds to a step of the engine when these tokens have come; infinity where it is, or is about to become, more
        than a trial may take. Raises as `verdict` does."""
        what, spec = self._told(constraint)
        found = self._try(constraint, f"{what} {' '.join(map(str, token_ids))}\n{spec}")
        return math.inf if isinstance(found, str) else found

    def _try(self, constraint: StructuredOutputs, told: str) -> str | float:
        """What is wrong with it, or CPU seconds of a step."""
        began = time.monotonic()
        try:
            answer = self._answer(told.encode("utf-8", "surrogatepass"))
        except Exception as error:
            raise EngineError(f"structured outputs cannot be tried out: {brief(error)}") from error
        compiled, verdict = answer.startswith(sandbox_program.COMPILED), answer.removeprefix(sandbox_program.COMPILED)
        if verdict.startswith(sandbox_program.OK):
            return float(verdict.removeprefix(sandbox_program.OK))
        if not verdict and time.monotonic() - began >= self._wall_seconds:
            # Others had the cores: that is no verdict.
            raise Refused.of(Refusal.GRAMMARS_BUSY).error()
        words = _WHERE.sub("", verdict.decode(errors="replace")).strip()
        if compiled:
            return words or "it is too ambiguous: xgrammar takes too long for one of its first tokens"
        return words or f"this {constraint.kind} is too complex to be compiled"

    def _answer(self, told: bytes) -> bytes:
        """Without a verdict, if the trial was ended by its bounds."""
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
            raise RuntimeError("the program that tries grammars has ended")
        return answer

    def _told(self, constraint: StructuredOutputs) -> tuple[str, str]:
        """Kind and text as the trial's program wants them."""
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
                    raise InvalidRequest("a grammar is written in EBNF, not in Lark's way")
                return "lark", constraint.spec
        return constraint.kind, constraint.spec

    @staticmethod
    def _vllm_refuses(constraint: StructuredOutputs) -> str | None:
        """It knows of features that its compiler ignores. What is known to compile it validates in milliseconds."""
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
        """Before the first verdict, and again when the program has been killed. Raises EngineError."""
        self.close()
        try:
            ready = self._launch(self._vocabulary())
        except Exception as error:
            raise EngineError(f"structured outputs cannot be tried out: {brief(error)}") from error
        if not ready.startswith(sandbox_program.READY):
            raise EngineError("structured outputs cannot be tried out: their program did not start")
        self._wall_seconds = float(ready.removeprefix(sandbox_program.READY))

    def _launch(self, vocabulary: str) -> bytes:
        self._control, theirs = socket.socketpair()
        with theirs:
            # As a file, and without that file's folder in the path, where `vllm` is another module.
            words = [sys.executable, "-P", "-W", "ignore::DeprecationWarning", str(Path(sandbox_program.__file__)), str(theirs.fileno())]
            self._process = subprocess.Popen(  # noqa: S603 - this package's own
                [*words, str(self._threads)],
                stdin=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                text=True,
                # Each arena of a thread would count for a part of the address space that a trial may have.
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
    """As vLLM's own."""
    from vllm.sampling_params import StructuredOutputsParams

    match constraint.kind:
        case "json_object":
            return StructuredOutputsParams(json_object=True)
        case "choice":
            return StructuredOutputsParams(choice=constraint.choices)
        case kind:
            # structural_tag among them, under the same name.
            return StructuredOutputsParams(**{kind: constraint.spec})


def vocabulary(config: Any, tokenizer: Any) -> str:
    """The tokenizer as vLLM's engine gives it to xgrammar."""
    from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend

    backend = XgrammarBackend(config, tokenizer=tokenizer, vocab_size=config.model_config.get_vocab_size())
    # From vLLM 0.33 on, `compiler` knows no special tokens, and Lark grammars and structural tags, which may name them, have a compiler of
    # their own. With the larger vocabulary the trial never refuses what either compiler takes.
    compiler = getattr(backend, "full_vocab_compiler", backend.compiler)
    # The compiler keeps it to itself, and what it has compiled does not.
    return str(compiler.compile_grammar('root ::= "a"').tokenizer_info.serialize_json())
