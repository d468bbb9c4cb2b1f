"""The simulated engine in a process that can be killed and stopped, like the core of a real engine.

`CoreProcess` starts and ends the process, with the interface of `VLLMCore`. The process serves any
number of clients on one socket, each an `engine_of_core.CoreEngine`.

It follows vLLM's core where deaths make a difference:

- The process reports only steps: their outputs, and the figures of the engine after them. A stopped
  process reports nothing.
- A client that disconnects leaves its requests in the core, until another client aborts them.
- Each step reports the engine's figures to one of the clients that get its outputs.

Frames are pickles behind four bytes of length. To the core: ("submit", request id, prompt,
sampling, priority) and ("abort", request id). From the core: HELLO when the engine is up, then for
each step the outputs (request id, delta or error, timings) and the figures or None.
"""

import asyncio
import base64
import os
import pickle
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import anyio

from llmserve import EngineDead
from llmserve.engines.simulated.engine import SimulatedEngine
from llmserve.engines.vllm.scheduling.step_limit import VARIABLE, StepLimit

HELLO = "hello"
# Bound of an orderly end, which takes a moment unless the core hangs.
END_SECONDS = 20


def send(writer, message):
    """Send without waiting, because vLLM's sockets queue for a core that does not read."""
    data = pickle.dumps(message)
    writer.write(len(data).to_bytes(4) + data)


async def receive(reader):
    """Return the next message. Raises OSError or EOFError at the end of the connection."""
    return pickle.loads(await reader.readexactly(int.from_bytes(await reader.readexactly(4))))


class CoreProcess:
    """The owner's side. `launch`, `check`, `kill` and `stop` are called by turns, as with `VLLMCore`."""

    def __init__(self, config, launched=lambda _: None, step_limit=None):
        self.config = config
        self._step_limit = step_limit or StepLimit()
        self.process = None
        self._launched = launched
        self._up = False

    def configure(self, check=None):
        """Make the socket. Clients may connect from now on, and wait until the core is up."""
        self._folder = tempfile.TemporaryDirectory(prefix="core-")
        self._address = f"{self._folder.name}/core"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self._address)
        self._listener.listen(100)

    @property
    def min_step_tokens(self):
        return self.config.max_num_seqs if self._step_limit.variables() else None

    @property
    def batch(self):
        return self.config.max_num_seqs, self.config.max_num_batched_tokens

    def client(self, index=0):
        return self._address

    def launch(self, check=None):
        """Start the core and wait until it is up. Raises EngineDead."""
        descriptor, config = self._listener.fileno(), base64.b85encode(pickle.dumps(self.config)).decode()
        # -P: the modules beside this one are no top-level modules.
        command = [sys.executable, "-P", __file__, str(descriptor), config]
        # The core ends when its standard input does, so it does not outlive its owner.
        environment = {**os.environ, **self._step_limit.variables()}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=(descriptor,), env=environment)
        # After the core's death, clients that it has not accepted are disconnected too.
        self._listener.close()
        self._launched(self.process)
        with socket.socket(socket.AF_UNIX) as client, suppress(OSError):
            client.connect(self._address)
            self._up = client.recv(1) != b""
        if not self._up:
            raise EngineDead("the core's process ended before it was up")

    def check(self):
        if self.process is not None and self.process.poll() is not None:
            raise EngineDead(f"the core's process ended with {self.process.returncode}")

    def kill(self):
        if self.process is not None:
            self.process.kill()

    def stop(self):
        """End the core in order, as its owner does; return False if it hung, because it was not killed before."""
        self._listener.close()
        in_time = True
        if self.process is not None:
            if self._up:
                self.process.terminate()
            else:
                self.process.kill()
            try:
                self.process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                in_time = False
                self.process.kill()
                self.process.wait()
            self.process.stdin.close()
        self._folder.cleanup()
        self._step_limit.close()
        return in_time


class _RequestSink:
    def __init__(self, request_id, outputs):
        self._id, self._outputs = request_id, outputs

    def put(self, delta, timings=None):
        self._outputs.append((self._id, delta, timings))

    def fail(self, error):
        self._outputs.append((self._id, error, None))


class Core:
    """The engine's side."""

    def __init__(self, config):
        self._engine = SimulatedEngine(config)
        self._step_limit = os.environ.get(VARIABLE)
        self._engine.watch(self._stepped)
        # The outputs of each client since the last step.
        self._outputs = {}

    async def run(self, listener):
        async with anyio.create_task_group() as tasks:
            await tasks.start(self._engine.run)
            asyncio.get_running_loop().add_reader(sys.stdin.fileno(), os._exit, 0)
            await asyncio.start_unix_server(self._serve, sock=listener)

    async def _serve(self, reader, writer):
        outputs = self._outputs[writer] = []
        send(writer, HELLO)
        with suppress(OSError, EOFError):
            while True:
                match await receive(reader):
                    case "submit", request_id, prompt, sampling, priority:
                        await self._engine.submit(request_id, prompt, sampling, priority, _RequestSink(request_id, outputs))
                    case "abort", request_id:
                        await self._engine.abort(request_id)
        del self._outputs[writer]
        writer.close()

    def _stepped(self):
        if self._step_limit is not None:
            tokens = int.from_bytes(Path(self._step_limit).read_bytes(), "little")
            self._engine.limit_step(tokens or self._engine.config.max_num_batched_tokens)
        statistics = self._engine.statistics()
        for writer, outputs in self._outputs.items():
            if outputs:
                send(writer, (outputs, statistics))
                outputs.clear()
                statistics = None


if __name__ == "__main__":
    descriptor, given = sys.argv[1:]
    asyncio.run(Core(pickle.loads(base64.b85decode(given))).run(socket.socket(fileno=int(descriptor))))
