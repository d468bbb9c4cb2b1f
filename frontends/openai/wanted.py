"""What a body asks for, and errors in the client's words."""

import attrs

from llmserve import GenerationRequest, InvalidRequest


@attrs.frozen(kw_only=True)
class ParsedBody:
    """What a body asks for. It outlives the body, of which nothing else is kept while the answer is generated.

    Attributes:
        requests: one for each choice, prompt by prompt; `per_prompt` are those of one prompt.
        running_usage: with every event of a stream, not only at its end.
        names: the fields that were sent, by the library's names for them, for errors that come after the decoding.
        by_id: logprobs have `token_id:N` in place of a token's text, which may be a part of a character.
        token_ids: the answer has the token ids, and those of the prompt.
        prompt_logprobs: the answer has those of the prompt as vLLM writes them, beside what `echo` does with them.
        echo: the prompt's text stands before the answer; `generates` is False where it is the whole answer.
        reasoning: whether the answer has what the model thought before it.
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


class renamed:  # noqa: N801 - reads as a phrase, like contextlib's own
    """Inside it, an InvalidRequest about a field of ours is about the caller's field of another name."""

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
            error.args = (str(error).replace(error.param, name),)
            error.param = name
