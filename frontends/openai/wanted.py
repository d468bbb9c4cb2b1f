"""The parsed content of a body, and errors with the client's field names."""

import attrs

from llmserve import GenerationRequest, InvalidRequest, PromptTooLong


@attrs.frozen(kw_only=True)
class ParsedBody:
    """The parsed content of a body. Nothing else of the body is kept during generation.

    Attributes:
        requests: one per choice, prompt by prompt.
        per_prompt: the number of requests per prompt.
        usage: whether the stream ends with the usage.
        running_usage: whether every event of the stream has the usage so far.
        names: the client's field names by the library's names, for errors after decoding.
        by_id: whether logprobs have `token_id:N` instead of a token's text, which may be a part of
            a character.
        token_ids: whether the answer has its token ids and those of the prompt.
        prompt_logprobs: whether the answer has the prompt's logprobs in vLLM's format,
            independently of `echo`.
        echo: whether the answer begins with the prompt's text.
        generates: False where the prompt's text is the whole answer.
        reasoning: whether the answer includes the model's reasoning.
        prefill: the text of the assistant's last message, with which a chat's answer begins.
        answer_id: the client's id for the answer.
        text: whether an answer of token ids has its text too.
    """

    requests: list[GenerationRequest]
    per_prompt: int
    stream: bool
    usage: bool
    running_usage: bool
    names: dict[str, str] = attrs.field(factory=dict)
    by_id: bool = False
    token_ids: bool = False
    prompt_logprobs: bool = False
    echo: bool = False
    generates: bool = True
    reasoning: bool = True
    prefill: str = ""
    answer_id: str | None = None
    text: bool = False


class renamed:  # noqa: N801 - reads as a phrase, like contextlib's own
    """A context that puts the client's field names into an InvalidRequest."""

    def __init__(self, **names: str) -> None:
        self._names = names

    def __enter__(self) -> None:
        pass

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.__exit__(kind, error, trace)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, InvalidRequest) and error.param in self._names:
            name = self._names[error.param]
            if not isinstance(error, PromptTooLong):
                # That error's text is fixed, because clients recognise it.
                error.args = (str(error).replace(error.param, name),)
            error.param = name
