"""vLLM inside any asyncio program, with admission control, cancellation, deadlines and metrics.

`EngineManager` runs one engine and decides which requests it gets. This program runs
without a model:

    import asyncio
    from llmserve import EngineManager, Overloaded

    async def main():
        # EngineManager.open("bundled"), or with a folder or a hub name, starts vLLM
        async with EngineManager.open(engine="simulated") as manager:
            answer = await manager.generate("The capital of France is", max_tokens=16, temperature=0)
            print(answer.text, answer.usage)

            messages = [{"role": "user", "content": "Tell me a story."}]
            try:
                async with manager.stream(messages, max_tokens=64, deadline=30) as stream:
                    async for delta in stream:
                        print(delta.text, end="", flush=True)
            except Overloaded as error:
                print(f"try again in {error.retry_after:.0f} s")

    if __name__ == "__main__":  # vLLM spawns a process for its engine
        asyncio.run(main())

The names, each with its own help, such as `help(llmserve.EngineManager)`:

    manager      EngineManager, ManagerStatistics, State, MetricsSnapshot
    requests     GenerationRequest, PoolingRequest, Sampling, StructuredOutputs, Tools, Image,
                 CancellationToken
    answers      TokenStream, Delta, Completion, Embedding, Usage, TokenLogprob, Message, ToolCall,
                 Timeline, Outcome
    errors       LLMServeError, InvalidRequest, PromptTooLong, ModelNotFound, UnknownTenant,
                 Overloaded, TenantOverloaded, Unavailable, RequestCancelled, DeadlineExceeded,
                 EngineError, EngineRestarted, EngineDead, ConfigurationError
    settings     ManagerConfig, AdmissionConfig, SLO, RestartConfig, TenantTable, TenantLimits
    admission    FixedLimit, Unlimited, Policy, Admission, Decision
    extensions   Engine, EngineInfo, EngineStatistics, Observer, OutputParser, Span, Tracer

Importing this package imports neither vllm nor torch. A manager imports them when it starts a vLLM
engine.
"""

# There is no __all__: with it, help() would print every class in full, 4,845 lines. Type checkers
# treat `name as name` as an export.
from llmserve.admission import Admission as Admission
from llmserve.admission import Decision as Decision
from llmserve.admission import FixedLimit as FixedLimit
from llmserve.admission import Policy as Policy
from llmserve.admission import Unlimited as Unlimited
from llmserve.cancellation import CancellationToken as CancellationToken
from llmserve.config import SLO as SLO
from llmserve.config import AdmissionConfig as AdmissionConfig
from llmserve.config import ManagerConfig as ManagerConfig
from llmserve.config import RestartConfig as RestartConfig
from llmserve.config import TenantLimits as TenantLimits
from llmserve.config import TenantTable as TenantTable
from llmserve.engine import Engine as Engine
from llmserve.engine import EngineInfo as EngineInfo
from llmserve.engine import EngineStatistics as EngineStatistics
from llmserve.errors import ConfigurationError as ConfigurationError
from llmserve.errors import DeadlineExceeded as DeadlineExceeded
from llmserve.errors import EngineDead as EngineDead
from llmserve.errors import EngineError as EngineError
from llmserve.errors import EngineRestarted as EngineRestarted
from llmserve.errors import InvalidRequest as InvalidRequest
from llmserve.errors import LLMServeError as LLMServeError
from llmserve.errors import ModelNotFound as ModelNotFound
from llmserve.errors import Overloaded as Overloaded
from llmserve.errors import PromptTooLong as PromptTooLong
from llmserve.errors import RequestCancelled as RequestCancelled
from llmserve.errors import TenantOverloaded as TenantOverloaded
from llmserve.errors import Unavailable as Unavailable
from llmserve.errors import UnknownTenant as UnknownTenant
from llmserve.images.parts import Image as Image
from llmserve.lifecycle.stream import TokenStream as TokenStream
from llmserve.manager import EngineManager as EngineManager
from llmserve.observability.metrics import Observer as Observer
from llmserve.observability.snapshot import MetricsSnapshot as MetricsSnapshot
from llmserve.pooling.requests import PoolingRequest as PoolingRequest
from llmserve.pooling.vectors import Embedding as Embedding
from llmserve.request import Completion as Completion
from llmserve.request import Delta as Delta
from llmserve.request import GenerationRequest as GenerationRequest
from llmserve.request import Outcome as Outcome
from llmserve.request import Sampling as Sampling
from llmserve.request import Timeline as Timeline
from llmserve.request import TokenLogprob as TokenLogprob
from llmserve.request import Usage as Usage
from llmserve.runtime.version import __version__ as __version__
from llmserve.state import ManagerStatistics as ManagerStatistics
from llmserve.state import State as State
from llmserve.structured import StructuredOutputs as StructuredOutputs
from llmserve.tools import Message as Message
from llmserve.tools import OutputParser as OutputParser
from llmserve.tools import ToolCall as ToolCall
from llmserve.tools import Tools as Tools
from llmserve.tracing import Span as Span
from llmserve.tracing import Tracer as Tracer
