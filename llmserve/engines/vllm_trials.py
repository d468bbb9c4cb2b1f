"""Grammars tried out by a program beside this one, and what vLLM and xgrammar want to be told of them (vLLM 0.25.1, 0.32.0 and 0.33.0)."""

import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmserve.admission import Refusal, Refused
from llmserve.engines import grammar_trial
from llmserve.engines.vllm_outputs import brief
from llmserve.errors import EngineError, InvalidRequest
from llmserve.structured import StructuredOutputs

# A client that is told to come back finds a trial's place free, most likely.
RETRY_AFTER = 5.0
# The system takes a while to take down what it has killed.
ANSWER_SECONDS = grammar_trial.WALL_SECONDS + 2.0
# xgrammar begins its errors with the time and the line of its source.
_WHERE = re.compile(r"^\[[\d:]+\] \S+: ")


class Trials:
    """The program that tries them, started with the first one; takes three seconds and 300 MB, which most servers never need. Blocks."""

    def __init__(self, vocabulary: Callable[[], str]) -> None:
        self._vocabulary = vocabulary
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._control: socket.socket

    def verdict(self, constraint: StructuredOutputs) -> str | None:
        """What is wrong with it; None if nothing is. Raises EngineError; Overloaded where the machine was too busy to tell."""
        try:
            told = self._told(constraint)
        except Exception as error:
            return brief(error)
        began = time.monotonic()
        try:
            answer = self._answer(told.encode("utf-8", "surrogatepass"))
        except TimeoutError:
            answer = b""
        except Exception as error:
            raise EngineError(f"structured outputs cannot be tried out: {brief(error)}") from error
        if answer == grammar_trial.OK:
            return self._vllm_refuses(constraint)
        if not answer and time.monotonic() - began >= grammar_trial.WALL_SECONDS:
            # Others had the cores: that is no verdict.
            raise Refused(Refusal.GRAMMARS_BUSY, RETRY_AFTER).error()
        words = _WHERE.sub("", answer.decode(errors="replace")).strip()
        return words or f"this {constraint.kind} is too complex to be compiled"

    def _answer(self, told: bytes) -> bytes:
        """Nothing, if the trial was ended by its bounds."""
        ours, theirs = socket.socketpair()
        with ours:
            ours.settimeout(ANSWER_SECONDS)
            with theirs:
                self._start()
                socket.send_fds(self._control, [b"t"], [theirs.fileno()])
            ours.sendall(told)
            ours.shutdown(socket.SHUT_WR)
            answer = b""
            while some := ours.recv(65_536):
                answer += some
        if not answer and self._process is not None and self._process.poll() is not None:
            raise RuntimeError("the program that tries grammars has ended")
        return answer

    @staticmethod
    def _told(constraint: StructuredOutputs) -> str:
        """As the trial's program wants it."""
        from vllm.v1.structured_output import utils

        match constraint.kind:
            case "json_object":
                return 'json\n{"type": "object"}'
            case "choice":
                return f"grammar\n{utils.choice_as_grammar(constraint.choices)}"
            case "grammar" if utils.grammar_is_likely_lark(constraint.spec):
                import xgrammar

                if not hasattr(xgrammar.GrammarCompiler, "compile_lark"):
                    raise InvalidRequest("a grammar is written in EBNF, not in Lark's way")
                return f"lark\n{constraint.spec}"
        return f"{constraint.kind}\n{constraint.spec}"

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

    def _start(self) -> None:
        """Also again, if somebody has killed it."""
        with self._lock:
            if self._process is not None and self._process.poll() is None:
                return
            self.close()
            told = self._vocabulary()
            self._control, theirs = socket.socketpair()
            with theirs:
                # As a file, and without that file's folder in the path, where `vllm` is another module.
                # What torch starts besides it is idle, and in the fork not there.
                words = [sys.executable, "-P", "-W", "ignore::DeprecationWarning", str(Path(grammar_trial.__file__)), str(theirs.fileno())]
                self._process = subprocess.Popen(  # noqa: S603 - this package's own
                    words, stdin=subprocess.PIPE, pass_fds=[theirs.fileno()], start_new_session=True, text=True
                )
            assert self._process.stdin is not None
            with self._process.stdin as wants:
                wants.write(told)
            if self._control.recv(len(grammar_trial.READY)) != grammar_trial.READY:
                raise RuntimeError("the program that tries grammars did not start")

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
