"""Tries out grammars where they can do no harm: each is compiled in a process of its own, forked from one that knows the vocabulary, with
so much time and memory. `vllm_trials` starts it as a program; it imports xgrammar and nothing of vLLM's.

xgrammar lets other threads run while it compiles, but cannot be stopped: `{"pattern": "^(.*a){25}[a-z]{1,5000}(.|\\n){1,5000}$"}` took
10 s of a core (0.2.8, a vocabulary of 49,152), and inside vLLM's engine everybody's schemas wait behind that.
"""

import os
import resource
import signal
import socket
import sys
from functools import partial
from typing import Any

MEMORY = 2**30
# A schema of 500 properties takes 0.3 s.
CPU_SECONDS = 2
# Beside an engine that computes on the same two cores a second of these takes two or three.
WALL_SECONDS = 4
# Behind the engine and the event loop. Level with them, the longest gaps of a stream grew to 1.6 times what they were.
NICE = 5
OK = b"+"
READY = b"ready"
MOST = 2**20


def serve(control: socket.socket) -> None:
    """Until the other side is gone. Each trial comes as a socket that says what to compile, is read to its end, and is answered there."""
    import xgrammar

    vocabulary = xgrammar.TokenizerInfo.deserialize_json(sys.stdin.read())
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    control.sendall(READY)
    while True:
        told, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not told:
            return
        if os.fork() == 0:
            control.close()
            confine()
            answer(socket.socket(fileno=descriptors[0]), vocabulary)
            # Without the interpreter's farewell, which a fork must not say.
            os._exit(0)
        os.close(descriptors[0])


def confine() -> None:
    """Whoever goes beyond this is killed by the system, and the socket closes without an answer."""
    pages = int(open("/proc/self/statm").read().split()[0])  # noqa: SIM115 - in a fork, by the shortest way
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.alarm(WALL_SECONDS)
    os.nice(NICE)


def answer(trial: socket.socket, vocabulary: Any) -> None:
    told = b""
    while len(told) < MOST and (some := trial.recv(65_536)):
        told += some
    kind, _, spec = told.decode().partition("\n")
    try:
        compile_one(kind, spec, vocabulary)
    except MemoryError:
        return
    except Exception as error:
        trial.sendall(str(error).encode()[:1000])
        return
    trial.sendall(OK)


def compile_one(kind: str, spec: str, vocabulary: Any) -> None:
    """As vLLM's engine will. Raises ValueError where no answer can begin: vLLM would end the request at its first token."""
    import xgrammar

    compiler = xgrammar.GrammarCompiler(vocabulary, max_threads=1, cache_enabled=False)
    # Without free white space, which makes no difference to what it costs.
    compilers = {
        "json": partial(compiler.compile_json_schema, any_whitespace=False),
        "regex": compiler.compile_regex,
        "grammar": compiler.compile_grammar,
    }
    if kind in ("lark", "structural_tag"):
        compilers[kind] = getattr(compiler, f"compile_{kind}")
    matcher = xgrammar.GrammarMatcher(compilers[kind](spec))
    mask = xgrammar.allocate_token_bitmask(1, vocabulary.vocab_size)
    matcher.fill_next_token_bitmask(mask)
    if not mask.any():
        raise ValueError("no text is like that")


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
