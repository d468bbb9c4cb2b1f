"""Walks through xgrammar's grammars: each answer conforms, or the schema was refused."""

import copy
import json
import random

import jsonschema
import pytest
from hypothesis import given, seed, settings
from schemas import SCHEMAS

from llmserve import GenerationRequest, LLMServeError, Sampling, StructuredOutputs
from llmserve.json_schema.narrowing import hold
from llmserve.json_schema.values import UnsupportedSchema

xgrammar = pytest.importorskip("xgrammar", reason="vLLM brings it, and the unit environment has no vLLM")
END = 256
BYTES = xgrammar.TokenizerInfo([bytes([byte]) for byte in range(END)] + [b"<end>"], vocab_type=xgrammar.VocabType.RAW, stop_token_ids=[END])
COMPILER = xgrammar.GrammarCompiler(BYTES, max_threads=1, cache_enabled=False)
# Characters that break or end a JSON string.
HARMFUL = b'"\\\t\n\r\0\1'
WALK_BYTES = 80


def walk(compiled, number):
    """Return a random answer that prefers harmful tokens, or None if it did not end."""
    chance = random.Random(number)
    matcher = xgrammar.GrammarMatcher(compiled)
    mask = xgrammar.allocate_token_bitmask(1, END + 1)
    text = bytearray()
    while len(text) < WALK_BYTES and not matcher.is_terminated():
        matcher.fill_next_token_bitmask(mask)
        words = mask.numpy()[0].view("uint32")
        allowed = [token for token in range(END + 1) if int(words[token >> 5]) >> (token & 31) & 1]
        assert allowed, f"nothing goes on from {bytes(text)!r}"
        if END in allowed and (len(allowed) == 1 or chance.random() < 0.4):
            return text.decode(errors="replace")
        # Among other characters only those of two bytes: grammars accept some longer sequences that
        # are not UTF-8.
        allowed = [token for token in allowed if token <= 0xC3] or [token for token in allowed if token != END]
        harmful = [token for token in allowed if token in HARMFUL]
        token = chance.choice(harmful if harmful and chance.random() < 0.4 else allowed)
        assert matcher.accept_token(token)
        text.append(token)
    return None


@pytest.mark.parametrize("spaced", [False, True])
def test_answers_that_xgrammar_calls_complete_conform(spaced):
    ended = 0

    @seed(spaced)
    @settings(database=None)
    @given(SCHEMAS)
    def check(schema):
        nonlocal ended
        asked = copy.deepcopy(schema)
        try:
            narrowed = hold(schema).narrowed
        except UnsupportedSchema:
            return
        compiled = COMPILER.compile_json_schema(json.dumps(narrowed, ensure_ascii=False), any_whitespace=spaced)
        for number in range(4):
            if (text := walk(compiled, number)) is not None:
                jsonschema.Draft202012Validator(asked).validate(json.loads(text))
                ended += 1

    check()
    assert ended > 50


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "maxLength": 5},
        {"type": "string", "minLength": 2},
        {"type": "string", "pattern": '^"'},
        {"type": "string", "pattern": "^.{1,4}$"},
        {"type": "object", "propertyNames": {"maxLength": 3}, "additionalProperties": {"type": "null"}, "maxProperties": 2},
    ],
)
async def test_with_a_bias_on_controls_and_quotes_the_answer_still_conforms(manager, schema):
    encode = manager.engine.running_llm.get_tokenizer().encode
    bias = {token: 100.0 for text in ("\t", "\n", '"', "\\", "\x01") for token in encode(text)}
    for number in range(4):
        constraint = StructuredOutputs.json(schema)
        sampling = Sampling(max_tokens=60, structured_outputs=constraint, logit_bias=bias, seed=number)
        answer = await manager.generate(GenerationRequest("A text, as JSON: ", sampling=sampling))
        if answer.finish_reason == "stop":
            jsonschema.Draft202012Validator(schema).validate(json.loads(answer.text))


async def test_a_long_bound_is_taken(manager):
    text = {"type": "string", "maxLength": 128}
    schema = {"type": "object", "properties": {"a": text}, "required": ["a"], "additionalProperties": False}
    sampling = Sampling(max_tokens=60, structured_outputs=StructuredOutputs.json(schema), seed=1)
    answer = await manager.generate(GenerationRequest("An example, as JSON: ", sampling=sampling))
    if answer.finish_reason == "stop":
        jsonschema.Draft202012Validator(schema).validate(json.loads(answer.text))


async def test_the_bundled_model_s_answers_conform(manager):
    """A part of the corpus; the walks cover the rest."""
    schemas, ended = [], 0

    @seed(0)
    @settings(max_examples=60, database=None)
    @given(SCHEMAS)
    def collect(schema):
        schemas.append(schema)

    collect()
    for number, schema in enumerate(schemas):
        try:
            constraint = StructuredOutputs.json(copy.deepcopy(schema))
            sampling = Sampling(max_tokens=40, structured_outputs=constraint, seed=number)
            answer = await manager.generate(GenerationRequest("An example, as JSON: ", sampling=sampling))
        except LLMServeError:
            continue
        if answer.finish_reason == "stop":
            ended += 1
            jsonschema.Draft202012Validator(schema).validate(json.loads(answer.text))
    assert ended
