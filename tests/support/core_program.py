"""The HTTP server with an engine `core`, whose workers share one stand-in core: `core.CoreProcess`.

Each worker imports this module again, because multiprocessing's spawn imports the main module.
"""

from frontends import aiohttp_app
from frontends.workers import hosted_engine
from llmserve.engines import ENGINES
from llmserve.engines.simulated.engine import SimulatedEngine
from llmserve.engines.simulated.spec import SimulatedSpec

from .core import CoreProcess
from .core_engine import CoreEngine


class CoreSpec(SimulatedSpec):
    """The simulated engine's arguments, and the core of vLLM's engine."""

    shares_core = True

    def create(self, model, args):
        return CoreEngine(SimulatedEngine.from_args(model, args).config, model=model)


def core_process(model, args, *, step_limit, **_):
    return CoreProcess(SimulatedEngine.from_args(model, args).config, step_limit=step_limit)


ENGINES["core"] = CoreSpec()
# The supervisor's core is always vLLM's; everything else of the supervisor is the product's.
setattr(hosted_engine, "VLLMCore", core_process)  # noqa: B010 - a class cannot be assigned to

if __name__ == "__main__":
    aiohttp_app.main()
