"""vLLM's engine core alone, for several processes with one client each.

One process owns the core: it starts, watches and ends it, and sends no requests. Each other process
gets a `CoreClient`, from which `VLLMEngine` makes its AsyncLLM. The core connects to its clients,
not they to it, so it must know at its start how many there can be. A client that replaces a dead
one gets the next number: the core's messages to a number wait until a client listens there.

With a `data_parallel_size`, the core is several processes, and each client sends its requests to
all of them. vLLM's coordinator tells the clients which process has less to do; they learn its
address from the processes, so a replacement does too.

Written against vLLM 0.25.1 and 0.32.0.
"""

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any

import attrs

from llmserve.engines.processes.guard import ProcessGuard
from llmserve.engines.vllm.args import build_config, check_version
from llmserve.engines.vllm.placement import ALONE, Placement
from llmserve.engines.vllm.scheduling.step_limit import StepLimit
from llmserve.engines.vllm.shutdown import END_SECONDS
from llmserve.engines.vllm.start_checks import check_host, check_model
from llmserve.engines.vllm.start_errors import Failure, first_report, install
from llmserve.errors import ConfigurationError, EngineDead
from llmserve.models import resolve

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

# vLLM's names for the processes that it starts: its engine cores, and the coordinator that balances
# several of them.
PROCESS_NAMES = ("EngineCore", "VLLM_DP_Coordinator")


@attrs.frozen(kw_only=True)
class CoreClient:
    """The configuration and addresses of one client of the core `engine` of a pool.

    It can be pickled, like vLLM's configuration for its own processes.
    """

    config: Any
    input_address: str
    output_address: str
    count: int
    index: int
    engine: int = 0

    def arguments(self) -> dict[str, Any]:
        """Return the arguments for `AsyncLLM.from_vllm_config`."""
        self.config.parallel_config._api_process_rank = self.index % self.count  # noqa: SLF001 - as vLLM's own launcher does
        addresses = {"input_address": self.input_address, "output_address": self.output_address}
        return {"vllm_config": self.config, "client_addresses": addresses, "client_count": self.count, "client_index": self.index}


class VLLMCore:
    """A core for `at_once` concurrent clients, and `in_all` with the replacements of dead ones.

    `placement` is the place of one of several cores (`llmserve.engines.vllm.placement.place`), and
    `step_limit` may limit the tokens in a step.
    Long calls block, so run them in a thread: first `configure`, then `launch` while the clients
    start, `check` from time to time, and `stop` at the end.
    """

    def __init__(
        self,
        model: str,
        engine_args: Mapping[str, Any],
        *,
        at_once: int,
        in_all: int,
        placement: Placement | None = None,
        step_limit: StepLimit | None = None,
    ) -> None:
        self._model = model
        self._placement = placement or ALONE
        self._step_limit = step_limit or StepLimit()
        self._engine_args = dict(engine_args)
        self._at_once = at_once
        self._in_all = in_all
        self._manager: Any = None
        self._coordinator: Any = None
        self._guard = ProcessGuard()
        self._up = False

    def configure(self, check: Callable[[], None]) -> None:
        """Prepare the configuration. Raises ConfigurationError, and what `check` raises."""
        check_host()
        check_model(self._model, self._engine_args)
        try:
            import vllm
            from vllm.utils.network_utils import get_open_zmq_ipc_path
            from vllm.v1.engine.utils import EngineZmqAddresses
        except ImportError as error:
            raise ConfigurationError(f"the engine vllm cannot be imported ({error}); install llmserve[cuda] or llmserve[cpu]") from error
        check_version(vllm.__version__)
        with start_errors(self._model):
            self._config = build_config(resolve(self._model, check), self._engine_args, self._placement.sharing, self._at_once)
        # The smallest maximum of tokens in a step that `step_limit` can set; None if it can set none.
        self.min_step_tokens = self._step_limit.least(self._config)
        paths = [get_open_zmq_ipc_path() for _ in range(2 * self._in_all)]
        self._addresses = EngineZmqAddresses(inputs=paths[::2], outputs=paths[1::2])

    @property
    def batch(self) -> tuple[int, int]:
        """Maximum number of sequences and of tokens in one step of all its processes."""
        scheduler, size = self._config.scheduler_config, int(self._config.parallel_config.data_parallel_size)
        return int(scheduler.max_num_seqs) * size, int(scheduler.max_num_batched_tokens) * size

    def launch(self, check: Callable[[], None] = lambda: None) -> None:
        """Start the core and wait until it is up. Raises ConfigurationError or EngineDead.

        Cores that share a GPU start one after another; raises what `check` raises while this waits.
        """
        from vllm.v1.engine.utils import launch_core_engines
        from vllm.v1.executor import Executor

        install()
        with (
            self._placement.loading(check, self._step_limit.variables()),
            start_errors(self._model, self._guard),
            ExitStack() as until_up,
        ):
            until_up.enter_context(interrupts_blocked())
            until_up.enter_context(self._guard.launching(*PROCESS_NAMES))
            launched = until_up.enter_context(
                launch_core_engines(self._config, Executor.get_class(self._config), log_stats=True, addresses=self._addresses)
            )
            # vLLM 0.25 returns a tuple.
            manager, coordinator = launched[:2] if isinstance(launched, tuple) else (launched.engine_manager, launched.coordinator)
            # vLLM ends a coordinator to which nothing refers.
            self._manager, self._coordinator = manager, coordinator
        self._up = True

    def client(self, index: int) -> CoreClient:
        """Return the client with this number, which must be unused."""
        return CoreClient(
            config=self._config,
            input_address=self._addresses.inputs[index],
            output_address=self._addresses.outputs[index],
            count=self._at_once,
            index=index,
            engine=self._placement.number,
        )

    def check(self) -> None:
        """Raise EngineDead if one of the core's processes has ended."""
        ended = {} if self._manager is None else dict(self._manager.finished_procs())
        if self._coordinator is not None and self._coordinator.proc.exitcode is not None:
            ended[self._coordinator.proc.name] = self._coordinator.proc.exitcode
        for name, code in ended.items():
            raise EngineDead(f"vLLM's engine process {name} ended with {code}; its own log says why")

    def kill(self) -> None:
        """Kill the core at once, because it hangs or is being launched."""
        self._guard.kill()

    def stop(self) -> None:
        if not self._up:
            self._guard.kill()
        if self._manager is not None:
            self._manager.shutdown(END_SECONDS)
            self._manager = None
        if self._coordinator is not None:
            self._coordinator.shutdown(END_SECONDS)
            self._coordinator = None
        self._step_limit.close()
        self._guard.close()


async def abort_in_all(llm: "AsyncLLM", request_ids: list[str]) -> None:
    """Abort requests of any client in all of the core's processes.

    vLLM's own method sends an abort only to the process that has a request of this client.
    """
    from vllm.v1.engine import EngineCoreRequestType

    core = llm.engine_core
    for process in () if llm.errored else core.core_engines:
        await core._send_input(EngineCoreRequestType.ABORT, request_ids, process)  # noqa: SLF001


@contextmanager
def start_errors(model: str, guard: ProcessGuard | None = None) -> Iterator[None]:
    """Convert vLLM's errors at its start.

    Reports of the guard's processes take precedence: the host's error only says that they ended.
    """
    try:
        yield
    except (ConfigurationError, EngineDead):
        raise
    except Exception as error:
        cause = guard and first_report(guard.folder, guard.processes)
        raise (cause or Failure.of(error)).as_error(model) from error


@contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Block SIGINT in processes that are started inside.

    They inherit the signal mask, and vLLM only resets handlers. A terminal sends Ctrl-C to every
    process of the group, so the engine would die at once, and its host could not finish its
    requests. The host stops the engine by SIGTERM. This thread is not the one that handles signals.
    """
    # The tracker must start before this: multiprocessing unblocks the signal when it starts the
    # tracker.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
