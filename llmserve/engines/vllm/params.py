"""Converts a request's sampling to vLLM's SamplingParams, and checks what this vLLM supports.

Written against vLLM 0.25.1, 0.32.0 and 0.33.0.
"""

from collections.abc import Mapping
from typing import Any

from llmserve.engines.vllm.args import numbers, version
from llmserve.engines.vllm.grammars.sandbox import params as grammar_params
from llmserve.errors import InvalidRequest
from llmserve.request import Sampling
from llmserve.structured import StructuredOutputs

# The fields for which None selects the model's generation config.
CHOSEN = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
# The first version without CVE-2026-93840 and CVE-2026-93989.
TOKEN_RULES_SINCE = (0, 30)
# Maximum number of tokens of all bad words, VLLM_MAX_BAD_WORDS_TOTAL_TOKENS. vLLM checks it only in
# the engine's process, which then ends.
MAX_BAD_WORD_TOKENS = 1024


def check_version_for(sampling: Sampling, found: str | None = None) -> None:
    """Raise InvalidRequest for fields that vLLM of the version `found` handles wrongly.

    None stands for the installed version.
    """
    fields = [name for name in ("allowed_token_ids", "bad_words") if getattr(sampling, name)]
    if fields and numbers(found or version()) < TOKEN_RULES_SINCE:
        words = f"{fields[0]} is not supported by this server's vLLM {found or version()}: below 0.30 it changes other requests' answers"
        raise InvalidRequest(words, fields[0])


def sampling_params(sampling: Sampling, constraint: StructuredOutputs | None, defaults: Mapping[str, Any], tokenizer: Any) -> Any:
    """Return SamplingParams. Raises InvalidRequest, and what vLLM raises.

    `defaults` are those of the model's generation config.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    chosen = {name: getattr(sampling, name) for name in CHOSEN}
    params = SamplingParams(
        **{name: defaults[name] for name in CHOSEN if name in defaults}
        | {name: value for name, value in chosen.items() if value is not None},
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        max_tokens=sampling.max_tokens,
        min_tokens=sampling.min_tokens,
        seed=sampling.seed,
        stop=list(sampling.stop),
        stop_token_ids=list(sampling.stop_token_ids),
        include_stop_str_in_output=sampling.include_stop,
        ignore_eos=sampling.ignore_eos,
        skip_special_tokens=sampling.skip_special_tokens,
        detokenize=sampling.detokenize,
        logprobs=sampling.logprobs,
        prompt_logprobs=sampling.prompt_logprobs,
        logit_bias=dict(sampling.logit_bias) or None,
        allowed_token_ids=None if sampling.allowed_token_ids is None else list(sampling.allowed_token_ids),
        bad_words=list(sampling.bad_words) or None,
        structured_outputs=None if constraint is None else grammar_params(constraint),
        output_kind=RequestOutputKind.DELTA,
        # These parameters are for one request only, so vLLM need not copy them.
        skip_clone=True,
    )
    if sampling.bad_words:
        _check_bad_words(params, tokenizer)
    return params


def _check_bad_words(params: Any, tokenizer: Any) -> None:
    # vLLM does the same later, but checks the sum only in the engine's process.
    params.update_from_tokenizer(tokenizer)
    tokens = sum(map(len, params.bad_words_token_ids))
    if tokens > MAX_BAD_WORD_TOKENS:
        words = f"bad_words has {tokens:,} tokens (each string as it is, and after a space); at most {MAX_BAD_WORD_TOKENS:,} are allowed"
        raise InvalidRequest(words, "bad_words")
