"""The bodies of /v1/embeddings and /classify."""

from typing import ClassVar, Literal

from frontends.access.caller import Caller
from frontends.openai.unsupported import Unsupported
from frontends.pooling.requests import UNSUPPORTED_INPUTS, InputBody, ParsedInputs
from llmserve.pooling.requests import CLASSIFY, EMBED

_FLOATS = "the elements are 32-bit floats, little-endian"


class VectorsBody(InputBody, kw_only=True, forbid_unknown_fields=True):
    """A body whose answer has vectors."""

    unsupported: ClassVar[Unsupported] = {
        **UNSUPPORTED_INPUTS,
        "embed_dtype": (("float32",), _FLOATS),
        "endianness": (("native", "little"), _FLOATS),
    }

    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None


class EmbeddingsRequest(VectorsBody, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /v1/embeddings."""

    def wanted(self, caller: Caller, adapter: str | None) -> ParsedInputs:
        """Return one request for each input. Raises InvalidRequest."""
        return self.of_inputs(caller, adapter, task=EMBED, dimensions=self.dimensions)


class PoolRequest(VectorsBody, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /pooling, which has the task as a field."""

    task: Literal["embed", "classify"] | None = None

    def wanted(self, caller: Caller, adapter: str | None) -> ParsedInputs:
        """Return one request for each input. Raises InvalidRequest."""
        return self.of_inputs(caller, adapter, task=self.task, dimensions=self.dimensions)


class ClassifyRequest(InputBody, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /classify."""

    unsupported: ClassVar[Unsupported] = UNSUPPORTED_INPUTS

    def wanted(self, caller: Caller, adapter: str | None) -> ParsedInputs:
        """Return one request for each input. Raises InvalidRequest."""
        return self.of_inputs(caller, adapter, task=CLASSIFY)
