"""Fields of OpenAI's and vLLM's that this server does not support, and bodies that send them without a request.

Clients that send all fields of their library send these too, with the value that asks for nothing. Null always does, and a neutral value
requests what the server does anyway. Any other value is refused with the reason, so that no client believes in an option that does nothing.
"""

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import msgspec

from llmserve import InvalidRequest

# The neutral values, beside null, and the reason why other values are refused.
Unsupported = Mapping[str, tuple[tuple[Any, ...], str]]

# Bytes of the longest value that may be neutral; longer ones are refused without being decoded.
MAX_NEUTRAL = 64

_TEXT_ONLY = "this model takes text only"
_WHOLE_PROMPT = "the server uses a prompt as it is, or refuses it"
_OWN_TEMPLATE = "a template is a program, and the server runs only the model's own"
_SERVER = "the server chooses it"
_UNUSED = "no part of this server uses it"
_OPENAI = "it belongs to OpenAI's own models and services"

_BOTH: Unsupported = {
    "use_beam_search": ((False,), "the result of a beam search cannot be streamed"),
    "length_penalty": ((1,), "it belongs to beam search"),
    "request_id": ((), _SERVER),
    "session_id": ((), _SERVER),
    "cache_salt": ((), _SERVER),
    "truncate_prompt_tokens": ((), _WHOLE_PROMPT),
    "truncation_side": ((), _WHOLE_PROMPT),
    "spaces_between_special_tokens": ((True,), "there are spaces between special tokens"),
    "return_token_offsets": ((False,), "the server does not keep the offsets of a prompt's tokens"),
    "logprob_token_ids": (([],), "vLLM would leave the alternatives out of the logprobs of other requests"),
    "kv_transfer_params": ((), _UNUSED),
    "ec_transfer_params": ((), _UNUSED),
    "mm_payload": (("tensors",), _TEXT_ONLY),
    "return_mm_kwargs": ((), _TEXT_ONLY),
    "routed_experts_prompt_start": ((0,), _UNUSED),
    "vllm_xargs": (({},), _UNUSED),
    "repetition_detection": ((), _UNUSED),
    "thinking_token_budget": ((-1,), _UNUSED),
    "watermarking": ((False,), _UNUSED),
    "return_weight_versions": ((False,), "the weights do not change while the server runs"),
}

CHAT: Unsupported = {
    **_BOTH,
    "add_special_tokens": ((False,), "the template writes the special tokens"),
    "functions": (([],), "use tools, the newer name"),
    "function_call": (("none",), "use tool_choice, the newer name"),
    "audio": ((), _TEXT_ONLY),
    "modalities": ((["text"], []), _TEXT_ONLY),
    "mm_processor_kwargs": (({},), _TEXT_ONLY),
    "media_io_kwargs": (({},), _TEXT_ONLY),
    "verbosity": (("medium",), _OPENAI),
    "prediction": ((), _OPENAI),
    "web_search_options": ((), _OPENAI),
    "moderation": ((), _OPENAI),
    "prompt_cache_options": ((), _OPENAI),
    "chat_template": ((), _OWN_TEMPLATE),
    "documents": (([],), "put the documents into a message"),
    "echo": ((False,), "the client has the message that it would repeat"),
    "return_prompt_text": ((False,), "use /tokenize and /detokenize"),
}

COMPLETIONS: Unsupported = {
    **_BOTH,
    "add_special_tokens": ((True,), "send token ids for a prompt without the special tokens"),
    "suffix": (("",), "the model goes on with a text and does not fill gaps"),
    "best_of": ((1,), "use n"),
    "prompt_embeds": (([],), "send text or token ids"),
}

_WHOLE = re.compile(rb"(-?\d{1,18})\.0+")


def of(kind: type[msgspec.Struct]) -> Unsupported:
    """Those of a kind of body."""
    fields: Unsupported = getattr(kind, "unsupported", {})
    return fields


def normalised(kind: Any, body: bytes | msgspec.Raw) -> bytes | None:
    """A body that did not decode, without neutral values of unsupported fields, and with 16 in place of 16.0.

    `kind` is the type that the body should have. Returns None if that changes nothing. Raises InvalidRequest for another value of an
    unsupported field, and msgspec's ValidationError for a field that is unknown beside those.
    """
    if not hasattr(kind, "unsupported"):
        return None
    unsupported = of(kind)
    try:
        found = _scanner(kind).decode(body)
    except msgspec.ValidationError:
        raise
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        # The caller's own decoder has said what is wrong.
        return None
    changed = False
    for name in found.__struct_fields__:
        value = getattr(found, name)
        if value is msgspec.UNSET:
            continue
        if name in unsupported:
            if not _is_neutral(bytes(value), unsupported[name][0]):
                raise InvalidRequest(f"{name} is not supported: {unsupported[name][1]}", name)
            replacement: Any = msgspec.UNSET
        elif len(value) <= MAX_NEUTRAL and (whole := _WHOLE.fullmatch(value)):
            replacement = msgspec.Raw(whole[1])
        else:
            continue
        setattr(found, name, replacement)
        changed = True
    return msgspec.json.encode(found) if changed else None


def _is_neutral(value: bytes, neutral: tuple[Any, ...]) -> bool:
    if len(value) > MAX_NEUTRAL:
        return False
    try:
        asked = msgspec.json.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return False
    # In Python 1 is True as well.
    return asked is None or any(asked == other and isinstance(asked, bool) == isinstance(other, bool) for other in neutral)


@cache
def _scanner(kind: type[msgspec.Struct]) -> msgspec.json.Decoder[Any]:
    """Decodes a body into the bytes of its fields."""
    names = [field.encode_name for field in msgspec.structs.fields(kind)]
    fields: Any = [(name, msgspec.Raw | msgspec.UnsetType, msgspec.UNSET) for name in (*names, *of(kind))]
    return msgspec.json.Decoder(msgspec.defstruct("Scanned", fields, kw_only=True, forbid_unknown_fields=True))
