"""Generation: `stream()` and `generate()` with everything that callers may pass. A subclass opens the stream of a finished request."""

from abc import ABC, abstractmethod
from contextlib import AbstractAsyncContextManager
from typing import Any, Unpack, overload

from llmserve.cancellation import CancellationToken
from llmserve.lifecycle.stream import TokenStream
from llmserve.request import Completion, GenerationRequest, Sampling
from llmserve.validation.bounds import wrong_type
from llmserve.validation.inputs import Input, RequestFields


class Generation(ABC):
    """Makes a `GenerationRequest` of the arguments, before anything is counted or held for them."""

    @overload
    def stream(
        self,
        request: GenerationRequest | Input,
        sampling: Sampling | None = None,
        token: CancellationToken | None = None,
        **fields: Unpack[RequestFields],
    ) -> AbstractAsyncContextManager[TokenStream]: ...
    @overload
    def stream(
        self,
        request: GenerationRequest | Input,
        token: CancellationToken | None = None,
        *,
        sampling: Sampling | None = None,
        **fields: Unpack[RequestFields],
    ) -> AbstractAsyncContextManager[TokenStream]: ...
    def stream(self, request: Any, *options: Any, **fields: Any) -> AbstractAsyncContextManager[TokenStream]:
        """Generate one sequence. Entering waits until it is admitted; leaving early, however, frees what it held.

            async with manager.stream("Once upon a time", max_tokens=64) as stream:
                async for delta in stream:
                    print(delta.text, end="")

        Args:
            request: text, token ids, messages (mappings with `role` and `content`), or a GenerationRequest.
            sampling: a `Sampling`, by keyword or by position; it replaces the one of a GenerationRequest.
            token: a `CancellationToken`, by keyword or by position, before or after `sampling`.
            fields: every field of `Sampling` and `GenerationRequest`, such as `max_tokens`, `temperature`, `top_p`, `stop`, `seed`,
                `tools`, `deadline` (seconds), `tenant` and `priority`. Each replaces that one value of the request or its sampling.

        Raises, at the call, before anything is counted:
            TypeError: an argument is of a type that is not accepted, or there is no such field.
            InvalidRequest: a value is out of its bounds; `param` names it.

        Raises, on entering:
            RuntimeError: the manager has not been started, or has been closed, or belongs to another event loop.
            InvalidRequest: the request cannot be answered by this model.
            EngineRestarted: it was in several engines that died.
            Overloaded: refused; see its `retry_after`.
            RequestCancelled, DeadlineExceeded: ended while it waited.
            EngineError: the engine would not take it.
        """
        if options or fields:
            sampling, token = _sort(options, fields.pop("sampling", None), fields.pop("token", None))
        else:
            sampling = token = None
        if type(request) is not GenerationRequest or fields or sampling is not None:
            request = GenerationRequest.of(request, sampling, **fields)
        return self._stream(request, token)

    @overload
    async def generate(
        self,
        request: GenerationRequest | Input,
        sampling: Sampling | None = None,
        token: CancellationToken | None = None,
        **fields: Unpack[RequestFields],
    ) -> Completion: ...
    @overload
    async def generate(
        self,
        request: GenerationRequest | Input,
        token: CancellationToken | None = None,
        *,
        sampling: Sampling | None = None,
        **fields: Unpack[RequestFields],
    ) -> Completion: ...
    async def generate(self, request: Any, *options: Any, **fields: Any) -> Completion:
        """The whole answer at once. Takes the arguments of `stream`, and raises as it and iterating do."""
        async with self.stream(request, *options, **fields) as stream:
            return await stream.collect()

    @abstractmethod
    def _stream(self, request: GenerationRequest, token: CancellationToken | None) -> AbstractAsyncContextManager[TokenStream]:
        """The stream of a request that is well-formed."""


def _sort(options: tuple[object, ...], sampling: object, token: object) -> tuple[Sampling | None, CancellationToken | None]:
    """The sampling and the token among the positional arguments and the keywords. Raises TypeError."""
    if len(options) > 2:
        raise TypeError(f"at most a request, a sampling and a token are positional, but {1 + len(options)} arguments were given")
    for option in options:
        if isinstance(option, Sampling) and sampling is None:
            sampling = option
        elif isinstance(option, CancellationToken) and token is None:
            token = option
        elif isinstance(option, (Sampling, CancellationToken)):
            raise TypeError(f"a {type(option).__name__} was given twice")
        elif option is not None:
            raise wrong_type("a positional argument after the request", "a Sampling or a CancellationToken", option)
    if sampling is not None and not isinstance(sampling, Sampling):
        raise wrong_type("sampling", "a Sampling or None", sampling)
    if token is not None and not isinstance(token, CancellationToken):
        raise wrong_type("token", "a CancellationToken or None", token)
    return sampling, token
