"""llmserve: vLLM inside any asyncio program, with admission control, cancellation, deadlines and metrics.

Importing this imports neither vllm nor torch; `EngineManager.open()` does, when it is entered.
"""

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
from llmserve.facts import Facts as Facts
from llmserve.manager import EngineManager as EngineManager
from llmserve.metrics import Observer as Observer
from llmserve.request import Completion as Completion
from llmserve.request import Delta as Delta
from llmserve.request import GenerationRequest as GenerationRequest
from llmserve.request import Outcome as Outcome
from llmserve.request import Sampling as Sampling
from llmserve.request import Timeline as Timeline
from llmserve.request import TokenLogprob as TokenLogprob
from llmserve.request import Usage as Usage
from llmserve.state import ManagerStatistics as ManagerStatistics
from llmserve.state import State as State
from llmserve.stream import TokenStream as TokenStream
from llmserve.structured import StructuredOutputs as StructuredOutputs
from llmserve.tools import Message as Message
from llmserve.tools import Reader as Reader
from llmserve.tools import ToolCall as ToolCall
from llmserve.tools import Tools as Tools
from llmserve.tracing import Span as Span
from llmserve.tracing import Tracer as Tracer

__version__ = "0.1.0"

__all__ = (
    "SLO", "Admission", "AdmissionConfig", "CancellationToken", "Completion", "ConfigurationError", "DeadlineExceeded", "Decision",
    "Delta", "Engine", "EngineDead", "EngineError", "EngineInfo", "EngineManager", "EngineRestarted", "EngineStatistics", "Facts",
    "FixedLimit", "GenerationRequest", "InvalidRequest", "LLMServeError", "ManagerConfig", "ManagerStatistics", "Message",
    "ModelNotFound", "Observer", "Outcome", "Overloaded", "Policy", "PromptTooLong", "Reader", "RequestCancelled", "RestartConfig",
    "Sampling", "Span", "State", "StructuredOutputs", "TenantLimits", "TenantOverloaded", "TenantTable", "Timeline", "TokenLogprob",
    "TokenStream", "ToolCall", "Tools", "Tracer", "Unavailable", "UnknownTenant", "Unlimited", "Usage",
)  # fmt: skip
