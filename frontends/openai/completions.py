"""The body of /v1/completions, and the choices of its answers."""

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, ClassVar

import msgspec

from frontends.access.caller import Caller
from frontends.net.turns import WorkQueue
from frontends.openai.bodies import TextChoice
from frontends.openai.logprobs import TextLogprobs, pieces, text_logprobs
from frontends.openai.requests import Common
from frontends.openai.response_builder import ResponseBuilder, prompt_alone
from frontends.openai.sizes import MAX_PROMPTS
from frontends.openai.unsupported import COMPLETIONS, Unsupported
from llmserve import Completion, Delta, GenerationRequest, InvalidRequest, TokenLogprob, TokenStream, Usage

# OpenAI's default for completions.
DEFAULT_MAX_TOKENS = 16


class CompletionRequest(Common, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /v1/completions. `prompt` is text or token ids, or a list of either."""

    prompt: str | list[str | int | list[int]] | None = None
    unsupported: ClassVar[Unsupported] = COMPLETIONS

    max_tokens: int | None = None
    logprobs: int | None = None
    echo: bool | None = None

    def prompts(self) -> list[dict[str, Any]]:
        prompt = self.prompt
        if not prompt:
            raise InvalidRequest("prompt is missing or empty", "prompt")
        if self.echo and self.truncate_prompt_tokens is not None:
            raise InvalidRequest("echo and truncate_prompt_tokens exclude each other", "truncate_prompt_tokens")
        if isinstance(prompt, str) or type(prompt[0]) is int:
            return [{"prompt": prompt}]
        if len(prompt) > MAX_PROMPTS:
            raise InvalidRequest(f"prompt must have at most {MAX_PROMPTS} prompts", "prompt")
        kind = type(prompt[0])
        if kind not in (str, list) or any(type(one) is not kind for one in prompt):
            raise InvalidRequest("prompt must be a string, a list of strings, a list of token ids, or a list of such lists", "prompt")
        return [{"prompt": one} for one in prompt]

    @property
    def echoes_alone(self) -> bool:
        return bool(self.echo) and self.max_tokens == 0

    def extras(self) -> dict[str, Any]:
        return {"echo": bool(self.echo), "generates": not self.echoes_alone}

    def generation_requests(self, caller: Caller, adapter: str | None = None) -> list[GenerationRequest]:
        prompt_logprobs = self.logprobs if self.echo and self.prompt_logprobs is None else self.prompt_logprobs
        most = DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens
        # An engine scores a prompt only while it generates a token, which the answer then omits.
        sampling = self.sampling(max_tokens=1 if self.echoes_alone else most, logprobs=self.logprobs, prompt_logprobs=prompt_logprobs)
        return self.requests(self.prompts(), sampling, caller, adapter)


class TextResponseBuilder(ResponseBuilder):
    """Writes the answers of /v1/completions.

    Args:
        echo: returns the prompt's text, with which a choice begins; None for no echo.
        generates: False where the answer is only the prompt. The token that the engine generates to
            score the prompt is then omitted.
    """

    kind = chunk_kind = "text_completion"
    prefix = "cmpl"

    def __init__(self, request_id: str, model: str, echo: Callable[[int], str] | None = None, *, generates: bool = True) -> None:
        super().__init__(request_id, model)
        self._generates = generates
        self._echo = echo
        self._offsets: dict[int, int] = {}

    def whole(self, completions: Sequence[Completion], per_prompt: int, turns: WorkQueue) -> AsyncIterator[bytes]:
        if not self._generates:
            completions = [
                msgspec.structs.replace(
                    one, text="", token_ids=(), logprobs=_none_of(one.logprobs), finish_reason="length", usage=prompt_alone(one.usage)
                )
                for one in completions
            ]
        return super().whole(completions, per_prompt, turns)

    def chunk(self, index: int, delta: Delta, usage: Usage | None = None) -> bytes:
        if not self._generates:
            delta, usage = _echo_alone(delta), None if usage is None else prompt_alone(usage)
        return super().chunk(index, delta, usage)

    def chunk_with_ids(self, index: int, delta: Delta, usage: Usage | None = None) -> bytes:
        if not self._generates:
            delta, usage = _echo_alone(delta), None if usage is None else prompt_alone(usage)
        return super().chunk_with_ids(index, delta, usage)

    def usage(self, usages: Sequence[Usage], per_prompt: int) -> bytes:
        return super().usage(usages if self._generates else [prompt_alone(one) for one in usages], per_prompt)

    def begin(self, streams: Sequence[TokenStream]) -> None:
        if self._echo is not None:
            self._offsets = {index: len(self._echo(index)) for index in range(len(streams))}
        super().begin(streams)

    def first(self, index: int, usage: Usage | None = None) -> bytes:
        prompt = self._prompts.pop(index, msgspec.UNSET)
        if self._echo is None and prompt is msgspec.UNSET:
            return b""
        text = self._echo(index) if self._echo else ""
        choice = TextChoice(index, text, None, None, token_ids=() if self.token_ids else msgspec.UNSET, prompt_token_ids=prompt)
        return self._event(choice, None if usage is None else prompt_alone(usage))

    def choice(self, index: int, completion: Completion) -> TextChoice:
        text = (self._echo(index) if self._echo else "") + completion.text
        choice = TextChoice(index, text, None, completion.finish_reason, completion.stop_reason, None, None, None)
        if self.token_ids:
            choice.token_ids, choice.prompt_token_ids = completion.token_ids, completion.prompt_token_ids
        return choice

    def logprobs(self, index: int, completion: Completion) -> Iterator[TextLogprobs]:
        prompt = (completion.prompt_logprobs or ()) if self._echo else ()
        start = len(self._echo(index)) if self._echo and not prompt else 0
        for piece in pieces(prompt, completion.logprobs or ()):
            yield text_logprobs(self._named(piece), start)
            start += sum(len(entry.token) for entry in piece)

    def chunk_choice(self, index: int, delta: Delta) -> TextChoice:
        logprobs = None
        if delta.logprobs is not None:
            start = self._offsets.get(index, 0)
            self._offsets[index] = start + sum(len(entry.token) for entry in delta.logprobs)
            # The prompt's logprobs come with the first delta, and their offsets start with the
            # echo.
            logprobs = text_logprobs(self._named([*(delta.prompt_logprobs or ()), *delta.logprobs]), 0 if delta.prompt_logprobs else start)
        return TextChoice(index, delta.text, logprobs, delta.finish_reason, delta.stop_reason)


def _echo_alone(delta: Delta) -> Delta:
    return msgspec.structs.replace(delta, text="", token_ids=(), logprobs=_none_of(delta.logprobs), finish_reason="length")


def _none_of(logprobs: Sequence[TokenLogprob] | None) -> tuple[TokenLogprob, ...] | None:
    return None if logprobs is None else ()
