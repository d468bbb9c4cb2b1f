"""Tests constraints before vLLM's engine gets them, a few at a time, and remembers the verdicts.

vLLM's own validation accepts constraints on which its compiler may spend minutes (0.25.1, 0.32.0).
"""

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence

import anyio
import anyio.to_thread

from llmserve.admission import Refusal, Refused
from llmserve.engines.vllm.grammars.sandbox import GrammarSandbox
from llmserve.errors import InvalidRequest
from llmserve.runtime.cpus import available_cpus
from llmserve.runtime.fair_semaphore import FairSemaphore
from llmserve.structured import FIELD, StructuredOutputs

# Number of verdicts to remember. Refusals are remembered too, because their tests cost most.
REMEMBERED = 1024
# Number of cores for tests: one of eight, at least one. vLLM compiles with eight threads.
CORES = max(1, available_cpus() // 8)
THREADS = min(4, CORES)
AT_ONCE = CORES // THREADS
MAX_WAITING = 64
MAX_OF_ONE = MAX_WAITING // 2
# Longest wait for the start of a test in seconds.
PATIENCE_SECONDS = 2.0


class Grammars:
    """Tests the constraints of one engine's requests.

    `vocabulary` returns xgrammar's serialised tokenizer, and is called in a thread. With
    `free_space` the engine lets a model put white space between the parts of JSON.
    """

    def __init__(self, vocabulary: Callable[[], str], *, free_space: bool = False) -> None:
        self._trials = GrammarSandbox(vocabulary, threads=THREADS, free_space=free_space)
        self._starting = anyio.Lock()
        self._places = FairSemaphore(AT_ONCE)
        # By digest, so that an entry takes some hundred bytes however long the constraint is.
        self._verdicts: OrderedDict[bytes, str | None] = OrderedDict()
        self._tried: dict[bytes, anyio.Event] = {}
        self._trying: Counter[str] = Counter()

    async def check(self, constraint: StructuredOutputs, tenant: str, field: str = FIELD) -> None:
        """Check a constraint. Raises InvalidRequest about `field`, Overloaded and EngineError.

        Overloaded means that too many constraints are being tested, EngineError that none can be.
        """
        digest = hashlib.sha256(f"{constraint.kind}\n{constraint.spec}".encode("utf-8", "surrogatepass")).digest()
        while digest not in self._verdicts:
            under_way = self._tried.get(digest)
            if under_way is not None:
                await under_way.wait()
            else:
                await self._try(digest, constraint, tenant)
        self._verdicts.move_to_end(digest)
        refusal = self._verdicts[digest]
        if refusal is not None:
            raise InvalidRequest(f"{field}: {refusal}", field)

    async def _try(self, digest: bytes, constraint: StructuredOutputs, tenant: str) -> None:
        if len(self._tried) >= MAX_WAITING or self._trying[tenant] >= MAX_OF_ONE:
            raise Refused.of(Refusal.GRAMMARS_BUSY).error()
        done = self._tried[digest] = anyio.Event()
        self._trying[tenant] += 1
        try:
            await self.start()
            async with self._places.place(tenant, PATIENCE_SECONDS):
                self._remember(digest, await anyio.to_thread.run_sync(self._trials.verdict, constraint))
        except TimeoutError:
            raise Refused.of(Refusal.GRAMMARS_BUSY).error() from None
        finally:
            self._trying.subtract([tenant])
            # Remove tenants whose count is 0.
            self._trying = +self._trying
            del self._tried[digest]
            done.set()

    async def cost(self, constraint: StructuredOutputs, token_ids: Sequence[int]) -> float:
        """Return the CPU seconds that the constraint adds to a step after these tokens.

        The call does not queue behind other tests, because all requests wait for it.
        Raises EngineError or Overloaded.
        """
        await self.start()
        return await anyio.to_thread.run_sync(self._trials.cost, constraint, token_ids, abandon_on_cancel=True)

    async def start(self) -> None:
        """Start the sandbox program unless it runs. Raises EngineError.

        It starts with the engine, so that no test waits for it, and again after it was killed.
        """
        async with self._starting:
            if not self._trials.running:
                await anyio.to_thread.run_sync(self._trials.start)

    def _remember(self, digest: bytes, verdict: str | None) -> None:
        self._verdicts[digest] = verdict
        while len(self._verdicts) > REMEMBERED:
            self._verdicts.popitem(last=False)

    def close(self) -> None:
        self._trials.close()
