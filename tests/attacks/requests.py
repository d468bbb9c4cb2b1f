"""Invalid request fields, by row of the attack table (docs/reliability.md)."""

import json
from typing import Any

COMPLETIONS, CHAT, GENERATE = "/v1/completions", "/v1/chat/completions", "/generate"
HI = {"prompt": "hi", "max_tokens": 4}
USER = [{"role": "user", "content": "hi"}]
NUMBERS = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
# Fields of vLLM's or OpenAI's server that were used to crash engines, read from them or make them
# call other hosts.
REFUSED = (
    "best_of", "suffix", "logit_bias", "allowed_token_ids", "bad_words", "chat_template", "chat_template_kwargs", "documents", "tools",
    "tool_choice", "functions", "response_format", "guided_json", "guided_regex", "guided_grammar", "guided_choice", "structured_outputs",
    "mm_processor_kwargs", "media_io_kwargs", "kv_transfer_params", "vllm_xargs", "cache_salt", "prompt_embeds", "request_id",
    "data_parallel_rank", "logits_processors", "add_special_tokens", "use_beam_search", "return_token_ids",
    "audio", "modalities", "prediction", "reasoning_effort", "web_search_options", "__proto__", "",
)  # fmt: skip
URLS = (
    "http://169.254.169.254/latest", "http://127.0.0.1:{port}/", "http://[::ffff:127.0.0.1]:{port}/", "http://0:{port}/", "file:///etc/passwd",
    "http://a\\@127.0.0.1:{port}/", "data:image/png;base64," + "A" * 10**6,
)  # fmt: skip


def text(field, literal, base=None):
    """Return a body with one value as raw text, which an encoder might not be able to write."""
    start = json.dumps({key: value for key, value in (base or HI).items() if key != field})[:-1]
    return f'{start}, "{field}": {literal}}}'.encode()


def rows():
    """Yield (row, path, body, field) for each case; the body is bytes or a value for JSON."""
    for part in (prompts, counts, numbers, logprobs_and_stops, names, conversations, switches):
        yield from part()


def prompts():
    yield "P3", COMPLETIONS, {**HI, "prompt": ["x"] * 1025}, "prompt"
    yield "P3", COMPLETIONS, {**HI, "prompt": ["x"] * 100_000}, "prompt"
    yield "P3", COMPLETIONS, {**HI, "prompt": ["x"] * 64, "n": 3}, "n"
    for value in ("", [], [[]], None, [""], [None], {}, 7, [{"a": 1}], [["x"]], ["x", 1], [1, "x"], [[1], "x"]):
        yield "P4", COMPLETIONS, {**HI, "prompt": value}, "prompt"
    for value in ("[-1]", "[1000000]", f"[{2**31}]", f"[{2**63}]", f"[{2**200}]", "[1.0]", "[true]", "[[-1]]", "[[1000000]]"):
        yield "P5", COMPLETIONS, text("prompt", value), "prompt"
        yield "P5", GENERATE, text("prompt", value), "prompt"
    for length in (2048, 2049, 20_480):
        yield "P6", COMPLETIONS, {**HI, "prompt": [1] * length}, "prompt"
    for prompt in ("a" * 10**6, " " * 10**6, "\ufdfa" * 10**6, "<|im_start|>" * 300_000, "e\u0301\u0301" * 200_000):
        yield "P7", COMPLETIONS, {**HI, "prompt": prompt}, "prompt"


def counts():
    for value in ("1000000", str(2**63), "-1", "0", "1.5", '"3"', "true", "129"):
        yield "P1", COMPLETIONS, text("n", value), "n"
    for value in ("0", "-1", str(10**12), "1.5", '"7"', "true", "[]"):
        yield "P8", COMPLETIONS, text("max_tokens", value), "max_tokens"
        yield "P8", GENERATE, text("max_tokens", value), "max_tokens"
    for value in ("0", "-2", str(10**12), "1.5", '"7"', "true", "[]"):
        yield "P8", COMPLETIONS, text("truncate_prompt_tokens", value), "truncate_prompt_tokens"
        yield "P8", GENERATE, text("truncate_prompt_tokens", value), "truncate_prompt_tokens"
    yield "P8", CHAT, {"messages": USER, "max_completion_tokens": 10**12}, "max_completion_tokens"
    yield "P8", GENERATE, {"prompt": "hi", "min_tokens": 10**9}, "min_tokens"
    yield "P8", GENERATE, {**HI, "min_tokens": 5}, "min_tokens"


def numbers():
    for field in NUMBERS:
        for value in ("NaN", "Infinity", "-Infinity", '"0.5"', "1e308", "-1e308", "[]", "true"):
            for path in (COMPLETIONS, GENERATE):
                yield "P9", path, text(field, value), field
    for field, value in (("top_k", "-2"), ("top_k", str(2**40)), ("seed", str(2**64)), ("seed", str(-(2**63) - 1)), ("seed", str(2**70))):
        yield "P10", COMPLETIONS, text(field, value), field
        yield "P10", GENERATE, text(field, value), field


def logprobs_and_stops():
    value: Any
    for value in ("-1", str(10**6), "21", "1.5", "true"):
        yield "P11", COMPLETIONS, text("logprobs", value), "logprobs"
        yield "P11", CHAT, text("top_logprobs", value, {"messages": USER, "logprobs": True}), "top_logprobs"
        yield "P11", GENERATE, text("prompt_logprobs", value), "prompt_logprobs"
    for value in ([10**6], [-1], list(range(10**5)), [True], [1.5], ["1"], "1"):
        yield "P12", COMPLETIONS, {**HI, "stop_token_ids": value}, "stop_token_ids"
    for value in (["a"] * 5, [""], "", "x" * 10**6, ["a"] * 10**4, [1], {}, 5):
        yield "P12", COMPLETIONS, {**HI, "stop": value}, "stop"


def names():
    for field in REFUSED:
        for path, base in ((COMPLETIONS, HI), (CHAT, {"messages": USER}), (GENERATE, HI)):
            # The server supports the best of 1 answer.
            yield "P15", path, {**base, field: 2 if field == "best_of" else 1}, field or None
    for value in ("x" * 10**6, "../../etc/passwd", "", "other", "sim\x00", "\u2028"):
        yield "P18", COMPLETIONS, {**HI, "model": value}, "model"


def conversations():
    for messages in (
        [], USER * 100_000, [{"role": "x", "content": "hi"}], [{"role": "user", "content": None}], [{"role": "user", "content": [[]]}],
        [{"role": "user", "content": [{"type": "text", "text": "a"}] * 10**4}], [{"role": "user"}], [{"content": "a"}], "hi", [1], {}, None,
        [{"role": "tool", "content": "a"}], [{"role": "user", "content": "a", "tool_calls": [1]}],
    ):  # fmt: skip
        yield "P19", CHAT, {"messages": messages}, "messages"
    for url in URLS:
        for kind in ("image_url", "video_url", "audio_url", "file"):
            part = {"type": kind, kind: {"url": url}}
            yield "P20", CHAT, {"messages": [{"role": "user", "content": [part]}]}, "messages"


def switches():
    value: Any
    for value in ("x", [1], {"include_usage": 1}, {"other": True}, 1):
        yield "P21", COMPLETIONS, {**HI, "stream": True, "stream_options": value}, "stream_options"
    yield "P21", CHAT, text("stream_options", '{"a":' * 1000 + "1" + "}" * 1000, {"messages": USER}), "stream_options"
    for value in ('"x"', "1", "[]", "{}"):
        yield "P21", COMPLETIONS, text("stream", value), "stream"
    for field, value in (("deadline", 0), ("deadline", -1), ("deadline", 10**9), ("priority", 2**40), ("priority", 0.5), ("tenant", 5)):
        yield "own", GENERATE, {**HI, field: value}, field
    for field in ("echo", "user", "service_tier", "ignore_eos", "include_stop_str_in_output", "skip_special_tokens"):
        yield "own", COMPLETIONS, {**HI, field: {"a": 1}}, field


# Bodies that are not JSON or not an object; sent to each route that takes a body.
BODIES = {
    "deep list": b"[" * 100_000,
    "deep object": b'{"a":' * 100_000,
    "long number": b'{"prompt": "hi", "seed": ' + b"9" * 5000 + b"}",
    "lone surrogate": b'{"prompt": "\\ud800"}',
    "not UTF-8": b'{"prompt": "\xff"}',
    "UTF-16": '{"prompt": "hi"}'.encode("utf-16"),
    "two byte order marks": 2 * b"\xef\xbb\xbf" + b'{"prompt": "hi"}',
    "null": b"null",
    "list": b"[]",
    "string": b'"x"',
    "trailing data": b'{"prompt": "hi"} {}',
    "nothing": b"",
    "many empty lists": b"[" + b"[]," * 350_000 + b"[]]",
    "control characters": b'{"prompt": "a\nb"}',
    "comments": b'{"prompt": "hi"} // x',
}
