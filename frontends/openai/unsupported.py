"""Fields of OpenAI and vLLM that this server does not support, and their neutral values.

Some clients send all fields of their library, these included. Null and a neutral value, which
requests what the server does anyway, are accepted. Any other value is refused with a reason, so
that no client relies on an option without effect.
"""

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import msgspec

from llmserve import InvalidRequest

# The neutral values in addition to null, and the reason why other values are refused.
Unsupported = Mapping[str, tuple[tuple[Any, ...], str]]

# Maximum bytes of a neutral value; longer values are refused without being decoded.
MAX_NEUTRAL = 64

_NO_MEDIA = "send images as parts of a chat's messages"
_NO_AUDIO = "the model neither reads nor writes audio"
_PROCESSOR = "the server decides how images are read"
_OWN_TEMPLATE = "a template is a program, and the server runs only the model's template"
_SERVER = "the server chooses it"
_UNUSED = "this server does not use it"
_OPENAI = "it is specific to OpenAI's models and services"

_BOTH: Unsupported = {
    "use_beam_search": ((False,), "the result of a beam search cannot be streamed"),
    "length_penalty": ((1,), "it belongs to beam search"),
    "request_id": ((), _SERVER),
    "session_id": ((), _SERVER),
    "cache_salt": ((), _SERVER),
    "spaces_between_special_tokens": ((True,), "the server always puts spaces between special tokens"),
    "return_token_offsets": ((False,), "the server does not keep the offsets of a prompt's tokens"),
    "logprob_token_ids": (([],), "with it, vLLM would omit the alternatives from the logprobs of other requests"),
    "kv_transfer_params": ((), _UNUSED),
    "ec_transfer_params": ((), _UNUSED),
    "mm_payload": (("tensors",), _NO_MEDIA),
    "return_mm_kwargs": ((), _NO_MEDIA),
    "routed_experts_prompt_start": ((0,), _UNUSED),
    "vllm_xargs": (({},), _UNUSED),
    "repetition_detection": ((), _UNUSED),
    "thinking_token_budget": ((-1,), _UNUSED),
    "watermarking": ((False,), _UNUSED),
    "return_weight_versions": ((False,), "the weights do not change while the server runs"),
}

CHAT: Unsupported = {
    **_BOTH,
    "functions": (([],), "use tools, the newer name"),
    "function_call": (("none",), "use tool_choice, the newer name"),
    "audio": ((), _NO_AUDIO),
    "modalities": ((["text"], []), _NO_AUDIO),
    "mm_processor_kwargs": (({},), _PROCESSOR),
    "media_io_kwargs": (({},), _PROCESSOR),
    "verbosity": (("medium",), _OPENAI),
    "prediction": ((), _OPENAI),
    "web_search_options": ((), _OPENAI),
    "moderation": ((), _OPENAI),
    "prompt_cache_options": ((), _OPENAI),
    "chat_template": ((), _OWN_TEMPLATE),
    "documents": (([],), "put the documents into a message"),
    "return_prompt_text": ((False,), "use /tokenize and /detokenize"),
}

COMPLETIONS: Unsupported = {
    **_BOTH,
    "suffix": (("",), "the model continues a text and does not fill gaps"),
    "best_of": ((1,), "use n"),
    "prompt_embeds": (([],), "send text or token ids"),
}

TOKENS: Unsupported = {name: _BOTH[name] for name in ("cache_salt", "kv_transfer_params", "ec_transfer_params")} | {
    "features": ((), _NO_MEDIA),
    "content_parts": (([],), _NO_MEDIA),
    "token_offsets": ((), _UNUSED),
    "reasoning_ended": ((), _UNUSED),
    "reasoning_parser_kwargs": ((), _UNUSED),
    "parse_context": ((), "the answer is not parsed; use /v1/chat/completions"),
}

_ANTHROPIC = "it is specific to Anthropic's models and services"

MESSAGES: Unsupported = {
    "container": ((), _ANTHROPIC),
    "diagnostics": ((), _ANTHROPIC),
    "inference_geo": ((), _ANTHROPIC),
    "mcp_servers": (([],), "the server calls no other servers"),
    "speed": (("standard",), _ANTHROPIC),
    "user_profile_id": ((), _ANTHROPIC),
    "workspace_id": ((), _ANTHROPIC),
}

# The reason for refusing what needs a stored response, where none is kept.
NOTHING_STORED = "this server keeps no responses; send the whole conversation as input"

RESPONSES: Unsupported = {
    "access_programs": ((), _OPENAI),
    "background_options": ((), _OPENAI),
    "context_management": ((), "the server never changes a conversation"),
    "conversation": ((), "the server keeps responses and no conversations; use previous_response_id"),
    "image": ((), _NO_MEDIA),
    "max_tool_calls": ((), "the client runs the tools, and can count their calls"),
    "moderation": ((), _OPENAI),
    "prompt": ((), _OPENAI),
    "truncation": (("disabled",), "the server never removes items of a conversation"),
}

TOKENIZE: Unsupported = {name: CHAT[name] for name in ("chat_template", "mm_processor_kwargs", "media_io_kwargs")}

_WHOLE = re.compile(rb"(-?\d{1,18})\.0+")


def of(kind: type[msgspec.Struct]) -> Unsupported:
    """Return the unsupported fields of a type of body."""
    fields: Unsupported = getattr(kind, "unsupported", {})
    return fields


def normalised(kind: Any, body: bytes | msgspec.Raw) -> bytes | None:
    """Remove neutral values of unsupported fields from a body, and replace 16.0 by 16.

    The body did not decode as `kind`. Returns None if nothing changes. Raises InvalidRequest for
    another value of an unsupported field, and msgspec's ValidationError for an unknown field.
    """
    if not hasattr(kind, "unsupported"):
        return None
    unsupported = of(kind)
    try:
        found = _scanner(kind).decode(body)
    except msgspec.ValidationError:
        raise
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        # The caller's decoder has already reported the problem.
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
    # Python holds 1 == True, so the types are compared too.
    return asked is None or any(asked == other and isinstance(asked, bool) == isinstance(other, bool) for other in neutral)


@cache
def _scanner(kind: type[msgspec.Struct]) -> msgspec.json.Decoder[Any]:
    """Return a decoder of a body into the bytes of its fields."""
    names = [field.encode_name for field in msgspec.structs.fields(kind)]
    fields: Any = [(name, msgspec.Raw | msgspec.UnsetType, msgspec.UNSET) for name in (*names, *of(kind))]
    return msgspec.json.Decoder(msgspec.defstruct("Scanned", fields, kw_only=True, forbid_unknown_fields=True))
