"""What a program has to know about an engine before it makes one."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from llmserve.engine import Engine


class EngineSpec(ABC):
    """One row of `llmserve.engines.ENGINES`.

    The defaults fit an engine that runs in its caller's process, reads no files and uses no GPU.

    Attributes:
        shares_core: Whether several server processes can be clients of one engine core.
        has_files: Whether the engine reads weights and needs a folder for temporary files.
    """

    shares_core = False
    has_files = False

    @abstractmethod
    def create(self, model: str, args: Mapping[str, Any]) -> Engine:
        """Make the engine, without starting it. Raises ConfigurationError."""

    def create_pool(self, model: str, args: Mapping[str, Any], count: int) -> list[Engine]:
        """Make `count` engines for one process, without starting them. Raises ConfigurationError."""
        return [self.create(model, args) for _ in range(count)]

    def version(self) -> str | None:
        """The installed version that the advisories are about; None where there are none, or it is not installed."""
        return None

    def server_args(self, *, verbose: bool, trace_endpoint: str | None) -> dict[str, Any]:
        """Arguments that a server adds to those of its command line. `trace_endpoint` takes OTLP traces."""
        return {}

    def check_start(self, model: str, args: Mapping[str, Any]) -> None:  # noqa: B027 - most engines have nothing to check
        """Check what is known before the engine's packages are imported. Raises ConfigurationError."""

    def gains_from_workers(self, args: Mapping[str, Any]) -> bool:
        """Whether the host limits this engine, so that several HTTP processes serve more than one does."""
        return False

    def gpus(self, args: Mapping[str, Any]) -> int:
        """Number of GPUs that one engine takes."""
        return 0

    def engines_that_fit(self, args: Mapping[str, Any]) -> int:
        """Number of engines, at least 1, that this machine gives a GPU of their own each."""
        return 1
