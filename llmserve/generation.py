"""`stream()`, `generate()` and `embed()` for every kind of input.

A subclass opens the stream of a well-formed request.
"""

from abc import ABC, abstractmethod
from contextlib import AbstractAsyncContextManager
from typing import Any, Unpack, overload

from llmserve.cancellation import CancellationToken
from llmserve.lifecycle.stream import TokenStream
from llmserve.pooling.requests import PoolingFields, PoolingRequest
from llmserve.pooling.vectors import Embedding
from llmserve.request import Completion, GenerationRequest, Sampling
from llmserve.validation.bounds import wrong_type
from llmserve.validation.inputs import Input, RequestFields


class Generation(ABC):
    """Makes a `GenerationRequest` from the arguments, before anything is counted or held."""

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
        """Generate one sequence. Entering waits for admission; leaving frees the request's slot.

            async with manager.stream("Once upon a time", max_tokens=64) as stream:
                async for delta in stream:
                    print(delta.text, end="")

        Args:
            request: Text, token ids, messages (mappings with `role` and `content`), or a
                GenerationRequest.
            *options: A `Sampling` and a `CancellationToken`, in any order. Both may also be passed
                as `sampling` and `token`. The sampling replaces that of a GenerationRequest.
            **fields: Every field of `Sampling` and `GenerationRequest`, such as `max_tokens`,
                `temperature`, `top_p`, `stop`, `seed`, `tools`, `deadline` (seconds), `tenant` and
                `priority`. Each replaces that value of the request or its sampling.

        Raises, at the call, before anything is counted:
            TypeError: An argument has an unsupported type, or a field is unknown.
            InvalidRequest: A value is out of its bounds; `param` names it.

        Raises, on entering:
            RuntimeError: The manager has not been started, has been closed, or belongs to another
                event loop.
            InvalidRequest: This model cannot answer the request.
            EngineRestarted: The request was in several engines that died.
            Overloaded: The request was refused; see `retry_after`.
            RequestCancelled, DeadlineExceeded: The request ended while it waited.
            EngineError: The engine did not accept the request.
        """
        if options or fields:
            sampling, token = _sort(options, fields.pop("sampling", None), fields.pop("token", None))
        else:
            sampling = token = None
        if type(request) is not GenerationRequest or fields or sampling is not None:
            request = GenerationRequest.of(request, sampling, **fields)
            if isinstance(request, PoolingRequest):
                raise TypeError("request is a PoolingRequest, which only embed() takes")
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
        """Return the whole answer. Takes the arguments of `stream` and raises its errors."""
        async with self.stream(request, *options, **fields) as stream:
            return await stream.collect()

    async def embed(
        self, request: PoolingRequest | Input, token: CancellationToken | None = None, **fields: Unpack[PoolingFields]
    ) -> Embedding:
        """Return the vector of a prompt: its embedding, or the scores of a classifier.

            embedding = await manager.embed("The capital of France is Paris.")
            print(len(embedding), embedding.vector[0])

        The request takes a slot like a generation, and its prompt's tokens count for its tenant.

        Args:
            request: Text, token ids, messages or a PoolingRequest.
            token: Cancels the request.
            **fields: The fields of `PoolingRequest`, such as `dimensions`, `deadline` and `tenant`.

        Raises:
            InvalidRequest: The model makes no vectors, or cannot make this one; `param` is "model"
                in the first case.
            Exception: What `stream()` raises at the call and on entering.
        """
        if token is not None and not isinstance(token, CancellationToken):
            raise wrong_type("token", "a CancellationToken or None", token)
        async with self._stream(PoolingRequest.made_of(request, **fields), token) as stream:
            return await stream.embedding()

    @abstractmethod
    def _stream(self, request: GenerationRequest, token: CancellationToken | None) -> AbstractAsyncContextManager[TokenStream]:
        """Open the stream of a well-formed request."""


def _sort(options: tuple[object, ...], sampling: object, token: object) -> tuple[Sampling | None, CancellationToken | None]:
    """Return the sampling and the token among all arguments. Raises TypeError."""
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
