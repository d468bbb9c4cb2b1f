"""What the bodies of requests for vectors share."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import attrs
import msgspec

from frontends.access.caller import Caller
from frontends.openai.unsupported import Unsupported
from frontends.openai.wanted import renamed
from llmserve import InvalidRequest, PoolingRequest

# Maximum number of inputs of one request, as in OpenAI's API.
MAX_INPUTS = 2048

_SERVER = "the server chooses it"
_TEXT_ONLY = "this model supports only text"

# vLLM's fields that all these routes refuse.
UNSUPPORTED: Unsupported = {
    "request_id": ((), _SERVER),
    "cache_salt": ((), _SERVER),
    "mm_processor_kwargs": (({},), _TEXT_ONLY),
    "padding": (("do_not_pad",), "the engine needs no padding"),
}
# Those of the routes that take `input`.
UNSUPPORTED_INPUTS: Unsupported = {
    **UNSUPPORTED,
    "messages": ((), "send texts as input"),
    "chat_template": ((), "send texts as input"),
    "chat_template_kwargs": (({},), "send texts as input"),
    "add_generation_prompt": ((False,), "send texts as input"),
    "continue_final_message": ((False,), "send texts as input"),
    "media_io_kwargs": (({},), _TEXT_ONLY),
}

# The client's field names by the library's.
NAMES = {"prompt": "input", "activation": "use_activation"}


@attrs.frozen
class ParsedInputs:
    """The requests of a body, one for each input.

    `names` returns the client's field names of a request by the library's.
    """

    requests: list[PoolingRequest]
    names: Callable[[int], Mapping[str, str]]


class PoolingBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Fields that all these bodies share: OpenAI's, and vLLM's extras under vLLM's names."""

    max_inputs: ClassVar[int] = MAX_INPUTS
    # The fields that hold texts or token ids, for `frontends/openai/sizes.py`.
    id_fields: ClassVar[frozenset[str]] = frozenset({"input"})

    model: str | None = None
    user: str | None = None
    priority: int | None = None
    truncate_prompt_tokens: int | None = None
    truncation_side: Literal["left", "right"] | None = None
    use_activation: bool | None = None

    def request(self, prompt: str | list[int], caller: Caller, adapter: str | None, names: dict[str, str], **more: Any) -> PoolingRequest:
        """Return the request for one input. Raises InvalidRequest."""
        # An API key determines the tenant. `user` is then a user of the client, whom this server
        # does not know.
        tenant = caller.tenant or str(self.user or "default")[:64]
        with renamed(**names, **caller.names):
            return PoolingRequest(
                prompt,
                deadline=caller.deadline,
                priority=self.priority or 0,
                trace_headers=caller.trace,
                on_arrival=caller.on_arrival,
                adapter=adapter,
                tenant=tenant,
                truncate_prompt_tokens=self.truncate_prompt_tokens,
                truncation_side=self.truncation_side,
                activation=self.use_activation,
                **more,
            )


class InputBody(PoolingBody, kw_only=True, forbid_unknown_fields=True):
    """A body with `input`: a text, token ids, or a list of either."""

    input: str | list[str | int | list[int]] | None = None
    add_special_tokens: bool | None = None

    def of_inputs(self, caller: Caller, adapter: str | None, **more: Any) -> ParsedInputs:
        """Return one request for each input, in order. Raises InvalidRequest."""
        fields: dict[str, Any] = {"add_special_tokens": self.add_special_tokens, **more}
        requests = [self.request(one, caller, adapter, NAMES, **fields) for one in self._inputs()]
        return ParsedInputs(requests, lambda _: NAMES)

    def _inputs(self) -> list[Any]:
        found = self.input
        if not found:
            raise InvalidRequest("input is missing or empty", "input")
        if isinstance(found, str) or type(found[0]) is int:
            return [found]
        if len(found) > MAX_INPUTS:
            raise InvalidRequest(f"input must have at most {MAX_INPUTS:,} texts or lists of token ids", "input")
        kind = type(found[0])
        if any(type(one) is not kind for one in found):
            raise InvalidRequest("input must be a string, a list of strings, a list of token ids, or a list of such lists", "input")
        return found
