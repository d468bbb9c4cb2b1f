"""Tokens in, tokens out: the body and the answers of vLLM's /inference/v1/generate."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

import attrs
import msgspec

from frontends.access.caller import Caller
from frontends.openai.bodies import Metrics, PromptLogprobs, TokenIds, UsageBody
from frontends.openai.logprobs import ChatLogprobs, chat_logprobs, pieces
from frontends.openai.requests import StreamOptions, nth
from frontends.openai.response_builder import Fill, ResponseBuilder
from frontends.openai.sampling import SamplingBody
from frontends.openai.unsupported import TOKENS, Unsupported
from frontends.openai.wanted import ParsedBody, renamed
from llmserve import Completion, Delta, GenerationRequest, InvalidRequest, TokenLogprob, TokenStream, Usage
from llmserve.validation.results import IMPOSSIBLE


class TokenSampling(SamplingBody, kw_only=True, forbid_unknown_fields=True):
    """The field `sampling_params`. Without `max_tokens` the answer may fill the context."""

    max_tokens: int | None = None
    logprobs: int | None = None
    detokenize: bool | None = None


class TokensRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /inference/v1/generate.

    With the `output_mode` "text" the answer also has the text. `request_id` only comes back in it.
    """

    unsupported: ClassVar[Unsupported] = TOKENS

    token_ids: list[int]
    sampling_params: TokenSampling
    model: str | None = None
    request_id: str | None = None
    return_token_ids: bool | None = None
    output_mode: Literal["tokens", "text"] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    priority: int | None = None

    def wanted(self, caller: Caller, adapter: str | None) -> ParsedBody:
        """Return the parsed content of this body. Raises InvalidRequest."""
        options, sampling = self.stream_options or StreamOptions(), self.sampling_params
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest("stream_options requires stream to be true", "stream_options")
        if self.stream and sampling.prompt_logprobs is not None:
            raise InvalidRequest("prompt_logprobs requires stream to be false", "prompt_logprobs")
        if self.request_id is not None and not 0 < len(self.request_id) <= 64:
            raise InvalidRequest("request_id must have 1 to 64 characters", "request_id")
        text = self.output_mode == "text"
        if text and sampling.detokenize is False:
            raise InvalidRequest("the output_mode text needs detokenize to be true", "detokenize")
        return ParsedBody(
            requests=self._requests(caller, adapter, text=text),
            per_prompt=sampling.choices_per_prompt,
            stream=bool(self.stream),
            usage=bool(options.include_usage),
            running_usage=bool(options.include_usage and options.continuous_usage_stats),
            names=self._names() | caller.names,
            token_ids=True,
            prompt_logprobs=sampling.prompt_logprobs is not None,
            answer_id=self.request_id,
            text=text,
        )

    def _names(self) -> dict[str, str]:
        return self.sampling_params.names() | {"prompt": "token_ids"}

    def _requests(self, caller: Caller, adapter: str | None, *, text: bool) -> list[GenerationRequest]:
        """Return one request per choice. Only the first has the prompt's ids and logprobs."""
        body = self.sampling_params
        # The text is needed to return it, and to find stop strings in it.
        detokenize = text or bool(body.stop) if body.detokenize is None else body.detokenize
        with renamed(**self._names() | caller.names):
            prompt_logprobs, logprobs = body.prompt_logprobs, body.logprobs
            sampling = body.sampling(max_tokens=body.max_tokens, logprobs=logprobs, prompt_logprobs=prompt_logprobs, detokenize=detokenize)
            common: dict[str, Any] = {"priority": self.priority or 0, "deadline": caller.deadline, "adapter": adapter}
            common |= {"trace_headers": caller.trace, "on_arrival": caller.on_arrival} | (
                {"tenant": caller.tenant} if caller.tenant else {}
            )
            first = GenerationRequest(self.token_ids, sampling=sampling, return_prompt_ids=bool(self.return_token_ids), **common)
            others = attrs.evolve(sampling, prompt_logprobs=None)
            choices = range(1, body.choices_per_prompt)
            return [first, *(GenerationRequest(first.prompt, sampling=nth(others, number), **common) for number in choices)]


class IdLogprob(msgspec.Struct, gc=False):
    """A token's logprob by its id. `rank` is null for a token that is not among the alternatives."""

    token_id: int
    logprob: float
    rank: int | None


class IdLogprobs(IdLogprob, gc=False):
    """A generated token's logprob. The alternatives begin with the token itself."""

    top_logprobs: list[IdLogprob]


class TokensLogprobs(msgspec.Struct):
    content: list[IdLogprobs]


class TokensChoice(msgspec.Struct):
    index: int
    token_ids: TokenIds
    # TokensLogprobs, or in the mode "text" ChatLogprobs. msgspec has no union of the two.
    logprobs: Any
    finish_reason: str | None
    stop_reason: str | int | None = None
    text: str | msgspec.UnsetType = msgspec.UNSET


class TokensAnswer(msgspec.Struct):
    """The answer, or a chunk of one, whose last three fields are absent unless it has them."""

    request_id: str
    output_mode: Literal["tokens", "text"]
    created: int
    model: str
    choices: Sequence[TokensChoice]
    usage: UsageBody | msgspec.UnsetType = msgspec.UNSET
    prompt_token_ids: TokenIds = msgspec.UNSET
    prompt_logprobs: PromptLogprobs = msgspec.UNSET
    metrics: Metrics = msgspec.UNSET


class TokensResponseBuilder(ResponseBuilder):
    """Writes the answers of /inference/v1/generate.

    Args:
        answer_id: the answer's `request_id`; None for an own one.
        text: whether the answer has its text.
    """

    prefix = "gen"

    def __init__(self, request_id: str, model: str, answer_id: str | None = None, *, text: bool = False) -> None:
        super().__init__(request_id, model)
        self._mode: Literal["tokens", "text"] = "text" if text else "tokens"
        self._answer_id = answer_id or self.id

    def begin(self, streams: Sequence[TokenStream]) -> None:
        super().begin(streams)
        self._prompts = {0: ids} if (ids := streams[0].prompt_token_ids) else {}

    def first(self, index: int, usage: Usage | None = None) -> bytes:
        return b""

    def chunk_with_ids(self, index: int, delta: Delta, usage: Usage | None = None) -> bytes:
        return self._event(self.chunk_choice(index, delta), usage, self._prompts.pop(0, None))

    def choice(self, index: int, completion: Completion) -> TokensChoice:
        return self._choice(index, completion, None)

    def chunk_choice(self, index: int, delta: Delta) -> TokensChoice:
        return self._choice(index, delta, None if delta.logprobs is None else self._of(delta.logprobs))

    def _choice(self, index: int, found: Completion | Delta, logprobs: TokensLogprobs | ChatLogprobs | None) -> TokensChoice:
        text = found.text if self._mode == "text" else msgspec.UNSET
        return TokensChoice(index, found.token_ids, logprobs, found.finish_reason, found.stop_reason, text)

    def logprobs(self, index: int, completion: Completion) -> Iterator[TokensLogprobs | ChatLogprobs]:
        return map(self._of, pieces(completion.logprobs or ()))

    def _of(self, entries: Sequence[TokenLogprob]) -> TokensLogprobs | ChatLogprobs:
        if self._mode == "tokens":
            return TokensLogprobs([_by_id(entry) for entry in entries])
        return chat_logprobs([msgspec.structs.replace(entry, top=_with_itself(entry)) for entry in entries])

    def _leave_holes(self, answer: Any, completions: Sequence[Completion]) -> list[Fill]:
        return super()._leave_holes(answer, completions) + self._leave_prompt_hole(answer, completions[0])

    def _whole(self, completions: Sequence[Completion], choices: Sequence[Any], usage: UsageBody) -> TokensAnswer:
        answer = self._answer(*choices)
        answer.usage, answer.prompt_token_ids, answer.prompt_logprobs = usage, completions[0].prompt_token_ids, None
        answer.metrics = self._metrics()
        return answer

    def _answer(self, *choices: Any) -> TokensAnswer:
        return TokensAnswer(self._answer_id, self._mode, self.created, self.model, choices)


def _with_itself(entry: TokenLogprob) -> tuple[TokenLogprob, ...]:
    """Return the alternatives, with the token itself first, as vLLM does."""
    return (msgspec.structs.replace(entry, top=()), *(other for other in entry.top if other.token_id != entry.token_id))


def _by_id(entry: TokenLogprob) -> IdLogprobs:
    ranks = {other.token_id: rank for rank, other in enumerate(entry.top, 1)}
    top = [IdLogprob(one.token_id, max(one.logprob or 0.0, IMPOSSIBLE), ranks.get(one.token_id)) for one in _with_itself(entry)]
    return IdLogprobs(entry.token_id, top[0].logprob, top[0].rank, top)
