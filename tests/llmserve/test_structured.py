"""The bounds of a constraint, without an engine."""

import json
import math
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.requests import nested

from llmserve import GenerationRequest, InvalidRequest, Sampling, StructuredOutputs
from llmserve.engines.simulated.engine import SimulatedEngine
from llmserve.structured import MAX_CHARACTERS, MAX_CHOICES, MAX_DEPTH


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: StructuredOutputs.json("{"), "not valid JSON"),
        (lambda: StructuredOutputs.json("[" * 60_000), "not valid JSON"),
        (lambda: StructuredOutputs.json("7"), "a schema must be a JSON object"),
        (lambda: StructuredOutputs.json(cast("Any", [])), "a schema must be a JSON object"),
        (lambda: StructuredOutputs.json(" " * (MAX_CHARACTERS + 1)), "65,537 characters"),
        (lambda: StructuredOutputs.json({"description": "x" * MAX_CHARACTERS}), "characters"),
        (lambda: StructuredOutputs.json(nested(MAX_DEPTH + 1)), "deeper than 32"),
        (lambda: StructuredOutputs.json(nested(10_000)), "deeper than 32"),
        (lambda: StructuredOutputs.json({"$ref": "http://169.254.169.254/"}), "only references to its own parts"),
        (lambda: StructuredOutputs.json({"items": [{"$ref": "other.json"}]}), "only references to its own parts"),
        (lambda: StructuredOutputs.json({"const": b"x"}), "not JSON serializable"),
        (lambda: StructuredOutputs.json({"const": datetime.now(UTC)}), "not JSON serializable"),
        (lambda: StructuredOutputs.json({"const": math.nan}), "not JSON compliant"),
        (lambda: StructuredOutputs.json('{"const": Infinity}'), "not JSON compliant"),
        *(
            (lambda key=key: StructuredOutputs.json({"properties": {key: {}}}), "key that is not text")
            for key in (1, True, None, b"a", (1,))
        ),
        (lambda: StructuredOutputs.json('{"const": "\\ud800"}'), r"lone surrogate U\+D800"),
        (lambda: StructuredOutputs.json({"\udfff": {}}), r"lone surrogate U\+DFFF"),
        *((lambda make=make: make("root\ud800"), "lone surrogate") for make in (StructuredOutputs.regex, StructuredOutputs.grammar)),
        (lambda: StructuredOutputs.choice(["\ud800"]), "lone surrogate"),
        (lambda: StructuredOutputs.regex("a\0"), "NUL"),
        (lambda: StructuredOutputs.regex("a" * (MAX_CHARACTERS + 1)), "characters"),
        (lambda: StructuredOutputs.choice([]), "choice takes"),
        (lambda: StructuredOutputs.choice(["a", ""]), "choice takes"),
        (lambda: StructuredOutputs.choice(cast("Any", ["a", 1])), "choice takes"),
        (lambda: StructuredOutputs.choice(["a"] * (MAX_CHOICES + 1)), "choice takes"),
        (lambda: StructuredOutputs.grammar(" \n"), "grammar is empty"),
    ],
)
def test_an_invalid_constraint_is_refused_by_name(make, words):
    with pytest.raises(InvalidRequest, match=words) as caught:
        make()
    assert caught.value.param == "structured_outputs"
    assert len(str(caught.value)) < 200


def test_the_bounds_themselves_are_fine():
    StructuredOutputs.json(nested(MAX_DEPTH))
    StructuredOutputs.json({"$ref": "#/$defs/a", "$defs": {"a": {"type": "string"}}})
    StructuredOutputs.json({"properties": {"$ref": {"type": "string"}}})
    StructuredOutputs.regex("a" * MAX_CHARACTERS)
    assert StructuredOutputs.choice(["a"] * MAX_CHOICES).choices == ["a"] * MAX_CHOICES


# Small schemas are enough: the form of a value does not depend on the number of others.
TEXTS = st.text(max_size=8)
VALUES = st.recursive(
    st.none() | st.integers() | TEXTS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=8
)


@given(st.dictionaries(TEXTS, VALUES, max_size=4))
def test_a_schema_is_the_same_as_a_text_and_as_a_dictionary(schema):
    try:
        made = StructuredOutputs.json(schema)
    except InvalidRequest:
        with pytest.raises(InvalidRequest):
            StructuredOutputs.json(json.dumps(schema))
        return
    assert made == StructuredOutputs.json(json.dumps(schema))
    assert json.loads(made.spec) == schema


@pytest.mark.anyio
async def test_the_simulated_engine_refuses_a_grammar():
    engine = SimulatedEngine()
    grammar = StructuredOutputs.grammar('root ::= "a"')
    with pytest.raises(InvalidRequest, match="does not support grammar") as caught:
        await engine.tokenize(GenerationRequest("x", sampling=Sampling(structured_outputs=grammar)))
    assert caught.value.param == "structured_outputs"


@pytest.mark.parametrize(
    "bias",
    [{-1: 1.0}, {1: 101}, {1: -100.5}, {1: float("nan")}, {1: float("inf")}, {1: "2"}, {1: True}, {True: 1}, dict.fromkeys(range(1025), 1)],
)
def test_a_bias_out_of_bounds_is_named(bias):
    with pytest.raises(InvalidRequest) as caught:
        Sampling(logit_bias=bias)
    assert caught.value.param == "logit_bias"


def test_a_bias_within_them_is_kept():
    assert Sampling(logit_bias={7: -100, 0: 100}).logit_bias == ((7, -100), (0, 100))
