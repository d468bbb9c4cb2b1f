"""Structured outputs for vLLM: tried out before the engine sees them, and then in its own words. Written against vLLM 0.25.1 and 0.32.0,
whose validation takes what its compiler may then spend minutes on."""

import hashlib
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread

from llmserve.admission import Refusal, Refused
from llmserve.engines import grammar_trial
from llmserve.engines.vllm_outputs import brief
from llmserve.errors import EngineError, InvalidRequest
from llmserve.structured import FIELD, StructuredOutputs

# Whose verdicts are remembered. A refusal is worth remembering too: it is what costs most.
REMEMBERED = 1024
# Trials at once: one core of eight, for two seconds each at most.
AT_ONCE = max(1, (os.cpu_count() or 1) // 8)
MOST_WAITING = 64
# With the longest trial after it, everybody knows within six seconds.
PATIENCE_SECONDS = 2.0
RETRY_AFTER = 5.0
# The system takes a while to take down what it has killed.
ANSWER_SECONDS = grammar_trial.WALL_SECONDS + 2.0
# xgrammar begins its errors with the time and the line of its source.
_WHERE = re.compile(r"^\[[\d:]+\] \S+: ")


class Grammars:
    """The constraints of one engine's requests. `vocabulary` gives xgrammar's serialised tokenizer, and is called in a thread."""

    def __init__(self, vocabulary: Callable[[], str]) -> None:
        self._trials = Trials(vocabulary)
        self._places = anyio.CapacityLimiter(AT_ONCE)
        # By digest: what is remembered is some hundred bytes, however long it was.
        self._verdicts: OrderedDict[bytes, str | None] = OrderedDict()
        self._tried: dict[bytes, anyio.Event] = {}

    async def check(self, constraint: StructuredOutputs, field: str = FIELD) -> None:
        """Raises InvalidRequest about `field`; Overloaded when too many others are being tried; EngineError when nothing can be."""
        digest = hashlib.sha256(f"{constraint.kind}\n{constraint.spec}".encode("utf-8", "surrogatepass")).digest()
        while digest not in self._verdicts:
            under_way = self._tried.get(digest)
            if under_way is not None:
                await under_way.wait()
            else:
                await self._try(digest, constraint)
        self._verdicts.move_to_end(digest)
        refusal = self._verdicts[digest]
        if refusal is not None:
            raise InvalidRequest(f"{field}: {refusal}", field)

    async def _try(self, digest: bytes, constraint: StructuredOutputs) -> None:
        if len(self._tried) >= MOST_WAITING:
            raise Refused(Refusal.GRAMMARS_BUSY, RETRY_AFTER).error()
        done = self._tried[digest] = anyio.Event()
        try:
            with anyio.move_on_after(PATIENCE_SECONDS) as patience:
                await self._places.acquire()
            if patience.cancelled_caught:
                raise Refused(Refusal.GRAMMARS_BUSY, RETRY_AFTER).error()
            try:
                self._remember(digest, await anyio.to_thread.run_sync(self._trials.verdict, constraint))
            finally:
                self._places.release()
        finally:
            del self._tried[digest]
            done.set()

    def _remember(self, digest: bytes, verdict: str | None) -> None:
        self._verdicts[digest] = verdict
        while len(self._verdicts) > REMEMBERED:
            self._verdicts.popitem(last=False)

    def close(self) -> None:
        self._trials.close()


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
    # The compiler keeps it to itself, and what it has compiled does not.
    return str(backend.compiler.compile_grammar('root ::= "a"').tokenizer_info.serialize_json())
