"""Checks a request against the model's limits. `request.py` checks the request on its own."""

import attrs

from llmserve.engine import EngineInfo, EnginePrompt
from llmserve.errors import InvalidRequest, ModelNotFound, PromptTooLong
from llmserve.images.parts import images
from llmserve.pooling.requests import CLASSIFY, EMBED, GENERATE, Pooling, PoolingRequest
from llmserve.request import MAX_LOGPROB_ENTRIES, MAX_TOKENS_FIELD, GenerationRequest, Sampling


def truncated(request: GenerationRequest, prompt: EnginePrompt, info: EngineInfo) -> EnginePrompt:
    """Return the prompt with as many tokens as `truncate_prompt_tokens` allows. Raises InvalidRequest."""
    most = request.truncate_prompt_tokens
    if most is None:
        return prompt
    if most > info.max_model_len or most == 0:
        words = f"truncate_prompt_tokens must be -1, or from 1 to the model's context length of {info.max_model_len:,}"
        raise InvalidRequest(words, "truncate_prompt_tokens")
    if most == -1:
        most = info.max_model_len - (0 if isinstance(request, PoolingRequest) else 1)
    if len(prompt.token_ids) <= most:
        return prompt
    is_left, pooling = request.truncation_side == "left", prompt.pooling
    if pooling is not None and pooling.second is not None:
        # The second text begins earlier, or not at all.
        removed = len(prompt.token_ids) - most if is_left else 0
        pooling = attrs.evolve(pooling, second=min(most, max(0, pooling.second - removed)))
    kept = prompt.token_ids[-most:] if is_left else prompt.token_ids[:most]
    return attrs.evolve(prompt, token_ids=kept, text=None, pooling=pooling)


def check_task(request: GenerationRequest, info: EngineInfo) -> None:
    """Raise InvalidRequest for a request of a kind that the model does not answer."""
    if isinstance(request, PoolingRequest):
        known = [task for task in info.tasks if task != GENERATE]
        wanted, verb = request.task or (known[0] if known else EMBED), {EMBED: "embeddings", CLASSIFY: "classification"}
        if wanted not in known:
            raise _unsupported(verb[wanted], info)
    elif GENERATE not in info.tasks:
        raise _unsupported("generation", info)


def check_images(request: GenerationRequest, info: EngineInfo) -> None:
    """Raise InvalidRequest for images that the model does not take."""
    found = images(request.messages)
    if not found:
        return
    field = found[0][0]
    if not info.max_images:
        raise InvalidRequest(f"{field}: the model takes no images", field)
    if len(found) > info.max_images:
        raise InvalidRequest(f"messages has {len(found)} images, but the model takes at most {info.max_images}", "messages")
    if request.truncate_prompt_tokens is not None:
        raise InvalidRequest("truncate_prompt_tokens cannot be combined with images", "truncate_prompt_tokens")


def _unsupported(what: str, info: EngineInfo) -> InvalidRequest:
    return InvalidRequest(f"the model does not support {what}; its tasks are: {', '.join(info.tasks)}", "model")


def check_pooling(request: PoolingRequest, prompt: EnginePrompt, info: EngineInfo) -> EnginePrompt:
    """Return the prompt with what the engine makes of it. Raises InvalidRequest and PromptTooLong."""
    _check_adapter(request, info)
    task = request.task or next(task for task in info.tasks if task != GENERATE)
    length, dimensions = len(prompt.token_ids), request.dimensions
    if length == 0:
        raise InvalidRequest("the prompt has no tokens", request.prompt_field)
    if length > info.max_model_len:
        raise PromptTooLong(length, info.max_model_len, request.prompt_field)
    _check_vocabulary(request, prompt, info.vocab_size)
    if dimensions is not None and (task != EMBED or dimensions not in info.dimensions):
        if not info.dimensions or task != EMBED:
            raise InvalidRequest("dimensions is not supported: this model's vectors have one size", "dimensions")
        sizes = f"from {info.dimensions[0]} to {info.dimensions[-1]}"
        if not isinstance(info.dimensions, range):
            sizes = f"one of {', '.join(map(str, info.dimensions))}"
        raise InvalidRequest(f"dimensions is {dimensions}; for this model it must be {sizes}", "dimensions")
    second = None if prompt.pooling is None else prompt.pooling.second
    return attrs.evolve(prompt, pooling=Pooling(task=task, dimensions=dimensions, activation=request.activation, second=second))


def _check_adapter(request: GenerationRequest, info: EngineInfo) -> None:
    if request.adapter is not None and request.adapter not in info.adapters:
        raise ModelNotFound(request.adapter, info.model, "adapter")


def check_model_limits(request: GenerationRequest, prompt: EnginePrompt, info: EngineInfo, max_tokens: int | None) -> Sampling:
    """Return the sampling with a definite `max_tokens` within the context.

    The argument `max_tokens` is the operator's limit.

    Raises InvalidRequest, naming the field, for what does not fit; PromptTooLong for the prompt
    itself.
    """
    _check_adapter(request, info)
    sampling = request.sampling
    length = len(prompt.token_ids)
    if length == 0:
        raise InvalidRequest("the prompt has no tokens", request.prompt_field)
    room = info.max_model_len - length
    # Check this before any work on each token, of which there may be a million.
    if room < 1:
        raise PromptTooLong(length, info.max_model_len, request.prompt_field)
    _check_vocabulary(request, prompt, info.vocab_size)
    if max_tokens is not None and (sampling.max_tokens or 0) > max_tokens:
        raise InvalidRequest(f"max_tokens is {sampling.max_tokens}, and this server generates at most {max_tokens}", "max_tokens")
    # `max_tokens` is a bound: if the context has less room, the answer ends there, as in vLLM.
    # Clients set it once for all their prompts.
    most = min(room, sampling.max_tokens or room, max_tokens or room, _most_logprobs(sampling, length, room))
    if sampling.min_tokens > most:
        words = f"min_tokens is {sampling.min_tokens}, but after a prompt of {length} tokens at most {most} can be generated"
        raise InvalidRequest(words, "min_tokens")
    return sampling if sampling.max_tokens == most else attrs.evolve(sampling, max_tokens=most)


def _check_vocabulary(request: GenerationRequest, prompt: EnginePrompt, size: int) -> None:
    """Raise InvalidRequest for a token id that the model does not have."""
    sampling = request.sampling
    token_ids = {
        # A model may have tokens outside its vocabulary for images.
        request.prompt_field: max(prompt.token_ids) if prompt.images is None else 0,
        "stop_token_ids": max(sampling.stop_token_ids, default=0),
        "logit_bias": max((token for token, _ in sampling.logit_bias), default=0),
        "allowed_token_ids": max(sampling.allowed_token_ids or (), default=0),
    }
    for field, highest in token_ids.items():
        if highest >= size:
            # Clients look for the words "out of vocabulary", which are vLLM's.
            raise InvalidRequest(f"{field} has the token id {highest}, which is out of vocabulary: the model has {size} tokens", field)


def _most_logprobs(sampling: Sampling, length: int, room: int) -> int:
    """Return how many tokens can have logprobs after a prompt of `length` tokens.

    `room` is what the context has left. Raises InvalidRequest.
    """
    if sampling.prompt_logprobs is not None and length * (1 + sampling.prompt_logprobs) > MAX_LOGPROB_ENTRIES:
        raise InvalidRequest(
            f"prompt_logprobs is {sampling.prompt_logprobs}, and the prompt has {length:,} tokens: "
            f"their logprobs, alternatives included, may be at most {MAX_LOGPROB_ENTRIES:,}",
            "prompt_logprobs",
        )
    if sampling.logprobs is None:
        return MAX_TOKENS_FIELD
    most = MAX_LOGPROB_ENTRIES // (1 + sampling.logprobs)
    if sampling.max_tokens is not None and min(sampling.max_tokens, room) > most:
        raise InvalidRequest(
            f"max_tokens is {sampling.max_tokens:,}; with logprobs {sampling.logprobs} it may be at most {most:,}", "max_tokens"
        )
    return most
